"""MimiQ (AAAI 2025), its images only: heads that attend alike. Its quantization-aware training is out of scope."""
