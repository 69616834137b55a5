"""AdaLog: logarithmic quantizers whose base adapts to softmax and GELU outputs, searched layer by layer."""
