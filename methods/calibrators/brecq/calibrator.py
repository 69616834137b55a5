"""BRECQ as two phases of the reconstruction engine."""

from __future__ import annotations

from methods.calibrators.brecq.info import BrecqOptions
from methods.core.reconstruction.calibrator import Rounding, loss_choice
from methods.core.reconstruction.engine import LossChoice, Phase


class Brecq(Rounding):
    """Rounding with activations in float, then activation scales with the rounded weights."""

    options: BrecqOptions

    def __init__(self, options: BrecqOptions) -> None:
        self.options = options

    def phases(self) -> dict[str, Phase]:
        """Two walks, or one if scales are not learned."""
        o = self.options
        phases = {"rounding": self.rounding_phase(activations=False, loss=loss_choice(o))}
        if o.scale_steps:
            phases["scales"] = Phase(
                steps=o.scale_steps,
                batch=o.batch,
                inputs=o.scale_inputs,
                weights=None,
                loss=LossChoice(norm=o.scale_norm),
                scale_lr=o.scale_lr,
                relative=o.scale_units == "relative",
            )
        return phases
