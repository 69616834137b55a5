"""Distances of a unit's outputs from the float model's, on a batch of images.

Outputs and targets are lists of tensors, batch-first; of several, as a detector's heads give, the losses are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

Axis = Callable[[Tensor], int]  # where an output's channels are
FIRST = 2.0  # what APHQ-ViT's losses start at, so that the regularizer weighs the same in every unit
# Differences of outputs from the float model's and gradients of the output loss there, both (n, ...) per image, with
# the unit as it is learned so far.
Measure = Callable[[], tuple[list[Tensor], list[Tensor]]]


class Loss(Protocol):
    """A distance, which may look at the unit again while that is learned."""

    def renew(self, step: int) -> None:
        """Called before every step."""

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], index: Tensor) -> Tensor:
        """A scalar; `index` are the images of the batch."""


def squared_error(outputs: Sequence[Tensor], targets: Sequence[Tensor], axis: Axis) -> Tensor:
    """Σ over channels of (ΔO)², averaged over images and positions."""
    return power_error(outputs, targets, axis, 2.0)


def power_error(outputs: Sequence[Tensor], targets: Sequence[Tensor], axis: Axis, norm: float) -> Tensor:
    """Σ over channels of |ΔO|^norm, averaged over images and positions."""
    return average([(a - b).abs().pow(norm).sum(axis(a)).mean() for a, b in zip(outputs, targets, strict=True)])


def fisher_error(outputs: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[Tensor], axis: Axis) -> Tensor:
    """Σ over channels of (ΔO)² w, averaged over images and positions; w = g² is an image's own (BRECQ, eq. 10)."""
    parts = zip(outputs, targets, weights, strict=True)
    return average([((a - b).square() * w).sum(axis(a)).mean() for a, b, w in parts])


def low_rank_error(difference: Tensor, rows: Tensor, gradients: Tensor, form: str) -> Tensor:
    """Mean over images of a B⁺ aᵀ with a = |ΔO| Gᵀ (FIMA-Q).

    Args:
        difference: |ΔO| of a batch, (n, features).
        rows: D, mean |ΔO| over the images, a row for each refresh, (k, features).
        gradients: G, mean |∂L/∂O| likewise.
        form: B = D Dᵀ (`code`, the released code), or the symmetric part of D Gᵀ (`secant`), with which it would be
            the Fisher matrix's action if g = F ΔO held.
    """
    inner = rows @ (rows if form == "code" else gradients).T
    # Rows differ little between refreshes, so that the matrix is close to singular.
    inverse: Tensor = torch.linalg.pinv((inner + inner.T) / 2, rtol=1e-5, hermitian=True)
    a = difference @ gradients.T
    return ((a @ inverse) * a).sum(1).mean()


def diagonal_error(difference: Tensor, gradients: Tensor) -> Tensor:
    """Mean of |ΔO|² times the gradients' mean over their rows (FIMA-Q)."""
    return (difference.square() * gradients.mean(0)).mean()


def logit_divergence(output: Tensor, reference: Tensor, temperature: float) -> Tensor:
    """KL of softmax(reference / T) and softmax(output / T), averaged over images, of logits (n, classes)."""
    scaled = functional.log_softmax(output / temperature, -1)
    return functional.kl_div(scaled, functional.softmax(reference / temperature, -1), reduction="batchmean")


class PowerError:
    """`power_error`.

    Args:
        axis: see `Axis`.
        norm: the power.
    """

    def __init__(self, axis: Axis, norm: float = 2.0) -> None:
        self._axis = axis
        self._norm = norm

    def renew(self, step: int) -> None:
        """Nothing changes."""

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], index: Tensor) -> Tensor:
        """The error of a batch."""
        return power_error(outputs, targets, self._axis, self._norm)


class Fisher:
    """`fisher_error` with squared gradients, normalised to mean 1 so that the regularizer keeps its weight.

    Args:
        gradients: of the output loss, for all images, (n, ...).
        axis: see `Axis`.
    """

    def __init__(self, gradients: Sequence[Tensor], axis: Axis) -> None:
        self._weights = [normalised(g.square()) for g in gradients]
        self._axis = axis

    def renew(self, step: int) -> None:
        """The weights stay."""

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], index: Tensor) -> Tensor:
        """The error of a batch."""
        return fisher_error(outputs, targets, [w[index] for w in self._weights], self._axis)


class Hessian:
    """Mean of (ΔO)² times the mean over images of |g₊ - g₋|, times what makes its first value `FIRST` (APHQ-ViT).

    Args:
        above: gradients at the float outputs plus the perturbation, all images, (n, ...).
        below: the same minus it.
    """

    def __init__(self, above: Sequence[Tensor], below: Sequence[Tensor]) -> None:
        # The factor of the perturbation is lost in the normalisation.
        self._weights = [(a - b).abs().mean(0) for a, b in zip(above, below, strict=True)]
        self._scaled = Starting(FIRST)

    def renew(self, step: int) -> None:
        """The weights stay."""

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], index: Tensor) -> Tensor:
        """The error of a batch."""
        parts = zip(outputs, targets, self._weights, strict=True)
        return self._scaled(average([((a - b).square() * w).mean() for a, b, w in parts]))


class Divergence:
    """`logit_divergence` at temperature 1, times what makes its first value `first`, or as it is if that is None.

    APHQ-ViT's released code scales it so, to 2, as it does its other losses; FIMA-Q's does not.
    """

    def __init__(self, first: float | None = None) -> None:
        self._scaled = Starting(first) if first else None

    def renew(self, step: int) -> None:
        """Nothing changes."""

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], index: Tensor) -> Tensor:
        """The divergence of a batch."""
        (output,), (target,) = outputs, targets
        value = logit_divergence(output, target, 1.0)
        return self._scaled(value) if self._scaled else value


class LowRank:
    """Low-rank plus diagonal Fisher: `low_rank_error` and `diagonal_error`, both divided by their first value after
    each refresh, when the factors get one more row (FIMA-Q).

    Args:
        measure: see `Measure`.
        every: steps between refreshes.
        form: see `low_rank_error`.
    """

    def __init__(self, measure: Measure, every: int, form: str) -> None:
        self._measure = measure
        self._every = every
        self._form = form
        self._rows: list[Tensor] = []  # for each output (k, features)
        self._gradients: list[Tensor] = []
        self._first: tuple[Tensor, Tensor] | None = None

    def renew(self, step: int) -> None:
        """Measure anew when it is time."""
        if step % self._every:
            return
        differences, gradients = self._measure()
        self._rows = _appended(self._rows, differences)
        self._gradients = _appended(self._gradients, gradients)
        self._first = None

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], index: Tensor) -> Tensor:
        """The error of a batch."""
        differences = [(a - b).abs().flatten(1) for a, b in zip(outputs, targets, strict=True)]
        parts = list(zip(differences, self._rows, self._gradients, strict=True))
        low_rank = average([low_rank_error(d, rows, g, self._form) for d, rows, g in parts])
        diagonal = average([diagonal_error(d, g) for d, _, g in parts])
        if self._first is None:
            self._first = _positive(low_rank), _positive(diagonal)
        return low_rank / self._first[0] + diagonal / self._first[1]


class Starting:
    """Values times what makes the first of them `first`."""

    def __init__(self, first: float) -> None:
        self._first = first
        self._factor: Tensor | None = None

    def __call__(self, value: Tensor) -> Tensor:
        """The scalar `value`, scaled."""
        if self._factor is None:
            self._factor = self._first / _positive(value)
        return value * self._factor


def normalised(x: Tensor) -> Tensor:
    """Divided by its mean; ones if that is 0."""
    mean = x.mean()
    return x / mean if mean > 0 else torch.ones_like(x)


def _appended(rows: list[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    new = [x.abs().mean(0).reshape(1, -1) for x in values]
    return [torch.cat(pair) for pair in zip(rows, new, strict=True)] if rows else new


def _positive(value: Tensor) -> Tensor:
    value = value.detach().abs()
    return torch.where(value > 0, value, torch.ones_like(value))


def average(values: Sequence[Tensor]) -> Tensor:
    """The mean of scalars, one for each output."""
    return torch.stack(list(values)).mean()
