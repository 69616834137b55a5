"""PTQ4ViT (ECCV 2022).

Its options, presets and deviations are here; its code, which others share, is in `methods/core/layer_search`.
"""
