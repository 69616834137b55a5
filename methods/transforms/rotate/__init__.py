"""Rotations of the residual stream and of attention heads, folded into the weights (QuaRot; GLF-Q for ViTs)."""
