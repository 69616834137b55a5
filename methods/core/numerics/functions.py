"""Which activation function a network computes, told by its values, however it is written.

`x * sigmoid(1.702 x)` is one function of x, as `gelu(x)` is. Methods that have a quantizer for what an activation
function gives need to know how far below 0 that goes, whatever images they see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Arguments that functions are compared at; double precision, on the CPU, wherever the network is.
PROBE = torch.linspace(-12.0, 12.0, 97, dtype=torch.float64, device="cpu")
# Constants that networks write out have few digits; the two forms of GELU are 5e-4 apart.
_CLOSE = 1e-5

# Minus the least value, which what precedes an activation function reaches in every network.
GELU_MINIMUM = 0.16997124254703522
_SILU_MINIMUM = 0.2784645427610738


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


# Name -> the function, and how far below 0 it goes. Not here are those that go down without end or to a level that
# they stay at (LeakyReLU, ELU, tanh): their negative values are no shallow dip that a quantizer could be made for.
_KNOWN: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "gelu": (functional.gelu, GELU_MINIMUM),
    "gelu-tanh": (_gelu_tanh, GELU_MINIMUM),  # 7e-5 lower, which is less than a step: one range for both forms
    "quick-gelu": (_quick_gelu, _SILU_MINIMUM / 1.702),
    "silu": (functional.silu, _SILU_MINIMUM),
    "mish": (functional.mish, 0.3088434130172505),
    "hardswish": (functional.hardswish, 0.375),
    "relu": (functional.relu, 0.0),
    "relu6": (functional.relu6, 0.0),
    "sigmoid": (torch.sigmoid, 0.0),
    "hardsigmoid": (functional.hardsigmoid, 0.0),
    "softplus": (functional.softplus, 0.0),
}


@dataclass(frozen=True)
class ActivationFunction:
    """A known activation function times a positive number: `x * relu6(x + 3)` is 6 times Hardswish."""

    name: str
    factor: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Its values."""
        found = _KNOWN[self.name][0](x)
        return found if self.factor == 1.0 else found * self.factor

    @property
    def depth(self) -> float:
        """Minus its least value."""
        return _KNOWN[self.name][1] * self.factor

    def times(self, values: Tensor | None) -> ActivationFunction | None:
        """The function after a step that makes `values` of PROBE; None if that is no positive factor."""
        factor = _factor(values, PROBE)
        return None if factor is None else replace(self, factor=self.factor * factor)


def recognised(values: Tensor | None) -> ActivationFunction | None:
    """The known function with these values at PROBE, if it is one."""
    for name, wanted in _values().items():
        factor = _factor(values, wanted)
        if factor is not None:
            return ActivationFunction(name, factor)
    return None


def replayed(
    func: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any], instead: Mapping[int, Tensor]
) -> Tensor | None:
    """What an elementwise `func` gives for the values `instead` of the tensors with these ids; all others must be
    numbers. None if it cannot be told.
    """

    def given(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in instead:
            return instead[id(value)].clone()  # `func` may work in place
        return value.detach().to("cpu", torch.float64).reshape(())

    try:
        found = func(*map(given, args), **{name: given(value) for name, value in kwargs.items()})
    except (RuntimeError, TypeError, NotImplementedError):  # it wants tensors of other shapes, or ones with values
        return None
    return found if isinstance(found, Tensor) and found.shape == PROBE.shape else None


@cache
def _values() -> dict[str, Tensor]:
    return {name: function(PROBE) for name, (function, _) in _KNOWN.items()}


def _factor(values: Tensor | None, of: Tensor) -> float | None:
    """The positive number that `values` are `of` times; 1 if it is no other number but for rounding."""
    if values is None:
        return None
    factor = float(values[-1] / of[-1])  # all known functions are positive there
    if not 0 < factor < float("inf") or not torch.allclose(values, factor * of, rtol=_CLOSE, atol=_CLOSE * factor):
        return None
    return 1.0 if abs(factor - 1.0) < _CLOSE else factor
