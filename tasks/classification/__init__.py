"""Task `classification`: top-1 accuracy."""
