"""Rounding weights column by column, with each column's error made up for by those that are left (GPTQ)."""
