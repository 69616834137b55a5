"""Reports from a results folder: tables, figure and galleries. Files are written here and in `diagnostics`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.console import Console

from harness import stats
from harness.catalog import Catalog
from harness.errors import UsageError
from harness.plugins import import_target
from harness.report import ablation, cross, tables
from harness.report.cross_figures import cross_figure
from harness.report.diagnostics import save, write_diagnostics
from harness.report.figures import accuracy_figure
from harness.report.frame import Outcome, cells_frame
from harness.report.gallery import ROLE_ORDER, distinct, gallery_figure
from harness.report.prediction_figures import prediction_figures
from harness.report.summary import summarise
from harness.store import Store, prepare_folder


def write_report(
    store: Store,
    out_dir: Path,
    keys: set[str] | None = None,
    console: Console | None = None,
    catalog: Catalog | None = None,
) -> None:
    """Write `<out_dir>/report/` and print the main table, which is that of the ablation if the cells are one.

    Args:
        store: The results.
        out_dir: Folder that gets the subfolder `report` with comparison.md, comparison.csv, comparison.tex, costs.md,
            costs.csv, costs.tex, cells.csv, accuracy.png, accuracy.svg and a gallery_<model>.png for every model with
            kept images; predictions_<task>_<model>_<scheme>.png where models' answers were drawn; ablation.md,
            ablation.csv and ablation.tex if a method was run with variants of it; cross.md, cross.csv, cross.tex and a
            cross_<model>.png if several sources were run with several calibrators; also what `write_diagnostics` finds.
        keys: Cells to report; all if None.
        console: Where the main table is printed.
        catalog: Plugins, for the labels of ablations; the default ones if None.

    Raises:
        UsageError: a record or its outcomes cannot be read, or the folder cannot be written.
    """
    records = [record for record in store.records() if keys is None or record.key in keys]
    catalog = catalog or Catalog.default()
    outcomes: dict[str, Outcome] = {}
    for record in records:
        if record.status == "ok":
            frame = store.outcomes(record.key)
            if "correct" in frame:
                outcomes[record.key] = frame["correct"].to_numpy(dtype=bool)
            elif resampling := _resampling(catalog, record.cell.task):
                outcomes[record.key] = stats.resample(import_target(resampling)(frame), len(frame))
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
    names = {record.key: record.cell.method for record in records}
    labels = _ablation_labels(names, catalog)
    switches = ablation.ablations(cells, summary, outcomes, names, labels)
    switched = ablation.markdown(switches, cells)
    own = {"md": switched, "csv": ablation.csv(switches), "tex": ablation.latex(switches)}
    _write_or_remove(folder, "ablation", switches, own)
    crossed = cross.crosses(cells, summary, outcomes, names)
    own = {"md": cross.markdown(crossed, cells), "csv": cross.csv(crossed), "tex": cross.latex(crossed)}
    _write_or_remove(folder, "cross", crossed, own)
    _write_heat_maps(crossed, folder)
    _write_accuracy(summary, folder)
    _write_galleries(store, cells, folder)
    _write_predictions(store, cells, folder)
    write_diagnostics(store, records, cells, folder)
    # The text is Markdown, not rich's markup, and a table must not be wrapped.
    main = switched if len(switches) and ablation.is_ablation(cells, names) else comparison
    (console or Console()).print(main, markup=False, highlight=False, soft_wrap=True)


def _resampling(catalog: Catalog, task: str) -> str:
    """The task's `resampling`; none if its plugin is not here."""
    with contextlib.suppress(UsageError):
        return catalog.tasks.get(task).resampling
    return ""


def _ablation_labels(names: Mapping[str, str], catalog: Catalog) -> dict[str, dict[str, str]]:
    labels = {}
    for name in sorted(set(names.values())):
        with contextlib.suppress(UsageError):  # a variant, or its plugin is not here
            labels[name] = catalog.ablations(name)
    return labels


def _write_or_remove(folder: Path, stem: str, frame: pd.DataFrame, texts: Mapping[str, str]) -> None:
    """Write `texts`, by suffix, if `frame` has rows; else see that none are left from earlier."""
    for suffix, text in texts.items():
        path = folder / f"{stem}.{suffix}"
        if frame.empty:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text, encoding="utf-8", newline="\n")


def _write_heat_maps(crossed: pd.DataFrame, folder: Path) -> None:
    """The figures of the cross table; none is left from earlier."""
    drawn = {save(cross_figure(rows), folder, "cross", str(model)) for model, rows in crossed.groupby("model")}
    for path in set(folder.glob("cross_*.png")) - drawn:
        path.unlink()


def _write_accuracy(summary: pd.DataFrame, folder: Path) -> None:
    import matplotlib as mpl

    figure = accuracy_figure(summary)
    if figure is None:
        return
    figure.savefig(folder / "accuracy.png", dpi=150, metadata={"Software": None})
    with mpl.rc_context({"svg.hashsalt": "dfqbench", "svg.fonttype": "none"}):
        figure.savefig(folder / "accuracy.svg", metadata={"Date": None, "Creator": None})


def _write_predictions(store: Store, cells: pd.DataFrame, folder: Path) -> None:
    """The figures of what models said of a few images; none is left from earlier."""
    figures = prediction_figures(cells, store.pictures)
    drawn = {save(figure, folder, "predictions", "_".join(names)) for names, figure in figures}
    for path in set(folder.glob("predictions_*.png")) - drawn:
        path.unlink()


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
