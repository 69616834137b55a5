"""DopQ-ViT: RepQ-ViT with the median of LayerNorm's scales and a tangent-shaped quantizer of softmax outputs."""
