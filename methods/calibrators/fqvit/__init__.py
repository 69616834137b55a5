"""FQ-ViT: power-of-two factors for LayerNorm inputs, log2 softmax outputs and integer arithmetic in both.

Its options, presets and deviations are here; its code, which others share, is in `methods/core/integer`.
"""
