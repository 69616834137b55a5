"""LS-ViT as QDrop's walk with its own loss."""

from __future__ import annotations

from dataclasses import replace

from methods.calibrators.lsvit.info import LsvitOptions
from methods.core.reconstruction.calibrator import Joint
from methods.core.reconstruction.engine import LossChoice


class Lsvit(Joint):
    """The joint walk; the loss has one more option than the others have."""

    options: LsvitOptions

    def __init__(self, options: LsvitOptions) -> None:
        super().__init__(options)

    def loss(self) -> LossChoice:
        """Least squares, its rank-one part in the form that the options name."""
        return replace(super().loss(), rank_one=self.options.rank_one)
