"""Metrics: what they are of models' outputs, and of what is kept of every image. Knows neither models nor data."""
