"""BasePTQ, PTQ4ViT's baseline (ECCV 2022).

Its options, presets and deviations are here; its code, which others share, is in `methods/core/layer_search`.
"""
