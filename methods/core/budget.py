"""The hard budget of mixed precision: which other layers give up bits, or get them, when one layer changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import floor

from harness.api.contracts import RunContext


class BudgetError(RuntimeError):
    """The narrowest candidate widths exceed the budget."""


@dataclass(frozen=True)
class Budget:
    """Bounds the mean weight width, weighted by the number of values.

    Args:
        sizes: values of every layer.
        mean_bits: the bound, as its shortest decimal says it: 4.1 is 41/10, not the float beside it.
    """

    sizes: Mapping[str, int]
    mean_bits: float

    def used(self, widths: Mapping[str, int]) -> int:
        """Bits of all weights."""
        return sum(self.sizes[name] * bits for name, bits in widths.items())

    @cached_property
    def most(self) -> int:
        """The most bits that all weights may have together."""
        return floor(Fraction(repr(self.mean_bits)) * sum(self.sizes.values()))

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether `widths` are within the budget."""
        return self.used(widths) <= self.most

    def repair(
        self, widths: Mapping[str, int], costs: Mapping[str, Mapping[int, float]], keep: str | None = None
    ) -> dict[str, int] | None:
        """The nearest widths within the budget, found greedily; layer `keep` stays as it is. None if there are none.

        `costs` gives each layer's fitness at each candidate width (lower is better). While the budget is exceeded, the
        layer gives up bits that loses least per freed bit, and goes to whichever lower width is best by that measure
        (a width in between may be worse than both its neighbours); then whatever still fits is spent where it gains
        most per bit.
        """
        now = dict(widths)
        while not self.fits(now):
            steps = [step for step in self._steps(now, costs, keep) if step[2] < now[step[1]]]
            if not steps:
                return None
            _, name, bits = min(steps)
            now[name] = bits
        while True:
            gains = [
                step
                for step in self._steps(now, costs, keep)
                if step[0] < 0.0 and step[2] > now[step[1]] and self.fits({**now, step[1]: step[2]})
            ]
            if not gains:
                return now
            _, name, bits = min(gains)
            now[name] = bits

    def first(
        self,
        widest: Mapping[str, int],
        costs: Mapping[str, Mapping[int, float]],
        candidates: Sequence[int],
        ctx: RunContext,
    ) -> dict[str, int]:
        """The widths that a search begins with: the repair of the widest ones by each layer's sensitivity, `costs`.

        `ctx` is told the sensitivities.

        Raises:
            BudgetError: the narrowest of the `candidates` exceed the budget.
        """
        ctx.diagnostics(
            "sensitivity",
            {
                "widths": list(candidates),
                "layers": {name: [of_layer[bits] for bits in candidates] for name, of_layer in costs.items()},
                "sizes": dict(self.sizes),
            },
        )
        widths = self.repair(widest, costs)
        if widths is None:
            raise BudgetError(
                f"a mean of {self.mean_bits:g} weight bits cannot be met with candidate widths from "
                f"{candidates[0]} bits; allow narrower ones (option widths)"
            )
        return widths

    def _steps(
        self, widths: Mapping[str, int], costs: Mapping[str, Mapping[int, float]], keep: str | None
    ) -> list[tuple[float, str, int]]:
        """(fitness change per bit of the whole layer moved, layer, width) of every single change."""
        return [
            ((cost - costs[name][bits]) / (abs(other - bits) * self.sizes[name]), name, other)
            for name, bits in widths.items()
            if name != keep
            for other, cost in costs[name].items()
            if other != bits
        ]
