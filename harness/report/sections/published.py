"""Published numbers beside reproduced ones. A published number never enters a mean, a ranking or a test."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from harness.catalog import metrics
from harness.io import text as safe
from harness.report import notes as noted
from harness.report import tables
from harness.results.published import Published
from harness.results.record import Record

MEASURED = ["suite", "task", "data", "limit", "scheme", "bits", "model", "method", "metric"]  # what one mean is over
_MEASURED_COLUMNS = [*MEASURED, "images", "role", "origin", "trains", "cell_method", "cell_model", "preset"]
COLUMNS = [
    *("task", "dataset", "metric", "method", "model", "bits", "scheme", "published", "source", "evidence", "note"),
    *("measured_method", "measured_model", "reproduced", "reproduced_sd", "difference", "images", "seeds", "preset"),
]
NOTES = """\
- *published* is what the source says, *reproduced* the mean over the seeds measured here (± their standard deviation),
  *difference* reproduced less published, in points. None of the published numbers enters a mean, a ranking or a test.
- Numbers stand beside each other if method, model, bits, scheme, task and dataset agree, by the names in
  `results/published/names.toml`. Checkpoints, preprocessing, calibration images and details of the quantized tensors
  can differ all the same: look at the difference of the float model first, and at how many images were evaluated.
- *label* says how the number is known; see `results/published/README.md`. *source* numbers the list below.
"""


def measured(records: Iterable[Record], cells: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of every metric of every measured cell: a row per group, model, method and metric.

    `method` and `model` are those of the tables; `cell_method` and `cell_model` the names in the cells.
    """
    by_key = {record.key: record for record in records}
    rows = []
    for row in cells[cells["status"] == "ok"].to_dict("records"):
        record = by_key[row["key"]]
        own: dict[str, Any] = {name: row[name] for name in (*MEASURED[:-1], "images", "role", "origin", "trains")}
        own |= {"cell_method": record.cell.method, "cell_model": record.cell.model, "preset": record.cell.preset}
        rows += [{**own, "metric": metric, "value": value} for metric, value in record.metrics.items()]
    frame = pd.DataFrame(rows, columns=[*_MEASURED_COLUMNS, "value"])
    found = []
    for _, same in frame.groupby(MEASURED, sort=True):
        first = {name: same[name].iloc[0] for name in _MEASURED_COLUMNS}
        found.append({**first, "mean": same["value"].mean(), "sd": same["value"].std(ddof=1), "seeds": len(same)})
    return pd.DataFrame(found, columns=[*_MEASURED_COLUMNS, "mean", "sd", "seeds"])


def beside(published: Published, means: pd.DataFrame) -> pd.DataFrame:
    """Every published number with its counterparts from `measured`: a row per pair, or one without a counterpart."""
    names = published.names
    by_place: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
    # Neither floor nor ceiling here: calibrated on real images is what most of the published methods are.
    labels = tables.method_labels(means.assign(role="")) if len(means) else pd.Series(dtype=str)
    for row, label in zip(means.to_dict("records"), labels, strict=True):
        place = tuple(row[name] for name in ("task", "suite", "metric", "cell_method", "bits", "scheme"))
        by_place.setdefault(place, []).append({**row, "label": label})
    rows: list[dict[Any, Any]] = []
    for number in published.numbers.to_dict("records"):
        own = {**number, "published": number["value"]}
        model, method, bits, scheme = (str(number[name]) for name in ("model", "method", "bits", "scheme"))
        place = (
            *(number["task"], number["dataset"], number["metric"], names["methods"].get(method, "")),
            *(names["bits"].get(bits, bits), names["schemes"].get(scheme, "")),
        )
        here = names["models"].get(model, "")
        found = [row for row in by_place.get(place, ()) if here and same_model(row["cell_model"], here)]
        rows += [{**own, **_counterpart(row, number["value"])} for row in found] or [own]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype(dict.fromkeys(("reproduced", "reproduced_sd", "difference", "images", "seeds"), float))


def same_model(model: str, name: str) -> bool:
    """Whether `model` is `name`, perhaps with a pretraining tag or with weights from a file."""
    return re.fullmatch(rf"{re.escape(name)}(\.\w+)?(@[0-9a-f]{{8}})?", model) is not None


def _counterpart(row: dict[Any, Any], published: float) -> dict[str, Any]:
    return {
        "measured_method": row["label"],
        "measured_model": row["model"],
        "reproduced": row["mean"],
        "reproduced_sd": row["sd"],
        "difference": row["mean"] - published,
        **{name: row[name] for name in ("images", "seeds", "preset")},
    }


def verdict(frame: pd.DataFrame, published: Published, means: pd.DataFrame) -> str:
    """What could be compared, in a sentence or two."""
    pairs = frame["reproduced"].notna()
    here = published.names["models"].values()
    if pairs.any():
        numbers = frame.loc[pairs, ["task", "dataset", "metric", "method", "model", "bits", "scheme", "source"]]
        text = f"{len(numbers.drop_duplicates())} of {len(published.numbers)} published numbers were measured here too."
    elif not any(same_model(model, name) for model in set(means["cell_model"]) for name in here):
        models = ", ".join(sorted(set(means["model"]))) or "none"
        suites = ", ".join(sorted(set(means["suite"]))) or "no suite"
        text = (
            f"No model measured here ({models}; suite {suites}) has a published number, so nothing is compared: what"
            " follows are published numbers alone."
        )
    else:
        text = (
            "No published number agrees with a measurement here in method, model, bits, scheme, task and dataset, so"
            " nothing is compared: what follows are published numbers alone."
        )
    if published.recollected:
        text += f" {published.recollected} recollections that nobody has checked (label M) are left out."
    return text


def sources(frame: pd.DataFrame) -> dict[str, int]:
    """Numbers of the sources, by their order in the alphabet."""
    return {source: number for number, source in enumerate(sorted(set(frame["source"])), start=1)}


def split(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and table of strings: of every task, dataset and metric the pairs, then of each the published alone."""
    numbers = sources(frame)
    for pairs in (True, False):
        chosen = frame[frame["reproduced"].notna() == pairs]
        for (task, dataset, metric), rows in chosen.groupby(["task", "dataset", "metric"], sort=True):
            what = "published and reproduced" if pairs else "published only"
            title = f"{task} on {dataset}, {metrics.title(str(metric))}: {what}"
            yield title, _table(_ordered(rows), numbers, pairs=pairs)


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """By model, precision from the most bits down, and value."""
    most = rows["bits"].map(lambda bits: tables.bit_order(bits, most=True))
    return (
        rows.assign(most=most)
        .sort_values(
            ["model", "most", "scheme", "published", "method", "source", "measured_method", "measured_model"],
            ascending=[True, True, True, False, True, True, True, True],
        )
        .drop(columns="most")
    )


def _table(rows: pd.DataFrame, numbers: dict[str, int], *, pairs: bool) -> pd.DataFrame:
    table = rows[["method", "model", "bits", "scheme"]].astype(str).reset_index(drop=True)
    table["published"] = [tables.number(value, 2) for value in rows["published"]]
    if pairs:
        table["reproduced"] = [mean(row) for row in rows.to_dict("records")]
        table["difference"] = [tables.number(value, 2, "+") for value in rows["difference"]]
        table["images"] = [f"{value:,.0f}" if value > 0 else tables.NONE for value in rows["images"]]
        table["seeds"] = [f"{value:.0f}" for value in rows["seeds"]]
        table["measured as"] = measured_as(rows)
    table["label"] = rows["evidence"].to_numpy()
    table["source"] = [f"[{numbers[source]}]" for source in rows["source"]]
    return table


def mean(row: dict[Any, Any]) -> str:
    """The reproduced number with its spread over seeds."""
    if not row["seeds"] > 0:
        return tables.NONE
    return f"{row['reproduced']:.2f}" + (f" ± {row['reproduced_sd']:.2f}" if row["seeds"] > 1 else "")


def measured_as(rows: pd.DataFrame) -> list[str]:
    """What each reproduced number was measured with: method, preset, and of the model what tells its checkpoint."""
    return [_measured_as(row) if row["seeds"] > 0 else "" for row in rows.to_dict("records")]


def _measured_as(row: dict[Any, Any]) -> str:
    preset = f", {row['preset']}" if row["preset"] and f"[{row['preset']}]" not in row["measured_method"] else ""
    checkpoint = re.search(r"[.@].*", str(row["measured_model"]))
    return f"{row['measured_method']}{preset}" + (f", {checkpoint[0]}" if checkpoint else "")


def markdown(frame: pd.DataFrame, sentence: str) -> str:
    """The tables as Markdown."""
    parts = ["# Published numbers\n", f"{safe.markdown(sentence)}\n"]
    for title, table in split(frame):
        parts += [f"## {safe.markdown(title)}\n", tables.markdown(table)]
    listed = "".join(f"{number}. {safe.markdown(source)}\n" for source, number in sources(frame).items())
    return "\n".join([*parts, NOTES + noted.marks_in(measured_as(frame)), f"Sources:\n\n{listed}"])


def latex(frame: pd.DataFrame, sentence: str) -> str:
    """The same for a paper; needs booktabs and longtable."""
    numbers = sources(frame)
    parts = [f"% {sentence}", *(f"% [{number}] {source}" for source, number in numbers.items())]
    for title, table in split(frame):
        own = table.set_index("method")
        columns = "".join("r" if tables.is_numeric(name) else "l" for name in own)
        parts.append(tables.latex_table(title, own, columns, long=True))
    return "\n".join(parts)


def csv(frame: pd.DataFrame) -> str:
    """The same at full precision, a row per pair or a published number alone."""
    return tables.csv(frame)
