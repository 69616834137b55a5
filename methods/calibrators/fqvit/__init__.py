"""FQ-ViT: power-of-two factors for LayerNorm inputs, log2 softmax outputs and integer arithmetic in both."""
