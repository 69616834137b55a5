"""Quantizers, and what finds their parameters."""
