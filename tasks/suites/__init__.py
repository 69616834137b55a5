"""Data sets with their models: a folder per suite, named as `--suite` has it.

In each, `dataset` opens the data, and `zoo` knows the models that come with it; those for dense tasks, where a suite
serves them too, are in `dense_dataset` and `dense_zoo`.
"""
