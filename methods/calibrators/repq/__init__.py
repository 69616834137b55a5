"""RepQ-ViT: percentile quantizers, log-sqrt2 softmax, LayerNorm scales moved into the next layer."""
