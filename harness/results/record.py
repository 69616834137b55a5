"""What is kept of a measured cell: the schema of the JSON documents in a results folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    field_validator,
)
from pydantic.dataclasses import dataclass

from harness.api.plugins import Origin, Trains
from harness.identity.cell import Cell
from harness.io.shared import Pairs, Pool

SCHEMA_VERSION = 3  # harness/results/upgrade.py reads the older ones
Status = Literal["ok", "skipped", "failed"]
# Text of others, such as messages of errors, may hold halves of surrogate pairs (of names of files), which JSON cannot.
Told = Annotated[
    str,
    BeforeValidator(lambda text: text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text),
]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # JSON knows integers of any length


# Infinite values (an activation range that nothing bounds) survive JSON as strings.
_CONFIG = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class _Part(BaseModel):
    model_config = ConfigDict(**_CONFIG, frozen=True)


# A record has dozens of some parts, and a report has all records in memory: those parts are dataclasses with slots.
@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Stage:
    """Seconds spent in a stage. If `cached`, some of them were spent in an earlier run whose result was reused."""

    seconds: FiniteFloat
    cached: bool = False


class Failure(_Part):
    """Why a cell failed: exception type, message and traceback (empty when the process died)."""

    type: Told
    message: Told
    traceback: Told = ""

    @property
    def headline(self) -> str:
        """Type and first line of the message."""
        return f"{self.type}: {(self.message.splitlines() or [''])[0]}"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Layer:
    """One quantized weight: parameter name, number of values, bits of each; its format (`harness.api.formats`) and the
    bits of all of its scales, None where the method did not tell.
    """

    name: str
    size: Whole
    bits: Whole
    format: Told | None = None
    scale_bits: Whole | None = None


_Ranges = Annotated[
    Mapping[str, tuple[float, float]],
    AfterValidator(Pairs),
    PlainSerializer(dict, return_type=dict[str, tuple[float, float]]),
]
_layers: Pool[list[Layer]] = Pool(tuple)
_by_site: Pool[dict[str, Any]] = Pool(lambda named: tuple(named.items()))


class Quantization(_Part):
    """What was quantized. `weight_mib` is the size of all parameters, those left in float32 included; `bit_operations`
    are those of one image (BOPs), of the whole network: what is left in float counts 32 bits per factor.

    Mean widths: of weights over parameters and over layers, which differ in mixed precision, and of activations over
    sites (None in records that do not have their widths).
    """

    weight_sites: Whole
    activation_sites: Whole
    weight_mib: FiniteFloat
    float_values: Whole
    layers: Annotated[list[Layer], AfterValidator(_layers)]
    activation_ranges: _Ranges
    activation_bits: Annotated[dict[str, Whole], AfterValidator(_by_site)] = Field(default_factory=dict)
    bit_operations: Whole | None = None
    # Of the sites of which the method told.
    activation_formats: Annotated[dict[str, Told], AfterValidator(_by_site)] = Field(default_factory=dict)
    activation_scale_bits: Annotated[dict[str, Whole], AfterValidator(_by_site)] = Field(default_factory=dict)
    # Of those whose scales are made for every tensor anew, the number of values that the scales above are for.
    activation_scaled_values: Annotated[dict[str, Whole], AfterValidator(_by_site)] = Field(default_factory=dict)
    float_products: Whole | None = None  # elementwise ones of two activations, of which a factor is float

    @property
    def mean_weight_bits(self) -> float:
        """Mean width of the quantized weights, weighted by their number of values."""
        return sum(layer.size * layer.bits for layer in self.layers) / max(1, sum(layer.size for layer in self.layers))

    @property
    def mean_layer_bits(self) -> float:
        """Mean width of the quantized weights over layers."""
        return sum(layer.bits for layer in self.layers) / max(1, len(self.layers))

    @property
    def mean_activation_bits(self) -> float | None:
        """Mean width over activation sites."""
        widths = self.activation_bits.values()
        return sum(widths) / len(widths) if widths else None

    @property
    def effective_weight_bits(self) -> float | None:
        """Bits that a quantized weight takes on average with its share of scales, and of whatever else its format
        keeps; None where the method does not tell for all of them.
        """
        extra = [layer.scale_bits for layer in self.layers]
        if not extra or any(bits is None for bits in extra):
            return None
        return self.mean_weight_bits + sum(filter(None, extra)) / max(1, sum(layer.size for layer in self.layers))

    @property
    def effective_activation_bits(self) -> float | None:
        """The same over activation sites, where scales that all images share cost nothing."""
        mean = self.mean_activation_bits
        if mean is None or self.activation_formats.keys() != self.activation_bits.keys():
            return None
        shares = (self.activation_scale_bits[s] / values for s, values in self.activation_scaled_values.items())
        return mean + sum(shares) / len(self.activation_bits)


class Notice(_Part):
    """A Python warning: category, text, file and line that it points to, and how often it was raised."""

    category: Told
    message: Told
    where: Told
    count: Whole


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Sidecar:
    """What a file beside the record is: SHA-256 of its bytes, and the shape of every array, or column, in it."""

    sha256: str
    shapes: dict[str, tuple[Whole, ...]]


class Provenance(_Part):
    """Where a number was made. `code` and the versions of what is `decisive` say whether it is stale
    (`harness.identity.code`).

    `variables` are those of the environment that can change arithmetic (None in records older than schema 2).
    """

    code: str
    versions: dict[str, str]
    hardware: dict[str, str | Whole | FiniteFloat]
    device: str
    threads: Whole
    git: dict[str, str | bool] | None
    variables: dict[str, str] | None = None
    decisive: list[str] | None = None  # None in records that do not tell


def _as_json(part: BaseModel) -> str:
    return part.model_dump_json()


class ImagesFrom(_Part):
    """What made images that came from the cache: fingerprint and versions of the code, threads, the `processor` by
    device and name, and variables of the environment that choose the order of rounding.
    """

    code: str
    versions: dict[str, str]
    threads: Whole
    processor: dict[str, str]
    variables: dict[str, str]


_places: Pool[Provenance] = Pool(_as_json)
_makers: Pool[ImagesFrom] = Pool(_as_json)


class Record(_Part):
    """The result of one cell.

    `metrics` are in points; `primary_metric` names the one that tables rank by. `counters` holds what the method
    counted (images, steps). `seconds` is the wall time of the whole cell without waiting for images that another cell
    made (`finished` less `started` has that too), `stages` its parts plus stages whose result came from the cache.
    `peak_memory_mib` is the process's (on CUDA: the allocator's) peak while quantizing, `added_memory_mib` the same
    less what was in use before; for the float reference both are those of the evaluation.
    `images_from` is None where the images were made in this run.
    `warnings` are those that Python raised while the cell ran (None in records older than schema 2). `sidecars` has, by
    kind, every file that was saved with the record, and no other file belongs to it (None in records older than schema
    3, of which that is not known, and before a record is saved). `preprocessing` is how images were made ready for the
    model, as its task says; empty if it says nothing. `unverified` says why a method's result could not be
    held against scheme and precision; such a number is shown and never ranked.
    """

    schema_version: int = SCHEMA_VERSION
    key: str
    cell: Cell
    status: Status
    reason: Told | None = None
    failure: Failure | None = None
    primary_metric: str | None = None
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict)
    counters: dict[str, Whole] = Field(default_factory=dict)
    stages: dict[str, Stage] = Field(default_factory=dict)
    diagnostics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    seconds: FiniteFloat = 0.0
    peak_memory_mib: FiniteFloat | None = None
    added_memory_mib: FiniteFloat | None = None
    quantization: Quantization | None = None
    data: Literal["none", "images"] = "none"
    origin: Origin = "baseline"
    trains: Trains = ""
    images_from: Annotated[ImagesFrom, AfterValidator(_makers)] | None = None
    warnings: list[Notice] | None = None
    sidecars: dict[str, Sidecar] | None = None
    preprocessing: dict[str, Any] = Field(default_factory=dict)
    unverified: str | None = None
    provenance: Annotated[Provenance, AfterValidator(_places)]
    started: str
    finished: str

    @field_validator("diagnostics")
    @classmethod
    def _numbers_of_a_float(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Refuse what no diagnostic has, and what reports would stumble over: NaN, infinities, endless integers."""
        left: list[Any] = [value]
        while left:
            found = left.pop()
            left += found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else ()
            if isinstance(found, float) and not math.isfinite(found):
                raise ValueError("a number that is not finite")
            if isinstance(found, int) and abs(found) >= 2**63:
                raise ValueError("an integer of more than 64 bits")
        return value
