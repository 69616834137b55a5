"""UQ-ViT: NormQuant's balance between activations and weights by channel, and DeMax for softmax outputs."""
