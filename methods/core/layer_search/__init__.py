"""PTQ4ViT's engine: grids of scales per layer, judged by Hessian-guided output distance."""
