"""Trio-ViT: three transformations in closed form for networks of convolutions and linear attention."""
