"""Exported cells: what was measured with fake quantization against what the file gives in a runtime. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from harness.io.text import visible
from harness.report.tables import markdown, number
from harness.results.exported import Exported, InRuntime, Timing

COLUMNS = (
    *("key", "suite", "model", "method", "bits", "scheme", "seed", "metric", "images", "runtime", "float", "fake"),
    *("real", "same", "relative", "verdict", "integer", "bytes", "float_bytes", "ms", "float_ms", "cpu_ms"),
    *("float_cpu_ms", "busy", "peak_mib", "float_peak_mib"),
)
NOTES = (
    "- *fake*: the fake-quantized model, as in all other tables; *file*: the exported file in that runtime, on the same"
    " images. *Same*: share of images on which both predict the same class. *Relative*: the difference of their outputs"
    " by that which quantization itself makes (roots of mean squares).\n"
    "- *Integer*: share of multiply-accumulates that the runtime's own graph computes with integer kernels. *Smaller*"
    " and *faster* are against the float32 file in the same runtime, one image and one thread; *faster* is in CPU time."
    " Small models are dominated by overhead: their speed says little.\n"
    "- *wrong*: the runtime does not compute the quantized model; do not use the file with it."
)


def exported_frame(found: Iterable[Exported]) -> pd.DataFrame:
    """A row for each exported cell and runtime."""
    rows = [_row(exported, one) for exported in found for one in exported.runtimes]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(exported: Exported, one: InRuntime) -> dict[str, object]:
    cell, metric = exported.cell, exported.primary_metric
    first = next((each for each in one.timings if (each.batch, each.threads) == (1, 1)), None)
    return {
        "key": exported.key,
        **{name: visible(getattr(cell, name)) for name in ("suite", "model", "method", "bits", "scheme")},
        "seed": cell.seed,
        "metric": metric,
        "images": exported.images,
        "runtime": f"{one.runtime} {one.version.partition('-')[0]}",
        "float": one.float_metrics.get(metric),
        "fake": exported.metrics.get(metric),
        "real": one.metrics.get(metric),
        "same": one.to_fake.same,
        "relative": one.relative,
        "verdict": one.verdict,
        "integer": one.integer_share,
        "bytes": exported.files.get("model.onnx"),
        "float_bytes": exported.files.get("float.onnx"),
        **_times(first),
        "peak_mib": one.peak_mib,
        "float_peak_mib": one.float_peak_mib,
    }


def _times(timing: Timing | None) -> dict[str, object]:
    if timing is None:
        return dict.fromkeys(("ms", "float_ms", "cpu_ms", "float_cpu_ms", "busy"))
    return {
        "ms": timing.exported_ms,
        "float_ms": timing.float_ms,
        "cpu_ms": timing.exported_cpu_ms,
        "float_cpu_ms": timing.float_cpu_ms,
        "busy": timing.busy,
    }


def exported_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as it is shown: strings, by model, scheme and precision."""
    rows = frame.sort_values(["suite", "model", "scheme", "bits", "method", "seed", "runtime"])
    shown = {
        "model": rows["model"],
        "method": rows["method"],
        "bits": rows["bits"],
        "scheme": rows["scheme"],
        "runtime": rows["runtime"],
        "float": rows["float"].map(lambda value: number(value, 2)),
        "fake": rows["fake"].map(lambda value: number(value, 2)),
        "file": rows["real"].map(lambda value: number(value, 2)),
        "same": rows["same"].map(lambda value: number(value, 2)),
        "relative": rows["relative"].map(lambda value: number(value, 3)),
        "integer": rows["integer"].map(lambda value: number(value, 1)),
        "smaller": (rows["float_bytes"] / rows["bytes"]).map(lambda value: number(value, 2)),
        "faster": (rows["float_cpu_ms"] / rows["cpu_ms"]).map(lambda value: number(value, 2)),
        "verdict": rows["verdict"],
    }
    return pd.DataFrame({name: list(column) for name, column in shown.items()}).astype(str).set_index("model")


def exported_markdown(frame: pd.DataFrame) -> str:
    """The table with how to read it."""
    metrics = ", ".join(sorted(frame["metric"].unique()))
    table = markdown(exported_table(frame).reset_index())
    return f"# Fake against real: exported models ({metrics})\n\n{table}\n{NOTES}\n"
