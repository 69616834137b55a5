"""BRECQ (ICLR 2021): learned rounding block by block under Fisher weights."""
