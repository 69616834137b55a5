"""Writes the figures that explain a comparison; beside `write_report` the only one of the package to touch files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from harness.record import Record
from harness.report import tables
from harness.report.gallery import iterations_figure, one_precision
from harness.report.range_figures import range_figure, range_frame
from harness.report.search_figures import search_figure, search_frame
from harness.report.width_figures import bits_figure, bits_frame, sensitivity_figure, sensitivity_frame
from harness.store import Store

DPI = 150


def write_diagnostics(store: Store, records: Sequence[Record], cells: pd.DataFrame, folder: Path) -> None:
    """Write search, bits, sensitivity, ranges and iterations of every model whose records have them; see schema.md."""
    frames: Iterable[tuple[str, pd.DataFrame, Callable[[pd.DataFrame], Figure | None]]] = (
        ("search", search_frame(records, cells), search_figure),
        ("bits", bits_frame(records, cells), bits_figure),
        ("sensitivity", sensitivity_frame(records, cells), sensitivity_figure),
        ("ranges", range_frame(records, cells), range_figure),
    )
    for name, frame, draw in frames:
        if name == "ranges" and len(frame):
            (folder / "ranges.csv").write_text(tables.csv(frame), encoding="utf-8", newline="\n")
        for model, of_model in frame.groupby("model", sort=True):
            save(draw(of_model), folder, name, str(model))
    _write_iterations(store, cells, folder)


def save(figure: Figure | None, folder: Path, name: str, model: str) -> Path | None:
    """Write `<name>_<model>.png` without anything that would differ next time, if there is a figure."""
    if figure is None:
        return None
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in model)
    path = folder / f"{name}_{safe}.png"
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def _write_iterations(store: Store, cells: pd.DataFrame, folder: Path) -> None:
    snapshots = {key: found for key in cells.loc[cells["status"] == "ok", "key"] if (found := store.snapshots(key))}
    for model, of_model in cells[cells["key"].isin(snapshots)].groupby("model", sort=True):
        shown = one_precision(of_model)
        first = shown.iloc[0]
        title = f"Images over the iterations, {model} ({first['bits']}, scheme {first['scheme']}, seed {first['seed']})"
        rows = [(str(method), snapshots[key]) for method, key in zip(shown["method"], shown["key"], strict=True)]
        save(iterations_figure(title, rows), folder, "iterations", str(model))
