"""Ranges of least squared error."""
