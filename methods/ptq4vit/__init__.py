"""PTQ4ViT and its baseline BasePTQ (ECCV 2022)."""
