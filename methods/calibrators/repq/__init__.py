"""RepQ-ViT: percentile quantizers, log-sqrt2 softmax, LayerNorm scales moved into the next layer.

Its options, presets and deviations are here; its code, which others share, is in `methods/core/reparameterization`.
"""
