"""PSAQ-ViT (ECCV 2022): images whose patches differ as real patches do."""
