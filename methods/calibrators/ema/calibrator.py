"""Moving averages of batches' extremes."""

from __future__ import annotations

from methods.core.numerics import observers
from methods.core.options import EmaOptions
from methods.core.range_calibrator import RangeCalibrator


class Ema(RangeCalibrator):
    """Ranges are moving averages of batch extremes."""

    options: EmaOptions

    def observer(self) -> observers.Observer:
        """A fresh observer for one site."""
        return observers.Ema(self.options.momentum)
