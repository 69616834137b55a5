"""Suite `ade20k`."""
