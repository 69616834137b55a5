"""Data sets with their models: a folder per suite, named as `--suite` has it."""
