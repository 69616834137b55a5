"""BasePTQ, PTQ4ViT's baseline (ECCV 2022)."""
