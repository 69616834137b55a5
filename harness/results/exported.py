"""What is known of an exported cell: the schema of `export.json`, and where a results folder keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from harness.api.errors import UsageError
from harness.identity.cell import Cell
from harness.io.files import is_folder, names_in, read_regular, reason

FOLDER = "exported"  # in a results folder
Verdict = Literal["same", "close", "wrong"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(_Part):
    """How two models' outputs differ over the evaluation images: share of equal predictions in points (None of outputs
    that are no classes), and of single values the mean, the root of the mean square, and the largest difference.
    """

    same: FiniteFloat | None
    mean: FiniteFloat
    rms: FiniteFloat
    largest: FiniteFloat


class Computed(_Part):
    """One layer or matrix product: its multiply-accumulates for one image, whether both factors are codes (if not, why)
    and what computes it in the runtime's own graph, with integers or not. Empty where the runtime gives no account.
    """

    operation: str
    macs: int
    codes: bool
    why: str = ""
    kernel: str = ""
    integer: bool = False


class Timing(_Part):
    """Milliseconds for a batch: medians of wall time, and of the process's CPU time, in turns with the float model."""

    batch: int
    threads: int
    float_ms: FiniteFloat
    exported_ms: FiniteFloat
    float_cpu_ms: FiniteFloat
    exported_cpu_ms: FiniteFloat
    busy: bool  # other programs had the processor meanwhile, so that wall times mean little


class InRuntime(_Part):
    """What one runtime makes of the file. Metrics are in points; `relative` is the difference to the fake-quantized
    model (root mean square) by that which quantization itself makes.
    """

    runtime: str
    version: str
    supported: bool
    metrics: dict[str, FiniteFloat]
    float_metrics: dict[str, FiniteFloat]
    to_fake: Difference
    relative: FiniteFloat
    verdict: Verdict
    computed: list[Computed]
    timings: list[Timing] = Field(default_factory=list)
    peak_mib: FiniteFloat | None = None
    float_peak_mib: FiniteFloat | None = None

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates that integer kernels compute, in points."""
        total = sum(each.macs for each in self.computed)
        return 100.0 * sum(each.macs for each in self.computed if each.integer) / max(1, total)


class Competitor(_Part):
    """What others make of the same float model: its size, accuracy and milliseconds for one image with one thread."""

    name: str
    size: int | None
    metrics: dict[str, FiniteFloat]
    cpu_ms: FiniteFloat | None
    ms: FiniteFloat | None


class Exported(_Part):
    """All that is known of an exported cell. `files` are sizes in bytes; `metrics` are those of the fake-quantized
    model, `quantization` is how that differs from the float model.
    """

    schema_version: int = 1
    key: str
    cell: Cell
    primary_metric: str
    images: int
    metrics: dict[str, FiniteFloat]
    float_metrics: dict[str, FiniteFloat]
    quantization: Difference
    files: dict[str, int]
    runtimes: list[InRuntime]
    competitors: list[Competitor] = Field(default_factory=list)
    processor: dict[str, str]
    features: list[str]  # of the processor, those that integer arithmetic takes
    code: str
    versions: dict[str, str]
    made: str
    folder: str = ""
    not_kept: str | None = None  # why there is no model.safetensors
    at_once: int | None = None  # how many images model.onnx takes at a time, None if any number


def read_exported(folder: Path) -> tuple[list[Exported], dict[Path, str]]:
    """What a results folder keeps of exported cells, by key, and what is wrong with files that cannot be used."""
    place = folder / FOLDER
    found: list[Exported] = []
    problems: dict[Path, str] = {}
    if not is_folder(place):
        return found, problems
    for name in sorted(each for each in names_in(place) if each.endswith(".json")):
        try:
            exported = Exported.model_validate_json(read_regular(place / name))
            if f"{exported.key}.json" == name:
                found.append(exported)
            else:
                problems[place / name] = "does not hold the cell that its name says"
        except OSError as error:
            problems[place / name] = f"cannot be read ({reason(error)})"
        except ValidationError as error:
            problems[place / name] = f"is no export ({error.errors()[0]['msg']})"
    return found, problems


def keep_exported(exported: Exported, path: Path) -> None:
    """Write one as a file.

    Raises:
        UsageError: it cannot be written.
    """
    from harness.io.files import write_atomically

    text = exported.model_dump_json(indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write {path} ({reason(error)}); make room there, or choose another folder") from None
