"""FIMA-Q (CVPR 2025): QDrop's walk under a low-rank Fisher information matrix."""
