"""Moving averages of quantiles."""
