"""Moving averages of extremes."""
