"""Task adapters: what is evaluated, on which data, with which models. Knows nothing of quantization methods."""
