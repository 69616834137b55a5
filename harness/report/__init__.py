"""Reports from a results folder: tables, figures and galleries. Files are written here and in `files`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.console import Console

from harness.catalog.catalog import Catalog
from harness.io.files import prepare_folder, writing_report
from harness.report import tables
from harness.report.figures.files import save, save_svg
from harness.report.figures.gallery import galleries, gallery_figure
from harness.report.figures.pictures import KINDS, pictures
from harness.report.figures.predictions import prediction_figures
from harness.report.results import Results, load
from harness.report.sections import ablation, conflicts, cross, exported, hidden, ranks, robustness
from harness.results.store import Store

PAGE = "report.html"  # of all of it, in the same folder; `harness.report.write` makes it


def write_report(
    store: Store,
    out_dir: Path,
    keys: set[str] | None = None,
    console: Console | None = None,
    catalog: Catalog | None = None,
) -> Results:
    """Write `<out_dir>/report/` and print the main table, which is that of the ablation if the cells are one.

    Args:
        store: The results.
        out_dir: Folder that gets the subfolder `report` with comparison.md, comparison.csv, comparison.tex, costs.md,
            costs.csv, costs.tex, cells.csv; ablation.md, ablation.csv and ablation.tex if a method was run with
            variants of it; hidden.md and hidden.csv if outcomes say label and prediction; exported.md and exported.csv
            if cells were exported; conflicts.md and conflicts.csv if
            records contradict each other; cross.md, cross.csv and cross.tex if several sources were run with several
            calibrators; ranks.md, ranks.csv, robustness.md and robustness.csv if real images were among those;
            ranges.csv if ranges can be compared;
            accuracy.png, accuracy.svg and for every model those of the `pictures` that have something to show,
            `<kind>_<model>.png`; gallery_<model>.png if images were kept and predictions_<task>_<model>_<scheme>.png
            where models' answers were drawn.
        keys: Cells to report; all if None.
        console: Where the main table is printed.
        catalog: Plugins, for the labels of ablations; the default ones if None.

    Returns:
        What the report was made of.

    Raises:
        UsageError: the folder cannot be read or written.
    """
    results = load(store, catalog or Catalog.default(), keys)
    cells = results.cells
    folder = out_dir / "report"
    prepare_folder(folder, "--out")
    with writing_report(folder):
        comparison, switched = _write_tables(results, folder)
        _write_pictures(results, store, folder)
        _write_galleries(store, cells, folder)
        _write_predictions(store, cells, folder)
    # The text is Markdown, not rich's markup, and a table must not be wrapped.
    main = switched if len(results.switches) and ablation.is_ablation(cells, results.names) else comparison
    shown = console or Console()
    shown.print(main, markup=False, highlight=False, soft_wrap=True)
    for text in store.sentences():
        shown.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not results.conflicts.empty:
        shown.print(conflicts.sentence(results.conflicts), style="yellow", markup=False, soft_wrap=True)
    return results


def _write_tables(results: Results, folder: Path) -> tuple[str, str]:
    """All tables; returns the comparison and the ablation. None is left from earlier."""
    cells, summary = results.cells, results.summary
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
    switched = ablation.markdown(results.switches, cells)
    own = {"md": switched, "csv": ablation.csv(results.switches), "tex": ablation.latex(results.switches)}
    _write_or_remove(folder, "ablation", results.switches, own)
    crossed = results.crossed
    own = {"md": cross.markdown(crossed, cells), "csv": cross.csv(crossed), "tex": cross.latex(crossed)}
    _write_or_remove(folder, "cross", crossed, own)
    own = {"md": ranks.markdown(results.ranks), "csv": tables.csv(results.ranks)}
    _write_or_remove(folder, "ranks", results.ranks, own)
    own = {"md": robustness.markdown(results.robustness), "csv": tables.csv(results.robustness)}
    _write_or_remove(folder, "robustness", results.robustness, own)
    own = {"md": conflicts.conflict_markdown(results.conflicts), "csv": tables.csv(results.conflicts)}
    _write_or_remove(folder, "conflicts", results.conflicts, own)
    own = {"md": hidden.markdown(results.hidden), "csv": tables.csv(results.hidden)}
    _write_or_remove(folder, "hidden", results.hidden, own)
    made = results.exported
    own = {"md": "" if made.empty else exported.exported_markdown(made), "csv": tables.csv(made)}
    _write_or_remove(folder, "exported", made, own)
    (folder / "ranges.csv").unlink(missing_ok=True)
    if not results.ranges.empty:
        tables.write_csv(results.ranges, folder / "ranges.csv")
    # Made of other records; who asks for published numbers or the page writes them after.
    for name in ("published.md", "published.csv", "published.tex", PAGE):
        (folder / name).unlink(missing_ok=True)
    return comparison, switched


def _write_or_remove(folder: Path, stem: str, frame: pd.DataFrame, texts: Mapping[str, str]) -> None:
    """Write `texts`, by suffix, if `frame` has rows; else see that none are left from earlier."""
    for suffix, text in texts.items():
        path = folder / f"{stem}.{suffix}"
        if frame.empty:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text, encoding="utf-8", newline="\n")


def _write_pictures(results: Results, store: Store, folder: Path) -> None:
    """All figures; none is left from earlier."""
    written = set()
    for picture in pictures(results, store.snapshots):
        written.add(save(picture.draw(), folder, picture.kind, picture.model))
        if not picture.model:
            written.add(save_svg(picture.draw(), folder, picture.kind))
    for kind in KINDS:
        for pattern in (f"{kind}_*.png", f"{kind}.png", f"{kind}.svg"):
            for path in set(folder.glob(pattern)) - written:
                path.unlink()


def _write_predictions(store: Store, cells: pd.DataFrame, folder: Path) -> None:
    """The figures of what models said of a few images; none is left from earlier."""
    figures = prediction_figures(cells, store.pictures)
    drawn = {save(figure, folder, "predictions", "_".join(names)) for names, figure in figures}
    for path in set(folder.glob("predictions_*.png")) - drawn:
        path.unlink()


def _write_galleries(store: Store, cells: pd.DataFrame, folder: Path) -> None:
    """The figures of calibration images; none is left from earlier."""
    drawn = {
        save(gallery_figure(f"Calibration images, {model}, seed {seed}", rows), folder, "gallery", model, dpi=None)
        for model, seed, rows in galleries(cells, store.images)
    }
    for path in set(folder.glob("gallery_*.png")) - drawn:
        path.unlink()
