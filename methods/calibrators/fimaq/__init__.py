"""FIMA-Q (CVPR 2025): QDrop's walk under a low-rank Fisher information matrix.

Its options, presets and deviations are here; its code, which others share, is in `methods/core/reconstruction`.
"""
