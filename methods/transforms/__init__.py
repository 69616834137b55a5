"""Transforms: each makes a float network whose outputs are the same and which is easier to quantize."""
