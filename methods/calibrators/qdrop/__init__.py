"""QDrop (ICLR 2022): rounding and scales learned with activation quantization dropped at random.

Its options, presets and deviations are here; its code, which others share, is in `methods/core/reconstruction`.
"""
