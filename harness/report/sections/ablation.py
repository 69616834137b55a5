"""What every switch of a method is worth: its variants in brackets against the method itself. Frames in, text out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from harness.io import text as safe
from harness.io.canonical import canonical_json
from harness.report import notes as noted
from harness.report import tables, verdicts
from harness.report.frame import GROUP, Outcomes, parts_of
from harness.report.summary import UNPAIRED, adjusted, by_seed, paired

Labels = Mapping[str, Mapping[str, str]]  # base -> its variants in the order of the table -> label; as cells name them

COLUMNS = [
    *("base", *GROUP, "model", "variant", "switch", "status", "metric", "images", "seeds", "seed_list"),
    *("verified", "accuracy", "accuracy_sd", "delta", "seed_error", "image_error", "common_seeds", "p_value", "p_holm"),
    "total_s",
]
_SHOWN: Mapping[str, tables.Shown] = {
    "": tables.accuracy,
    "Δ": lambda row: tables.number(row["delta"], 2, "+") if row["place"] else "",
    "vs base": lambda row: verdicts.verdict(row) if row["place"] else "",
    "total s": lambda row: tables.number(row["total_s"], 1),
}
_COMPARED = f"""\
- **Δ** is the difference to the base in points, all other options being equal. **vs base**
{verdicts.NOTE}\
- *total s* is the mean time of quantizing; neither loading nor evaluating.
"""


def families(cells: pd.DataFrame, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Every base with its variants, all as the frame calls them.

    A variant's base has no brackets and, apart from what the variant's brackets say, the same options; so two presets
    in one folder are two families.

    Args:
        cells: The frame of cells.
        names: Name of the method in the cell, by key: that of the frame may have a suffix.
    """
    first = cells[cells["role"] != "float"].drop_duplicates("method")
    known = [(m, parts_of(names[k]), json.loads(o)) for m, k, o in first[["method", "key", "options"]].to_numpy()]
    bases = [(method, options) for method, parts, options in known if not any(part.changes for part in parts)]
    found: dict[str, list[str]] = {}
    for method, parts, options in known:
        changed = {(part.name, option) for part in parts for option in part.changes}
        rest = _without(options, changed)
        for base, base_options in bases:
            if changed and _without(base_options, changed) == rest:
                found.setdefault(base, []).append(method)
    return found


def is_ablation(cells: pd.DataFrame, names: Mapping[str, str]) -> bool:
    """Whether all that was quantized is one base and its variants."""
    return [{base, *variants} for base, variants in families(cells, names).items()] == [
        set(cells.loc[cells["role"] != "float", "method"])
    ]


def _without(options: Mapping[str, Any], changed: set[tuple[str, str]]) -> str:
    parts = {
        plugin: {name: value for name, value in own.items() if (plugin.partition(":")[2], name) not in changed}
        for plugin, own in options.get("parts", {}).items()
    }
    return canonical_json({**options, "parts": parts})


def ablations(
    cells: pd.DataFrame, summary: pd.DataFrame, outcomes: Outcomes, names: Mapping[str, str], labels: Labels
) -> pd.DataFrame:
    """One row per base or variant, model and group that has both; in the order of the tables.

    `delta` is the difference to the base, `p_holm` is adjusted over a group's comparisons, all models together.
    """
    right = {place: by_seed(own, outcomes) for place, own in cells.groupby([*GROUP, "model"])}
    name_of = {method: names[key] for method, key in cells[["method", "key"]].to_numpy()}
    rows: list[dict[Any, Any]] = []
    for base, variants in sorted(families(cells, names).items()):
        known = labels.get(name_of[base], {})
        place = {variant: number for number, variant in enumerate(known)}
        order = [base, *sorted(variants, key=lambda v: (place.get(name_of[v], len(place)), v))]
        family = summary[summary["method"].isin(order)]
        family = family.assign(place=family["method"].map(order.index), variant=family["method"].map(name_of))
        for group, members in family.sort_values(["place", "model"]).groupby(GROUP, sort=True):
            bases = members[members["place"] == 0].set_index("model")
            of_base, trusted = bases["accuracy"], bases["verified"]
            if len(of_base) in (0, len(members)):
                continue
            compared: list[dict[Any, Any]] = []
            for row in members.to_dict("records"):
                own = right[*group, row["model"]]
                row |= {"base": base, "switch": known.get(row["variant"]) or _brackets(row["variant"])}
                row |= {"delta": row["accuracy"] - of_base.get(row["model"], np.nan)}
                comparable = row["place"] and row["verified"] and trusted.get(row["model"], False)
                found = paired(own.get(row["method"], {}), own.get(base, {})) if comparable else {}
                compared.append({**row, **UNPAIRED, **found})
            rows += [{**row, "p_holm": p} for row, p in zip(compared, adjusted(compared), strict=True)]
    more = ("method", "role", "origin", "trains", "place", "to_best", "chosen", "seeds_wanted")
    return pd.DataFrame(rows, columns=[*COLUMNS, *more])


def _brackets(name: str) -> str:
    """What stands in the brackets; in a cross with the plugin's name before it."""
    parts = parts_of(name)
    if len(parts) == 1:
        return parts[0].brackets
    return ", ".join(f"{part.name}: {part.brackets}" for part in parts if part.changes)


def split(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Title, rows and table of strings of every group and base."""
    found = []
    for title, group in tables.groups(frame):
        for base, rows in group.groupby("base", sort=True):
            shown = rows["switch"].where(rows["place"] > 0, tables.method_labels(rows) + " (base)")
            labels = dict(zip(rows["method"], shown, strict=True))
            table = tables.by_model(rows, labels, _SHOWN, "switch")
            found.append((f"{base} at {title}{tables.metric(rows)}", rows, table))
    return found


def markdown(frame: pd.DataFrame, cells: pd.DataFrame) -> str:
    """A table per scheme and precision: every switch's accuracy, difference to the base, significance and time."""
    parts = ["# Ablation\n"]
    for title, rows, table in split(frame):
        parts += [
            f"## {safe.markdown(title)}\n",
            *map(tables.markdown, tables.fitting(table)),
            verdicts.sensitivity(rows),
        ]
    return "\n".join([*parts, notes(frame), *tables.unmeasured(cells)])


def notes(frame: pd.DataFrame) -> str:
    """What is explained below the tables."""
    return _COMPARED + noted.spread(frame) + noted.marks(frame)


def latex(frame: pd.DataFrame) -> str:
    """The same tables for a paper."""
    return "\n".join(tables.latex_models(title, table) for title, _, table in split(frame))


def csv(frame: pd.DataFrame) -> str:
    """The same at full precision, with unadjusted p-values."""
    return tables.csv(frame[COLUMNS])
