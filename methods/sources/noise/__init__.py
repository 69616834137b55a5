"""Gaussian noise, the floor of data-free calibration."""
