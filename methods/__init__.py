"""Quantization methods, image sources and calibrators, one plugin a file or folder."""
