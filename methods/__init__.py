"""Quantization methods, image sources and calibrators, one plugin per file or folder."""
