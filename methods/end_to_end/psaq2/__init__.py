"""PSAQ-ViT V2, a reconstruction: images and the quantized model's weights are trained against each other."""
