"""Identity of one measurement. Everything that can change the number is in a cell; nothing that cannot is."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

FLOAT, FLOAT_BITS, FLOAT_SCHEME = "float", "FP32", "none"  # coordinates of the unquantized reference


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class Cell(BaseModel):
    """One measurement: a method with its resolved options at one precision on one model, one repetition.

    `weights` and `data` are the hashes that the suite gives of the model and of its data; `limit` is the number of
    evaluation images (None: all). `options` is `{"preset": name, "parts": {"kind:plugin": {option: value}}}`, complete
    enough to build the method again. Device, threads and batch size of evaluation are not part of the identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    task: str
    model: str
    weights: str
    data: str
    limit: int | None
    method: str
    options: dict[str, JsonValue]
    bits: str
    scheme: str
    seed: int

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of all fields."""
        return digest(self.model_dump(mode="json"))

    @property
    def is_float(self) -> bool:
        """Whether this is the unquantized reference."""
        return self.method == FLOAT

    @property
    def preset(self) -> str:
        """Name of the option preset; empty for the float reference, which has no options."""
        return str(self.options.get("preset", ""))

    @property
    def label(self) -> str:
        """Short text for progress lines."""
        if self.is_float:
            return f"{self.model} float"
        return f"{self.model} {self.method} {self.bits} {self.scheme} seed {self.seed}"
