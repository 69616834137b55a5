"""What a mean accuracy hides: which images and classes are lost, and how sure models are. Pure: arrays in, frames out.

Everything is computed from the stored outcomes of single images, nothing is run. Of tasks whose outcomes say label and
prediction (`TaskInfo.outcomes`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.report import stats, tables
from harness.report.frame import CONTEXT, GROUP

Columns = Mapping[str, NDArray[Any]]  # of outcomes, by name
BINS = 15  # of the calibration error
TAIL = 0.05  # share of the classes that are the tail
MOST_RESAMPLED = 10_000  # images, above which no bootstrap is made, since its draws would fill the memory
WANTED = ("label", "prediction", "confidence")
_MEASURES = [
    *("accuracy", "retention", "retention_error", "lost", "gained", "lost_p", "changed", "worst_class", "worst_drop"),
    *("tail", "ece", "ece_error", "confidence", "float_ece", "float_confidence"),
]
COLUMNS = ["key", *GROUP, "model", "method", "role", "origin", "trains", "seed", "images", "metric", *_MEASURES]
NOTES = f"""\
- *retention*: accuracy as a share of the float model's. *lost* and *gained*: images that the float model has right and
  the quantized one wrong, and the other way round; *changed*: images with another predicted class, right or wrong. All
  in % of the images. Two models of one accuracy may have lost and gained many images, or none.
- *worst class*: accuracy of the class that has the least, and in brackets the largest fall of a class against float.
  *tail*: mean accuracy of the worst {TAIL:.0%} of the classes, at least one.
- *ECE*: expected calibration error, {BINS} bins of equal width: how far confidence and accuracy are apart, in points.
  *conf.*: mean confidence. {tables.NONE} where outcomes do not say it, as those of older records.
- Means over seeds; of retention and ECE ± the standard error over images, by the bootstrap (a mean over seeds too).
"""


def hidden_frame(cells: pd.DataFrame, columns_of: Callable[[str], Columns]) -> pd.DataFrame:
    """A row per measured cell of which `columns_of` its key has label and prediction; the float model's among them.

    Measures that need the float model are missing where it was not measured on the same images.
    """
    rows: list[dict[str, Any]] = []
    measured = cells[cells["status"] == "ok"]
    for _, same in measured.groupby([*CONTEXT, "model"], sort=True):
        floats = same[same["role"] == "float"]
        reference = _usable(columns_of(floats["key"].iloc[0])) if len(floats) else None
        counts = None
        for cell in same.to_dict("records"):
            own = _usable(columns_of(str(cell["key"])))
            if own is None:
                continue
            images = len(own["label"])
            if counts is None and images <= MOST_RESAMPLED:
                counts = stats.resamples(images)
            paired = reference if reference is not None and np.array_equal(reference["label"], own["label"]) else None
            drawn = counts if counts is not None and counts.shape[1] == images else None
            rows.append({**{name: cell[name] for name in COLUMNS[: -len(_MEASURES)]}, **measures(own, paired, drawn)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _usable(columns: Columns) -> Columns | None:
    """The columns, if label and prediction are classes by number; confidence only if it is in 0 to 1."""
    if not all(name in columns and columns[name].dtype.kind in "iu" for name in ("label", "prediction")):
        return None
    if not len(columns["label"]) or columns["label"].min() < 0:
        return None
    sure = columns.get("confidence")
    good = sure is not None and sure.dtype.kind == "f" and bool(((sure >= 0) & (sure <= 1)).all())
    return {name: columns[name] for name in WANTED if name in columns and (name != "confidence" or good)}


def measures(own: Columns, reference: Columns | None, counts: NDArray[np.float64] | None = None) -> dict[str, float]:
    """All measures of one model, in points or %.

    Args:
        own: Its outcomes.
        reference: The float model's of the same images; None if there are none.
        counts: How often each image is in each bootstrap sample, (samples, images); None: no standard errors.
    """
    label, right = own["label"], own["prediction"] == own["label"]
    by_class = class_accuracies(label, right)
    found = {
        "accuracy": 100 * float(right.mean()),
        "worst_class": float(by_class.min()),
        "tail": float(np.sort(by_class)[: math.ceil(TAIL * len(by_class))].mean()),
    }
    if "confidence" in own:
        found |= {
            "ece": calibration_error(own["confidence"], right),
            "confidence": 100 * float(own["confidence"].mean()),
        }
        if counts is not None:
            found["ece_error"] = float(np.std(resampled_error(own["confidence"], right, counts), ddof=1))
    if reference is None:
        return found
    was = reference["prediction"] == reference["label"]
    lost, gained = int((was & ~right).sum()), int((right & ~was).sum())
    images = len(right)
    found |= {
        "lost": 100 * lost / images,
        "gained": 100 * gained / images,
        "lost_p": float(stats.mcnemar_of_counts(lost, gained)),
        "changed": 100 * float((own["prediction"] != reference["prediction"]).mean()),
        "worst_drop": float((class_accuracies(label, was) - by_class).max()),
    }
    if was.any():
        found["retention"] = 100 * float(right.mean() / was.mean())
        if counts is not None:
            kept = counts @ np.stack([right, was], axis=1).astype(np.float64)
            draws = 100 * kept[:, 0] / np.maximum(kept[:, 1], 1)
            found["retention_error"] = float(np.std(draws, ddof=1))
    if "confidence" in reference:
        found["float_ece"] = calibration_error(reference["confidence"], was)
        found["float_confidence"] = 100 * float(reference["confidence"].mean())
    return found


def class_accuracies(label: NDArray[Any], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Accuracy in points of every class that has images."""
    images = np.bincount(label)
    there = images > 0
    return np.asarray(100 * np.bincount(label, weights=right)[there] / images[there])


def _binned(confidence: NDArray[Any], right: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The bin of every image, and confidence less outcome."""
    place = np.minimum((confidence.astype(np.float64) * BINS).astype(np.int64), BINS - 1)
    return place, confidence.astype(np.float64) - right


def calibration_error(confidence: NDArray[Any], right: NDArray[np.bool_]) -> float:
    """Expected calibration error in points: over bins, |mean confidence - accuracy| weighted by their images (Naeini
    et al., AAAI 2015; Guo et al., ICML 2017).
    """
    place, excess = _binned(confidence, right)
    return 100 * float(np.abs(np.bincount(place, weights=excess, minlength=BINS)).sum() / len(place))


def resampled_error(
    confidence: NDArray[Any], right: NDArray[np.bool_], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same on bootstrap samples, (samples,), of which `counts` (samples, images) says what is in them."""
    place, excess = _binned(confidence, right)
    sums = counts @ (np.eye(BINS)[place] * excess[:, None])
    return np.asarray(100 * np.abs(sums).sum(axis=1) / len(place))


def split(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and table of strings of every group: the float model of each network, then methods by accuracy."""
    quantized, floats = frame[frame["role"] != "float"], frame[frame["role"] == "float"]
    for title, group in tables.groups(quantized):
        context = group[CONTEXT].iloc[0]
        shown = []
        for model, rows in group.groupby("model", sort=True):
            own = floats[(floats["model"] == model) & (floats[CONTEXT] == context).all(axis=1)]
            shown += [_row(each) for each in _methods(own)]
            shown += [_row(each) for each in sorted(_methods(rows), key=lambda each: -each["accuracy"].mean())]
        yield title, pd.DataFrame(shown).set_index("model")


def _methods(rows: pd.DataFrame) -> Iterable[pd.DataFrame]:
    return [same for _, same in rows.groupby("method", sort=True)]


def _row(same: pd.DataFrame) -> dict[str, str]:
    """The means over seeds of one method on one model, as they are shown."""
    means = same[_MEASURES].mean()

    def mean(name: str, digits: int = 2) -> str:
        return tables.number(float(means[name]), digits)

    def spread(name: str) -> str:
        error = f"{name}_error"
        return mean(name) + ("" if np.isnan(means[error]) else f" ± {means[error]:.2f}")

    is_float = same["role"].iloc[0] == "float"
    drop = "" if is_float or np.isnan(means["worst_drop"]) else f" ({-means['worst_drop']:+.1f})"
    against = ("", "", "", "") if is_float else (spread("retention"), *map(mean, ("lost", "gained", "changed")))
    return {
        "model": str(same["model"].iloc[0]),
        "method": str(tables.method_labels(same).iloc[0]),
        "top-1": mean("accuracy"),
        **dict(zip(("retention", "lost", "gained", "changed"), against, strict=True)),
        "worst class": mean("worst_class", 1) + drop,
        "tail": mean("tail", 1),
        "ECE": spread("ece"),
        "conf.": mean("confidence", 1),
    }


def markdown(frame: pd.DataFrame) -> str:
    """The tables with how to read them."""
    parts = ["# What the mean hides\n"]
    for title, table in split(frame):
        parts += [f"## {title}\n", tables.markdown(table.reset_index())]
    return "\n".join([*parts, NOTES])
