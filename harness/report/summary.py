"""From cells to compared methods: one row a (group, model, method), seeds averaged, tested against the best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.catalog.metrics import secondary
from harness.report import stats
from harness.report.frame import CONTEXT, GROUP, STAGES, Outcome, Outcomes
from harness.report.verdicts import unverified

Seeds = Mapping[int, Outcome]  # of a method, by seed
# What `paired` finds, and among how many the reference was `chosen`; NaN and 0 where nothing was compared.
COMPARED = ["to_best", "seed_error", "image_error", "common_seeds", "p_value", "chosen"]
UNPAIRED = {**dict.fromkeys(COMPARED, np.nan), "common_seeds": 0, "chosen": 0}
_MEANS = [
    "seconds",
    "peak_memory_mib",
    "added_memory_mib",
    "weight_mib",
    "gbops",
    "mean_weight_bits",
    "mean_layer_bits",
    "mean_activation_bits",
    "effective_weight_bits",
    "effective_activation_bits",
    "weight_sites",
    "activation_sites",
    *(f"{name}_s" for name in STAGES),
    "total_s",
]


def _averaged() -> list[str]:
    """Columns of which a method's row has the mean over seeds."""
    place = _MEANS.index("mean_weight_bits")
    return [*_MEANS[:place], *secondary(), *_MEANS[place:]]


def summarise(cells: pd.DataFrame, outcomes: Outcomes) -> pd.DataFrame:
    """Average the seeds of every method and compare the methods of a group on the same images.

    Per model the *best* is the data-free method of highest mean accuracy among those with the most seeds; real-data
    rows, the float model and what could not be verified cannot be it, the noise floor can. Every other verified method
    is compared with it by `paired`; `p_holm` is what `adjusted` makes of the p-values of a group, all models together.

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
        rows += [{**row, **coordinates, "p_holm": p} for row, p in zip(compared, adjusted(compared), strict=True)]
    return pd.DataFrame(rows, columns=list(_columns()))


def _columns() -> list[str]:
    own = "model method role origin trains status verified metric per_image images seeds seed_list seeds_wanted"
    means = "accuracy accuracy_sd delta best"
    return [*GROUP, *own.split(), *means.split(), *COMPARED, "p_holm", "synthesize_cached", *_averaged()]


def _compare(cells: pd.DataFrame, reference: pd.DataFrame, outcomes: Outcomes) -> list[dict[str, Any]]:
    """Rows of one model in one group: the float reference, then the methods."""
    wanted = int(cells["seed"].nunique())
    floats = [{**average, "method": "float", "seeds_wanted": 0} for average in _averages(reference, "model").values()]
    methods = [
        {**average, "method": method, "seeds_wanted": wanted} for method, average in _averages(cells, "method").items()
    ]
    rows = floats + methods
    top = floats[0]["accuracy"] if floats else np.nan
    for row in rows:
        row["model"] = cells["model"].iloc[0]
        row["delta"] = row["accuracy"] - top
    against_best(rows, by_seed(cells, outcomes))
    return rows


def against_best(rows: Sequence[dict[Any, Any]], right: Mapping[str, Seeds]) -> None:
    """Mark the best data-free row, see `summarise`, and compare the other verified ones with it, image by image."""
    candidates = [row for row in rows if row["role"] in ("method", "floor") and row["seeds"] and row["verified"]]
    best = max(candidates, key=lambda row: (row["seeds"], row["accuracy"]), default=None)
    for row in rows:
        row.update({"best": row is best, **UNPAIRED})
        if best is not None and row is not best and row["role"] != "float" and row["verified"]:
            row.update(paired(right.get(row["method"], {}), right.get(best["method"], {})))
    count_chosen(rows)


def count_chosen(rows: Iterable[dict[Any, Any]]) -> None:
    """Say in the rows that are compared with the best among how many it was chosen: they and itself."""
    tested = [row for row in rows if row["common_seeds"]]
    for row in tested:
        row["chosen"] = len(tested) + 1


def adjusted(rows: Sequence[Mapping[Any, Any]]) -> list[float]:
    """The p-values of all comparisons of a table, adjusted for the choice of what they are with, and by Holm."""
    raw = [float(stats.chosen(row["p_value"], row["chosen"])) for row in rows]
    return [float(p) for p in stats.holm(raw)]


class _Seeds(Seeds):
    """Looks outcomes up when they are asked for."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.keys_of: dict[int, str] = {}  # seed -> key of the cell
        self._outcomes = outcomes

    def __getitem__(self, seed: int) -> Outcome:
        return self._outcomes[self.keys_of[seed]]

    def __iter__(self) -> Iterator[int]:
        return iter(self.keys_of)

    def __len__(self) -> int:
        return len(self.keys_of)


def by_seed(cells: pd.DataFrame, outcomes: Outcomes) -> dict[str, Seeds]:
    """Outcomes of every method, of cells of one model in one group."""
    right: dict[str, _Seeds] = {}
    measured = cells[cells["status"] == "ok"]
    for method, seed, key in zip(measured["method"], measured["seed"], measured["key"], strict=True):
        if key in outcomes:
            right.setdefault(method, _Seeds(outcomes)).keys_of[seed] = key
    return dict(right)


def paired(ours: Seeds, best: Seeds) -> dict[str, Any]:
    """Compare with the best, or with another reference, over the seeds that both have; empty if that cannot be.

    `to_best` is the difference, `seed_error` and `image_error` its standard errors in points: of a `stats.Comparison`.
    With one seed in common there is a difference and no p-value, since another seed could reverse it.
    """
    seeds = sorted(ours.keys() & best.keys())
    first, second = [ours[seed] for seed in seeds], [best[seed] for seed in seeds]
    if not seeds or any(len(a) != len(b) for a, b in zip(first, second, strict=True)):
        return {}
    a = [outcome for outcome in first if isinstance(outcome, stats.Resampled)]
    b = [outcome for outcome in second if isinstance(outcome, stats.Resampled)]
    resampled = bool(a and b)
    return compared(
        stats.compare_resampled(a, b) if resampled else stats.compare_outcomes(np.stack(first), np.stack(second))  # type: ignore[arg-type]
    )


def compared(found: stats.Comparison) -> dict[str, Any]:
    """A comparison as the columns of a frame have it."""
    return {
        "to_best": found.difference,
        "seed_error": found.seed_error,
        "image_error": found.image_error,
        "common_seeds": found.seeds,
        "p_value": found.p_value,
    }


def _averages(cells: pd.DataFrame, by: str) -> dict[str, dict[str, Any]]:
    """What the cells of every method, or whatever else is in column `by`, have in common or on average, by its name."""
    names = ["accuracy", *_averaged()]
    # Frames take a tenth of a millisecond for each small thing that is asked of them, and there are many methods.
    numbers = np.array([pd.to_numeric(cells[name]).to_numpy(np.float64) for name in names])
    texts = {name: cells[name].to_numpy() for name in ("role", "origin", "trains", "status", "metric")}
    trusted, per_image = ~unverified(cells).to_numpy(), cells["per_image"].to_numpy(dtype=bool)
    seeds, cached = cells["seed"].to_numpy(), cells["synthesize_cached"].to_numpy(dtype=bool)
    found = {}
    for name, rows in sorted(cells.groupby(by).indices.items()):
        first, statuses = rows[0], set(texts["status"][rows])
        measured = rows[texts["status"][rows] == "ok"]
        means, deviations = _mean_and_deviation(np.take(numbers, measured, axis=1))
        found[str(name)] = {
            "role": texts["role"][first],
            "origin": texts["origin"][first],
            "trains": texts["trains"][first],
            "status": "ok" if len(measured) else "failed" if "failed" in statuses else "skipped",
            "verified": bool(trusted[measured].all()),
            "metric": texts["metric"][measured[0]] if len(measured) else None,
            "per_image": bool(per_image[measured].all()),
            "images": cells["images"].iloc[measured].max(),
            "seeds": len(measured),
            "seed_list": ",".join(str(seed) for seed in sorted(seeds[measured])),
            "accuracy": means[0],
            "accuracy_sd": deviations[0],
            "synthesize_cached": bool(cached[measured].any()),
            **dict(zip(names[1:], means[1:], strict=True)),
        }
    return found


def _mean_and_deviation(values: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the known values of every row (rows, cells), to the last bit as a frame's are."""
    known = ~np.isnan(values)
    counts = known.sum(axis=1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(known, values, 0.0).sum(axis=1) / counts
        squares = np.where(known, (means[:, None] - values) ** 2, 0.0).sum(axis=1)
        deviations = np.where(counts > 1, np.sqrt(squares / (counts - 1)), np.nan)
    return means.tolist(), deviations.tolist()
