"""Reports from a results folder: tables, figure and galleries. All file access of the package is in this module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from harness.report import tables
from harness.report.figures import accuracy_figure
from harness.report.frame import cells_frame
from harness.report.gallery import distinct, gallery_figure
from harness.report.summary import summarise
from harness.store import Store, prepare_folder

ROLE_ORDER = ("ceiling", "method", "floor")  # rows of a gallery from top to bottom


def write_report(store: Store, out_dir: Path, keys: set[str] | None = None, console: Console | None = None) -> None:
    """Write `<out_dir>/report/` and print the main table.

    Args:
        store: The results.
        out_dir: Folder that gets the subfolder `report` with comparison.md, comparison.csv, comparison.tex, costs.md,
            costs.csv, costs.tex, cells.csv, accuracy.png, accuracy.svg and a gallery_<model>.png for every model with
            kept images.
        keys: Cells to report; all if None.
        console: Where the main table is printed.

    Raises:
        UsageError: a record or its outcomes cannot be read, or the folder cannot be written.
    """
    records = [record for record in store.records() if keys is None or record.key in keys]
    outcomes: dict[str, NDArray[np.bool_]] = {}
    for record in records:
        if record.status == "ok":
            frame = store.outcomes(record.key)
            if "correct" in frame:
                outcomes[record.key] = frame["correct"].to_numpy(dtype=bool)
    cells = cells_frame(records, outcomes)
    summary = summarise(cells, outcomes)

    folder = out_dir / "report"
    prepare_folder(folder, "--out")
    comparison = tables.comparison(summary, cells)
    for name, text in (
        ("comparison.md", comparison),
        ("comparison.csv", tables.csv(summary)),
        ("comparison.tex", tables.latex(summary)),
        ("costs.md", tables.costs(summary)),
        ("costs.csv", tables.costs_csv(summary)),
        ("costs.tex", tables.costs_latex(summary)),
        ("cells.csv", tables.csv(cells)),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    _write_accuracy(summary, folder)
    _write_galleries(store, cells, folder)
    # The text is Markdown, not rich's markup, and a table must not be wrapped.
    (console or Console()).print(comparison, markup=False, highlight=False, soft_wrap=True)


def _write_accuracy(summary: pd.DataFrame, folder: Path) -> None:
    import matplotlib as mpl

    figure = accuracy_figure(summary)
    if figure is None:
        return
    figure.savefig(folder / "accuracy.png", dpi=150, metadata={"Software": None})
    with mpl.rc_context({"svg.hashsalt": "dfqbench", "svg.fonttype": "none"}):
        figure.savefig(folder / "accuracy.svg", metadata={"Date": None, "Creator": None})


def _write_galleries(store: Store, cells: pd.DataFrame, folder: Path) -> None:
    measured = cells[(cells["status"] == "ok") & (cells["role"] != "float")]
    for model, of_model in measured.groupby("model", sort=True):
        first = of_model[of_model["seed"] == of_model["seed"].min()]
        rank = first["role"].map({role: place for place, role in enumerate(ROLE_ORDER)})
        ordered = first.assign(rank=rank).sort_values(["rank", "method", "bits", "key"])
        shown = []
        for method, bits, key in ordered[["method", "bits", "key"]].itertuples(index=False):
            images = store.images(key)
            if images is not None and len(images):
                shown.append((method, bits, images))
        if shown:
            figure = gallery_figure(str(model), distinct(shown))
            name = "".join(c if c.isalnum() or c in "-_." else "_" for c in str(model))
            figure.savefig(folder / f"gallery_{name}.png", metadata={"Software": None})
