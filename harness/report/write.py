"""What the commands `tables` and `report` do: a results folder's files, published numbers beside them, and the page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.io.files import prepare_folder, write_atomically, writing_report
from harness.results import published
from harness.results.provenance import is_stale
from harness.results.record import Record
from harness.results.store import Store

if TYPE_CHECKING:
    from harness.report.results import Results


def write_tables(store: Store, catalog: Catalog, console: Console, *, with_published: bool) -> None:
    """Write tables and figures beside the records and print the main table, then the published numbers if asked for.

    Raises:
        UsageError: the folder or the published numbers cannot be read, or the folder cannot be written.
    """
    from harness.report import write_report

    numbers = published.read() if with_published else None  # before all else, since there may be none
    results = write_report(store, store.folder, None, console, catalog)
    if numbers:
        text = _write_published(results, numbers, store.folder / "report")
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def write_page(store: Store, catalog: Catalog, console: Console, html: Path | None) -> Path:
    """Write what `write_tables` writes, and all of it as one page.

    Args:
        store: The results.
        catalog: Plugins.
        console: Where the main table is printed.
        html: The page; `report/report.html` beside the records if None.

    Returns:
        Where the page is.

    Raises:
        UsageError: as `write_tables`, or the page cannot be written.
    """
    from harness.report import PAGE, write_report
    from harness.report.page.page import Images, page

    target = html or store.folder / "report" / PAGE
    if target.is_dir():
        raise UsageError(f"--html {target} is a folder; name a file in it")
    prepare_folder(target.parent, "--html")
    # Installed apart from its repository, the project has no published numbers; the page then does without.
    numbers = published.read() if published.FOLDER.is_dir() else None
    results = write_report(store, store.folder, None, console, catalog)
    if numbers:
        _write_published(results, numbers, store.folder / "report")
    images = Images(store.images, store.snapshots, store.pictures)
    text = page(results, images, numbers, stale(results.records, catalog), store.sentences())
    with writing_report(target.parent):
        write_atomically(target, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))
    return target


def _write_published(results: Results, numbers: published.Published, folder: Path) -> str:
    """Write published.md, published.csv and published.tex; return the first."""
    from harness.report.sections import published as shown

    means = shown.measured(results.records, results.cells)
    frame = shown.beside(numbers, means)
    sentence = shown.verdict(frame, numbers, means)
    text = shown.markdown(frame, sentence)
    with writing_report(folder):
        for suffix, content in (("md", text), ("csv", shown.csv(frame)), ("tex", shown.latex(frame, sentence))):
            (folder / f"published.{suffix}").write_text(content, encoding="utf-8", newline="\n")
    return text


def stale(records: Iterable[Record], catalog: Catalog) -> int:
    """How many records other code or versions have made than are here; those whose plugins are not here count too."""
    from harness.catalog.code import code_for

    count = 0
    for record in records:
        old = True
        with contextlib.suppress(UsageError):
            old = is_stale(record.provenance, code_for(catalog, record.cell))
        count += old
    return count
