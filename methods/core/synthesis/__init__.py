"""Gradient descent on pixels, and what image sources share."""
