"""Extremes of activations.

Its options, presets and deviations are here; its code, which others share, is in `methods/core/range_calibrator.py`.
"""
