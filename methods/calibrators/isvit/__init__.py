"""I&S-ViT: shifted logarithmic codes for softmax, and a smooth way from float to per-tensor quantized blocks."""
