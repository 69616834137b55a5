"""Numbers that users write."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, model_validator


class Numbered(BaseModel):
    """A model whose numbers are not `true` or `false`, which Python would take for 1 and 0."""

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            kinds = set() if field is None else _kinds(field.annotation)
            if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
                raise ValueError(f"{name} is a number, not {str(value).lower()}")
        return data


def _kinds(annotation: Any) -> set[Any]:
    """The plain types in an annotation."""
    parts = get_args(annotation)
    return {kind for part in parts for kind in _kinds(part)} if parts else {annotation}
