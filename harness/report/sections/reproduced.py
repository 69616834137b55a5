"""A paper's table beside what was measured of it here, with a verdict for every number. Frames in, text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.io import text as safe
from harness.plan.reproduction import Printed, Reproduction, Target
from harness.report import stats, tables
from harness.report.verdicts import marked, unverified_note
from harness.results.recipes import Recipe, Tolerance

# How far a float model's top-1 may be from what a paper prints: timm's own evaluation of the same checkpoints
# (results/results-imagenet.csv of pytorch-image-models) is up to 0.13 away from it (DeiT-B: 81.98, printed 81.85).
FLOAT_TOLERANCE = 0.15
ALPHA = 0.05
VERDICTS = {
    "reproduced": "within the tolerance of the printed number",
    "as others": "not that, but among what others printed for the same, the tolerance included",
    "open": "beyond both, but by less than other seeds (or the images left out) could explain",
    "lower": "below all that",
    "higher": "above all that",
    "other float": f"the float model is more than {FLOAT_TOLERANCE:g} points from the paper's: another checkpoint or "
    "preprocessing, so that nothing follows",
    "not measured": "no seed was measured",
}
_SPREADS = {
    "own": "the paper's own spread",
    "others": "the spread of others who ran the method again",
    "borrowed": "borrowed from another paper, since neither the paper's own spread nor that of others is known",
}
COLUMNS = [
    *("method", "model", "bits", "scheme", "published", "source", "note", "others", "lowest", "highest"),
    *("measured_method", "measured_bits", "weight_bits", "activation_bits", "ours", "ours_sd", "difference", "margin"),
    *("seeds", "planned_seeds", "images", "float_published", "float_ours", "verified", "verdict"),
]


def margin(values: Sequence[float], images: float, expected: int) -> float:
    """Points by which the mean of `values` may be off: half a 95 % interval over seeds and over images left out.

    Args:
        values: Accuracies of the seeds in points. One says nothing of their spread, which then counts as none.
        images: How many images were evaluated.
        expected: How many the paper evaluated; the same number is taken for the same images, so that they add nothing.
    """
    share = float(np.mean(values)) / 100
    of_images = share * (1 - share) / images if images < expected else 0.0
    if len(values) < 2:
        return 100 * 1.96 * math.sqrt(of_images)
    of_seeds = float(np.var(values, ddof=1)) / 1e4 / len(values)
    return 100 * float(stats.margin(of_seeds, of_images, len(values), max(2, int(images)), ALPHA))


def judge(ours: float, printed: float, others: Sequence[float], tolerance: float, margin: float) -> str:
    """Which of `VERDICTS` a mean deserves, float model and missing seeds apart."""
    if abs(ours - printed) <= tolerance:
        return "reproduced"
    low, high = accepted(printed, others, tolerance)
    if low <= ours <= high:
        return "as others"
    if low - margin <= ours <= high + margin:
        return "open"
    return "lower" if ours < low else "higher"


def accepted(printed: float, others: Sequence[float], tolerance: float) -> tuple[float, float]:
    """From where to where a mean agrees with something that was printed."""
    known = (printed, *others)
    return min(known) - tolerance, max(known) + tolerance


def reproduced(reproduction: Reproduction, cells: pd.DataFrame) -> pd.DataFrame:
    """A row for every number of the paper, `COLUMNS`.

    Args:
        reproduction: The plan.
        cells: The frame of `harness.report.frame.cells_frame`, of these and perhaps other cells.
    """
    by_key: dict[str, dict[Any, Any]] = {row["key"]: row for row in cells.to_dict("records")}
    rows = [_row(target, reproduction.recipe, by_key) for target in reproduction.targets]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(target: Target, recipe: Recipe, by_key: Mapping[str, dict[Any, Any]]) -> dict[str, Any]:
    found = [by_key[key] for key in target.keys if key in by_key and by_key[key]["status"] == "ok"]
    printed, others = target.printed.value, [other.value for other in target.others]
    low, high = accepted(printed, others, recipe.tolerance.points)
    row: dict[str, Any] = {
        "method": target.method,
        "model": target.model,
        "bits": target.bits,
        "scheme": target.scheme,
        "published": printed,
        "source": target.printed.source,
        "note": target.note,
        "others": "; ".join(f"{other.value:.2f} ({other.source})" for other in target.others),
        "lowest": low,
        "highest": high,
        "measured_method": target.measured,
        "measured_bits": target.measured_bits,
        "seeds": len(found),
        "planned_seeds": len(target.keys),
        "float_published": target.float_printed.value if target.float_printed else np.nan,
        "verdict": "not measured",
    }
    of_float = by_key.get(target.float_key, {})
    row["float_ours"] = of_float["accuracy"] if of_float.get("status") == "ok" else np.nan
    if not found:
        return row
    values = [float(each["accuracy"]) for each in found]
    images = float(found[0]["images"])
    ours = float(np.mean(values))
    row |= {
        "ours": ours,
        "ours_sd": float(np.std(values, ddof=1)) if len(values) > 1 else np.nan,
        "difference": ours - printed,
        "images": images,
        "margin": margin(values, images, recipe.images),
        "verified": all(bool(each["verified"]) for each in found),
        "weight_bits": _mean(found, "mean_weight_bits"),
        "activation_bits": _mean(found, "mean_activation_bits"),
    }
    row["verdict"] = judge(ours, printed, others, recipe.tolerance.points, row["margin"])
    if _other_float(target.float_printed, row["float_ours"], images, recipe):
        row["verdict"] = "other float"
    return row


def _mean(rows: Sequence[Mapping[Any, Any]], name: str) -> float:
    known = [float(row[name]) for row in rows if pd.notna(row[name])]
    return float(np.mean(known)) if known else np.nan


def _other_float(printed: Printed | None, ours: float, images: float, recipe: Recipe) -> bool:
    if printed is None or math.isnan(ours):
        return False
    return abs(ours - printed.value) > FLOAT_TOLERANCE + margin([ours], images, recipe.images)


def verdicts(frame: pd.DataFrame) -> str:
    """How many numbers have which verdict, in a sentence."""
    counts = [(name, int((frame["verdict"] == name).sum())) for name in VERDICTS]
    told = ", ".join(f"{count} {name}" for name, count in counts if count)
    return f"{len(frame)} {'number' if len(frame) == 1 else 'numbers'}: {told}."


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as strings, by model and precision from the most bits down."""
    most = frame["bits"].map(lambda bits: tables.bit_order(bits, most=True))
    ordered = frame.assign(most=most).sort_values(["model", "most", "method", "source"]).to_dict("records")
    columns: dict[str, list[str]] = {
        "model": [row["model"] for row in ordered],
        "bits": [row["bits"] for row in ordered],
        "method": [row["method"] for row in ordered],
        "published": [tables.number(row["published"], 2) for row in ordered],
        "ours": [_ours(row) for row in ordered],
        "difference": [tables.number(row["difference"], 2, "+") for row in ordered],
        "agrees from … to": [f"{row['lowest']:.2f} … {row['highest']:.2f}" for row in ordered],
        "float, published and ours": [
            f"{tables.number(row['float_published'], 2)}, {tables.number(row['float_ours'], 2)}" for row in ordered
        ],
        "verdict": [row["verdict"] for row in ordered],
    }
    widths = [_widths(row) for row in ordered]
    return pd.DataFrame(columns | ({"mean widths here": widths} if any(widths) else {}))


def _widths(row: Mapping[Any, Any]) -> str:
    """The mean widths that were measured, where the precision is not the published one."""
    if row["bits"] == row["measured_bits"]:
        return ""
    weights, activations = (tables.number(row[f"{what}_bits"], 2) for what in ("weight", "activation"))
    return f"{row['measured_bits']}: W{weights} A{activations}"


def _ours(row: Mapping[Any, Any]) -> str:
    if not row["seeds"] > 0:
        return tables.NONE
    spread = f" ± {row['ours_sd']:.2f}" if row["seeds"] > 1 else ""
    missing = f" [{row['seeds']}/{row['planned_seeds']}]" if row["seeds"] < row["planned_seeds"] else ""
    return marked(f"{row['ours']:.2f}{spread}{missing}", row["verified"])


def markdown(reproduction: Reproduction, frame: pd.DataFrame) -> str:
    """The table with what is behind it, as Markdown."""
    recipe = reproduction.recipe
    shown = tables.markdown(table(frame))
    parts = [f"# Reproduced: {safe.markdown(recipe.paper)}\n", f"{verdicts(frame)}\n", shown, _legend(frame, recipe)]
    parts += [f"## {title}\n\n{_bullets(lines)}" for title, lines in behind(reproduction) if lines]
    rows = frame.to_dict("records")
    methods = dict.fromkeys(f"{row['method']}: {row['measured_method']}" for row in rows)
    parts.append(f"## Methods\n\n{_bullets([*methods])}")
    if printed := _of_cells(rows, "others"):
        parts.append(f"## Printed by others for the same\n\n{_bullets(printed)}")
    told = [*sorted(set(frame["source"])), *_of_cells(rows, "note")]
    parts.append(f"## Sources of the numbers, and their notes\n\n{_bullets(told)}")
    return "\n".join(parts)


def _of_cells(rows: Sequence[Mapping[Any, Any]], name: str) -> list[str]:
    """What a column says, those cells together of which it says the same."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        if row[name]:
            cells.setdefault(row[name], []).append(f"{row['method']} on {row['model']} at {row['bits']}")
    return [f"{', '.join(where)}: {text}" for text, where in cells.items()]


def behind(reproduction: Reproduction) -> list[tuple[str, list[str]]]:
    """Titles and sentences: tolerance, settings, what the paper leaves open, what differs, what is left out."""
    recipe = reproduction.recipe
    return [
        ("Tolerance", [tolerance(recipe.tolerance)]),
        ("Set as the paper has it", [f"{name}: {text}" for name, text in recipe.settings.items()]),
        ("Left open by the paper", [f"{name}: {text}" for name, text in recipe.open.items()]),
        ("Different from the paper", [f"{name}: {text}" for name, text in recipe.differs.items()]),
        ("Left out", list(reproduction.left_out)),
    ]


def tolerance(known: Tolerance) -> str:
    """Size and source of a tolerance."""
    return f"{known.points:g} points, {_SPREADS[known.of]}: {known.source}"


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {safe.markdown(safe.visible(line))}\n" for line in lines)


def _legend(frame: pd.DataFrame, recipe: Recipe) -> str:
    used = [f"*{name}*: {text}" for name, text in VERDICTS.items() if (frame["verdict"] == name).any()]
    lines = [
        "*difference* is ours less the published number, in points; **±** is the standard deviation over seeds.",
        f"A mean *agrees* from {recipe.tolerance.points:g} points below the least to as much above the greatest number "
        "that was printed for the same, here by the paper and others.",
        *used,
    ]
    images = frame.loc[frame["images"] != recipe.images, "images"].dropna()
    if len(images):
        lines.append(
            f"{images.min():,.0f} images were evaluated, where the paper has {recipe.images:,}: what that may move a "
            "mean by counts as the seeds' spread does."
        )
    return "".join(f"- {line}\n" for line in lines) + unverified_note(frame)


def csv(frame: pd.DataFrame) -> str:
    """The frame at full precision."""
    return tables.csv(frame)
