"""The shared quantization substrate: tracing, sites, quantizers, observers and the quantized model."""
