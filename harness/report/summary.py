"""From cells to compared methods: one row a (group, model, method), seeds averaged, tested against the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness import stats
from harness.report.frame import CONTEXT, GROUP, SECONDARY, STAGES, Outcome, Outcomes

Seeds = dict[int, Outcome]  # of a method, by seed
_MEANS = [
    "seconds",
    "peak_memory_mib",
    "added_memory_mib",
    "weight_mib",
    "gbops",
    *SECONDARY,
    "mean_weight_bits",
    "mean_layer_bits",
    "mean_activation_bits",
    "weight_sites",
    "activation_sites",
    *(f"{name}_s" for name in STAGES),
    "total_s",
]


def summarise(cells: pd.DataFrame, outcomes: Outcomes) -> pd.DataFrame:
    """Average the seeds of every method and compare the methods of a group on the same images.

    Per model the *best* is the data-free method of highest mean accuracy among those with the most seeds; real-data
    rows and the float model cannot be it, the noise floor can. Every other method is tested against it over the seeds
    that both have, by `stats.paired_test`, or by `stats.bootstrap_test` where the metric is no share of images;
    `to_best` is the difference. `p_holm` is adjusted over all comparisons of a group, all models together. The best is
    picked on the images that it is tested on, so a p-value near 0.05 flatters it slightly.

    `seeds_wanted` counts the seeds that any method of the group was run with, on that model: a row with fewer `seeds`
    is incomplete. The float reference appears in every group of its model.
    """
    quantized = cells[cells["role"] != "float"]
    floats = cells[cells["role"] == "float"]
    rows: list[dict[str, Any]] = []
    for group, members in quantized.groupby(GROUP, sort=True):
        coordinates = dict(zip(GROUP, group, strict=True))
        compared: list[dict[str, Any]] = []
        for model, of_model in members.groupby("model", sort=True):
            reference = floats[
                (floats["model"] == model) & (floats[CONTEXT] == list(group[: len(CONTEXT)])).all(axis=1)
            ]
            compared += _compare(of_model, reference, outcomes)
        for row, adjusted in zip(compared, stats.holm([row["p_value"] for row in compared]), strict=True):
            rows.append({**row, **coordinates, "p_holm": float(adjusted)})
    return pd.DataFrame(rows, columns=list(_columns()))


def _columns() -> list[str]:
    own = "model method role origin trains status metric per_image images seeds seed_list seeds_wanted accuracy"
    compared = "accuracy_sd delta best to_best p_value p_holm discordance synthesize_cached"
    return [*GROUP, *own.split(), *compared.split(), *_MEANS]


def _compare(cells: pd.DataFrame, reference: pd.DataFrame, outcomes: Outcomes) -> list[dict[str, Any]]:
    """Rows of one model in one group: the float reference, then the methods."""
    wanted = int(cells["seed"].nunique())
    floats = [{**_average(reference), "method": "float", "seeds_wanted": 0}] if len(reference) else []
    methods = [
        {**_average(of_method), "method": method, "seeds_wanted": wanted}
        for method, of_method in cells.groupby("method", sort=True)
    ]
    rows = floats + methods
    top = floats[0]["accuracy"] if floats else np.nan
    for row in rows:
        row["model"] = cells["model"].iloc[0]
        row["delta"] = row["accuracy"] - top
    against_best(rows, by_seed(cells, outcomes))
    return rows


def against_best(rows: Sequence[dict[Any, Any]], right: Mapping[str, Seeds]) -> None:
    """Mark the best data-free row, see `summarise`, and compare the others with it, image by image."""
    candidates = [row for row in rows if row["role"] in ("method", "floor") and row["seeds"]]
    best = max(candidates, key=lambda row: (row["seeds"], row["accuracy"]), default=None)
    for row in rows:
        row["best"] = row is best
        row["p_value"] = row["discordance"] = row["to_best"] = np.nan
        if best is not None and row is not best and row["role"] != "float":
            row.update(paired(right.get(row["method"], {}), right.get(best["method"], {})))


def by_seed(cells: pd.DataFrame, outcomes: Outcomes) -> dict[str, Seeds]:
    """Outcomes of every method, of cells of one model in one group."""
    right: dict[str, Seeds] = {}
    for method, seed, key in cells.loc[cells["status"] == "ok", ["method", "seed", "key"]].itertuples(index=False):
        if key in outcomes:
            right.setdefault(method, {})[seed] = outcomes[key]
    return right


def paired(ours: Seeds, best: Seeds) -> dict[str, float]:
    """Compare with the best, or with another reference, over the seeds that both have; empty if that cannot be."""
    seeds = sorted(ours.keys() & best.keys())
    if not seeds or any(len(ours[seed]) != len(best[seed]) for seed in seeds):
        return {}
    first, second = [ours[seed] for seed in seeds], [best[seed] for seed in seeds]
    a = [outcome for outcome in first if isinstance(outcome, stats.Resampled)]
    b = [outcome for outcome in second if isinstance(outcome, stats.Resampled)]
    if a and b:
        difference, error, p_value = stats.bootstrap_test(a, b)
        # The variance that a single image's difference would have, if the metric were a mean over images.
        return {"p_value": p_value, "discordance": len(a[0]) * (error / 100) ** 2, "to_best": difference}
    right, other = np.stack(first), np.stack(second)  # type: ignore[arg-type]
    return {
        "p_value": stats.paired_test(right, other),
        "discordance": stats.discordance(right, other),
        "to_best": 100 * float(right.mean() - other.mean()),
    }


def _average(cells: pd.DataFrame) -> dict[str, Any]:
    measured = cells[cells["status"] == "ok"]
    statuses = set(cells["status"])
    return {
        "role": cells["role"].iloc[0],
        "origin": cells["origin"].iloc[0],
        "trains": cells["trains"].iloc[0],
        "status": "ok" if len(measured) else "failed" if "failed" in statuses else "skipped",
        "metric": measured["metric"].iloc[0] if len(measured) else None,
        "per_image": bool(measured["per_image"].all()),
        "images": measured["images"].max(),
        "seeds": len(measured),
        "seed_list": ",".join(str(seed) for seed in sorted(measured["seed"])),
        "accuracy": measured["accuracy"].mean(),
        "accuracy_sd": measured["accuracy"].std(ddof=1),
        "synthesize_cached": bool(measured["synthesize_cached"].any()),
        **{name: pd.to_numeric(measured[name]).mean() for name in _MEANS},
    }
