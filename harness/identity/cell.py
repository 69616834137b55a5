"""Identity of one measurement: what is computed, on what, with which options and seed.

Where it is computed (device, threads, versions) can change a number as well. That is not part of the identity; records
say it.
"""

from __future__ import annotations

from functools import cached_property

from pydantic import BaseModel, ConfigDict, JsonValue

from harness.identity.names import plain_name
from harness.io.canonical import canonical_json, digest
from harness.io.text import visible

__all__ = ["FLOAT", "FLOAT_BITS", "FLOAT_SCHEME", "Cell", "canonical_json", "digest"]

FLOAT, FLOAT_BITS, FLOAT_SCHEME = "float", "FP32", "none"  # coordinates of the unquantized reference


# The fields of the first cells. One that was added later is part of a key only where it differs from its default, so
# that the keys of older records stand.
_FIRST_FIELDS = frozenset(
    ("suite", "task", "model", "weights", "data", "limit", "method", "options", "bits", "scheme", "seed")
)


class Cell(BaseModel):
    """One measurement: a method with its resolved options at one precision on one model, one repetition.

    `weights` and `data` are the hashes that the suite gives of the model and of its data; `limit` is the number of
    evaluation images (None: all). `options` is `{"preset": name, "parts": {"kind:plugin": {option: value}}}`, complete
    enough to build the method again. Device, threads and batch size of evaluation are not part of the identity.
    `calibration` is the hash of the images that the method is given; empty if it is given none or `data` covers them.
    `corruption` is what the suite does to evaluation images, in its own words; empty if nothing.

    `method` is for reading: brackets in it say again what `options` say, so that the key leaves them out. Fields that
    were added later have a default and are left out of the key there.
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
    calibration: str = ""
    corruption: str = ""

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of the fields: one computation has one key, however it was asked for."""
        return digest(self._fields() | {"method": plain_name(self.method)})

    @property
    def labelled_key(self) -> str:
        """The key by which versions until 0.1 knew this cell: the method's name counted with its brackets."""
        return digest(self._fields())

    def _fields(self) -> dict[str, JsonValue]:
        fields = self.model_dump(mode="json")
        later = [name for name in fields if name not in _FIRST_FIELDS]
        return {n: v for n, v in fields.items() if n not in later or v != type(self).model_fields[n].get_default()}

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
        on = f" on {self.corruption}" if self.corruption else ""
        if self.is_float:
            return visible(f"{self.model} float{on}")
        return visible(f"{self.model} {self.method} {self.bits} {self.scheme} seed {self.seed}{on}")
