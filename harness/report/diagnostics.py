"""The diagnostics that figures are made of. Those of another form, or under another name, have no figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from harness.results.record import Record


class _Cycles(BaseModel, strict=True):
    fitness: list[FiniteFloat] = Field(default_factory=list)
    diversity: list[FiniteFloat] = Field(default_factory=list)


class _Search(BaseModel, strict=True):
    cycles: _Cycles = Field(default_factory=_Cycles)
    refreshes: list[int] = Field(default_factory=list)


class _Sensitivity(BaseModel, strict=True):
    widths: list[int] = Field(min_length=1)
    layers: dict[str, list[FiniteFloat]]
    sizes: dict[str, FiniteFloat] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_fitness_per_width(self) -> _Sensitivity:
        if any(len(fitness) != len(self.widths) for fitness in self.layers.values()):
            raise ValueError("a layer has not one fitness per width")
        return self


_FORMS: Mapping[str, type[BaseModel]] = {"search": _Search, "sensitivity": _Sensitivity}


def diagnostic(record: Record, name: str) -> Mapping[str, Any]:
    """A diagnostic as `results/schema.md` describes it; empty if the record has none of that form."""
    found = record.diagnostics.get(name, {})
    try:
        _FORMS[name].model_validate(found)
    except ValidationError:
        return {}
    return found


def odd(record: Record) -> Iterator[str]:
    """Names of diagnostics that the record has in another form than figures need."""
    return (name for name in _FORMS if record.diagnostics.get(name) and not diagnostic(record, name))
