"""Greedy widths: one layer after another is lowered, the one that costs least per bit that it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from methods.core.budget import Budget, BudgetError

_PER_BIT = 4.0  # a bit less is twice the step, and four times the squared error


@dataclass(frozen=True)
class Step:
    """Lowering a layer from one width to the next lower one: what it adds to the loss, as last known.

    `at`: how many layers had been lowered when that was measured; None if it was not but estimated.
    """

    name: str
    before: int
    bits: int
    rise: float
    at: int | None


@dataclass
class Greedy:
    """The search.

    Args:
        budget: what bounds the widths.
        widths: candidates, ascending.
        loss: of the model with these widths.
        refresh_all: measure every layer anew before each step, instead of the cheapest until one stays so.
        evaluations: most measurements beyond one for each layer and the model as it starts; None for any number.
    """

    budget: Budget
    widths: Sequence[int]
    loss: Callable[[Mapping[str, int]], float]
    refresh_all: bool = False
    evaluations: int | None = None

    def __post_init__(self) -> None:
        self.measured = 0
        self.taken: list[Step] = []

    def run(self) -> dict[str, int]:
        """Widths within the budget.

        Raises:
            BudgetError: the narrowest candidates exceed it.
        """
        names = list(self.budget.sizes)
        if not self.budget.fits(dict.fromkeys(names, self.widths[0])):
            raise BudgetError(
                f"a mean of {self.budget.mean_bits:g} weight bits cannot be met with candidate widths from "
                f"{self.widths[0]} bits; allow narrower ones (option widths)"
            )
        self._now = dict.fromkeys(names, self.widths[-1])
        if self.budget.fits(self._now):
            return self._now
        self._value = self._measure(self._now)
        steps = {}
        for name in names:
            bits = self.widths[-2]
            steps[name] = self._measured(Step(name, self.widths[-1], bits, 0.0, None))
        self._first = self.measured
        while not self.budget.fits(self._now):
            step = self._cheapest(steps)
            self._now[step.name] = step.bits
            self._value += step.rise
            self.taken.append(step)
            del steps[step.name]
            place = self.widths.index(step.bits)
            if place:
                rise = _PER_BIT * max(step.rise, 0.0)
                steps[step.name] = Step(step.name, step.bits, self.widths[place - 1], rise, None)
        return self._spent()

    def _cheapest(self, steps: dict[str, Step]) -> Step:
        """The step to take next; `steps` has what was measured meanwhile."""
        if self.refresh_all:
            for name, step in steps.items():
                steps[name] = self._renewed(step)
        while True:
            best = min(steps.values(), key=lambda step: (self._price(step), step.name))
            renewed = self._renewed(best)
            if renewed is best:  # it is up to date, or no measurement is left
                return best
            steps[best.name] = renewed

    def _price(self, step: Step) -> float:
        return step.rise / (self.budget.sizes[step.name] * (step.before - step.bits))

    def _renewed(self, step: Step) -> Step:
        left = self.evaluations is None or self.measured - self._first < self.evaluations
        return self._measured(step) if left and step.at != len(self.taken) else step

    def _measured(self, step: Step) -> Step:
        rise = self._measure({**self._now, step.name: step.bits}) - self._value
        return Step(step.name, step.before, step.bits, rise, len(self.taken))

    def _measure(self, widths: Mapping[str, int]) -> float:
        self.measured += 1
        return self.loss(widths)

    def _spent(self) -> dict[str, int]:
        """Bits that the last step saved beyond the budget go back where they are worth most."""
        last = {step.name: step for step in self.taken}  # later steps of a layer replace earlier ones
        for step in sorted(last.values(), key=lambda step: (-self._price(step), step.name)):
            raised = {**self._now, step.name: step.before}
            if step.rise > 0 and self.budget.fits(raised):
                self._now = raised
        return self._now
