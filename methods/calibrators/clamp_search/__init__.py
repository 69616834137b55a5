"""CLAMP-ViT's second stage alone (ECCV 2024), a reconstruction: search of scales and bit-widths."""
