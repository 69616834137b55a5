"""Moving averages of batches' quantiles."""

from __future__ import annotations

from methods.core.numerics.observers import Ema, Observer
from methods.core.options import PercentileOptions
from methods.core.range_calibrator import RangeCalibrator


class Percentile(RangeCalibrator):
    """Ranges are moving averages of batch quantiles."""

    options: PercentileOptions

    def observer(self) -> Observer:
        """A fresh observer for one site."""
        return Ema(self.options.momentum, self.options.quantile)
