"""FQ-ViT's engine: power-of-two factors, log2 softmax, and LayerNorm and softmax in integer arithmetic."""
