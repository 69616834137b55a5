"""RepQ-ViT's engine: LayerNorm's per-channel scales are moved into the next layer."""
