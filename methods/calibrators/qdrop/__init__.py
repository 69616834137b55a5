"""QDrop (ICLR 2022): rounding and scales learned with activation quantization dropped at random."""
