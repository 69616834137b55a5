"""MPTQ-ViT: smoothing with a shift (SQ-b), two regions behind GELU (OPT-m), and greedy mixed precision."""
