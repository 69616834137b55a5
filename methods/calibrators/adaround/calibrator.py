"""AdaRound as one phase of the reconstruction engine."""

from __future__ import annotations

from methods.calibrators.adaround.info import AdaroundOptions
from methods.core.reconstruction.calibrator import Rounding
from methods.core.reconstruction.engine import Phase


class Adaround(Rounding):
    """Rounding alone, layer by layer or block by block."""

    options: AdaroundOptions

    def __init__(self, options: AdaroundOptions) -> None:
        self.options = options

    def phases(self) -> dict[str, Phase]:
        """One walk."""
        o = self.options
        return {"rounding": self.rounding_phase(layerwise=o.unit == "layer", activations=o.activations == "quantized")}
