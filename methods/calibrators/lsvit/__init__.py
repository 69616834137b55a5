"""LS-ViT (CVPR 2026): QDrop's walk under a quadratic form fitted by least squares."""
