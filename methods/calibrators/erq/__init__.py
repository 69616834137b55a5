"""ERQ: RepQ-ViT's quantizers, with quantization errors of activations and weights regressed into the weights."""
