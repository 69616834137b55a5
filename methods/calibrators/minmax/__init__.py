"""Extremes of activations."""
