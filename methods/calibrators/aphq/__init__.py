"""APHQ-ViT (CVPR 2025): QDrop's walk under the average perturbation Hessian.

Its options, presets and deviations are here; its code, which others share, is in `methods/core/reconstruction`.
"""
