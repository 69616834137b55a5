"""The field's best published number of every model and precision. Published numbers alone; ranks nothing of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from harness.catalog import metrics
from harness.report import tables
from harness.results.published import Published

REAL = "real images"  # what a method is calibrated on where `names.toml` says nothing
_PLAIN = re.compile(r"W\d+A\d+")
NOTES = (
    "- The highest published number for each kind of method: calibrated on real images, data-free, and data-free with"
    " the weights trained. The numbers of one row come from different quantizers, checkpoints and sets of quantized"
    " tensors: they say what has been claimed, not what is better.\n"
    "- *label* says how a number is known: see `results/published/README.md`. Mixed precisions are left out, since"
    " hardly two are alike."
)


def best(published: Published) -> pd.DataFrame:
    """The highest number of every task, dataset, metric, model, precision and kind of method, a row each."""
    numbers = published.numbers
    quantized = numbers[(numbers["method"] != "float") & numbers["bits"].map(lambda bits: bool(_PLAIN.fullmatch(bits)))]
    kinds = quantized["method"].map(lambda method: published.names["calibration"].get(method, REAL))
    place = ["task", "dataset", "metric", "model", "bits", "kind"]
    # Of equal numbers the first by name, so that the order of the files does not matter.
    ordered = quantized.assign(kind=kinds).sort_values(["value", "method", "source"], ascending=[False, True, True])
    return ordered.drop_duplicates(place).sort_values(place, ignore_index=True)


def split(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and table of strings of every task, dataset and metric: a row per model and precision, a column a kind."""
    for (task, dataset, metric), rows in frame.groupby(["task", "dataset", "metric"], sort=True):
        title = f"{task} on {dataset}, {metrics.title(str(metric))}: the field's best"
        kinds = sorted(rows["kind"].unique(), key=lambda kind: (kind != REAL, kind))
        places = rows[["model", "bits"]].drop_duplicates()
        places = places.assign(most=places["bits"].map(lambda bits: tables.bit_order(bits, most=True)))
        shown = []
        for model, bits in places.sort_values(["model", "most"])[["model", "bits"]].itertuples(index=False):
            here = rows[(rows["model"] == model) & (rows["bits"] == bits)].set_index("kind")
            texts = {kind: _shown(here.loc[kind]) if kind in here.index else tables.NONE for kind in kinds}
            shown.append({"model": str(model), "bits": str(bits), **texts})
        yield title, pd.DataFrame(shown).set_index("model")


def _shown(number: pd.Series) -> str:
    return f"{number['value']:.2f} {number['method']} ({number['evidence']})"
