"""Ranges of least squared error."""

from __future__ import annotations

from methods.core.numerics.observers import Observer, Omse
from methods.core.range_calibrator import RangeCalibrator


class OmseCalibrator(RangeCalibrator):
    """Ranges of least squared error."""

    def observer(self) -> Observer:
        """A fresh observer for one site."""
        return Omse()
