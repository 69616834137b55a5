"""CLAMP-ViT (ECCV 2024), rebuilt from secondary sources: the authors released neither generation nor search."""
