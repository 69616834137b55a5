"""LS-ViT's loss: the output loss as a quadratic form, diagonal plus rank one, fitted by least squares.

One pass per unit gives each image's ΔO, what quantization does to the unit's output, and g, the gradient of the output
loss there. The form is the H that explains them best by g = H ΔO.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.core.reconstruction.losses import FIRST, Measure, Starting, average


def diagonal(differences: Tensor, gradients: Tensor) -> Tensor:
    """The h ≥ 0 with least Σ (g - h ΔO)² over the images, for every feature by itself.

    Negative values, with which a worse output would be a smaller loss, are 0; so are those of features that
    quantization does not change.

    Args:
        differences: ΔO of all images, (n, features).
        gradients: g, likewise.

    Returns:
        h, (features,).
    """
    above, below = (gradients * differences).sum(0), differences.square().sum(0)
    return torch.where(below > 0, above / below, torch.zeros_like(above)).clamp(min=0.0)


def rank_one(differences: Tensor, gradients: Tensor, form: str) -> Tensor:
    """The u of H = u uᵀ, which is Σ g √(ΔOᵀg) / Σ ΔOᵀg over the images if g = H ΔO; up to its sign.

    The formula takes uᵀΔO to be positive for every image, since a square root cannot tell: where g = u (uᵀΔO), images
    of opposite signs cancel. Products ΔOᵀg < 0, which no form has, count as 0.

    Args:
        differences: ΔO of all images, (n, features).
        gradients: g, likewise.
        form: `printed`, the formula as it stands; or `aligned`, each g times the sign of its product with the first
            right singular vector of all.

    Returns:
        u, (features,); zeros if all products are.
    """
    products = (differences * gradients).sum(1).clamp(min=0.0)
    roots = products.sqrt()
    if form == "aligned":
        # Gv is σ times the first left singular vector, which the images' Gram matrix has: no need of v itself.
        first = torch.linalg.eigh((gradients @ gradients.T).double().cpu()).eigenvectors[:, -1]
        roots = roots * torch.where(first < 0, -1.0, 1.0).to(roots)
    total = products.sum()
    return torch.where(total > 0, roots @ gradients / total, torch.zeros_like(gradients[0]))


class LeastSquares:
    """½ Σ h ΔO² + ½ (uᵀΔO)², averaged over a batch, times what makes its first value `FIRST`.

    Args:
        measure: see `Measure`; it is called once, before the first step.
        form: see `rank_one`.
    """

    def __init__(self, measure: Measure, form: str) -> None:
        parts = [(d.flatten(1), g.flatten(1)) for d, g in zip(*measure(), strict=True)]
        self.diagonals = [diagonal(d, g) for d, g in parts]  # for each output (features,), as the next
        self.factors = [rank_one(d, g, form) for d, g in parts]
        self._scaled = Starting(FIRST)

    def renew(self, step: int) -> None:
        """The form stays."""

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], index: Tensor) -> Tensor:
        """The error of a batch."""
        differences = [(a - b).flatten(1) for a, b in zip(outputs, targets, strict=True)]
        parts = zip(differences, self.diagonals, self.factors, strict=True)
        return self._scaled(average([0.5 * (d.square() @ h + (d @ u).square()).mean() for d, h, u in parts]))
