"""APHQ-ViT (CVPR 2025): QDrop's walk under the average perturbation Hessian."""
