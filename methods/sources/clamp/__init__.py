"""CLAMP-ViT's first stage alone (ECCV 2024), a reconstruction: patch-contrastive images."""
