"""The report as one page that needs nothing else: no server, no network, no other file. Frames in, text out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.report import tables, verdicts
from harness.report.figures.gallery import galleries
from harness.report.figures.pictures import KINDS, Snapshots, pictures
from harness.report.figures.predictions import Pictures, prediction_figures
from harness.report.page import grids, html
from harness.report.results import Results
from harness.report.sections import ablation, conflicts, cross, exported, field, hidden, published, ranks, robustness
from harness.report.sections.origins import preprocessing_table, provenance_table
from harness.results.published import Published

ASSETS = Path(__file__).parent / "assets"
OPEN = 6  # tables or figures of a section up to which all are unfolded
STRIPS = 60  # rows of a model's gallery
WITH_TABLES = "cross"  # the kind of pictures that stands below tables of its own
_METRIC_COLUMN = {"": "result"}  # what the tables leave unnamed


@dataclass(frozen=True)
class Section:
    """A part of the page: `anchor` is its id; `body` is HTML."""

    anchor: str
    title: str
    body: Markup


@dataclass(frozen=True)
class Images:
    """What was kept beside the records, by cell key: calibration images, their states over the steps, and what models
    said of evaluation images.
    """

    kept: Callable[[str], NDArray[np.uint8] | None]
    snapshots: Snapshots
    predictions: Callable[[str], Pictures]


def page(
    results: Results, images: Images, numbers: Published | None, stale: int | None, left_out: Sequence[str] = ()
) -> str:
    """The page. The same records give the same bytes, in whatever order they come.

    Args:
        results: The records and their frames.
        images: What was kept beside them.
        numbers: Published numbers; None leaves the section out.
        stale: How many records other code or versions have made than are here now; None if that is not known.
        left_out: A sentence per file that could not be used.
    """
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [grids.results_grid(results.summary), grids.cells_grid(results.cells)]
    compared = _Published.of(results, numbers) if numbers else None
    if compared:
        shown.append(compared.grid)
    by_name = {grid.name: grid for grid in shown}
    payload = json.dumps({name: grid.payload() for name, grid in by_name.items()}, separators=(",", ":"))
    return environment.get_template("page.html.j2").render(
        style=_asset("page.css"),
        script=_asset("page.js"),
        payload=Markup(payload.replace("<", "\\u003c")),
        facts=_facts(results),
        grids=by_name,
        sections=[*_left_out(left_out), *_sections(results, images)],
        published=compared,
        unmeasured=html.lines(tables.unmeasured(results.cells, str)),
        provenance=_provenance(results, stale),
        notes={"results": html.notes(tables.notes(results.summary)), "published": html.notes(published.NOTES)},
    )


def _asset(name: str) -> Markup:
    return Markup((ASSETS / name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Published:
    """What the page shows of published numbers."""

    sentence: str
    grid: grids.Grid
    sources: Mapping[str, int]
    best: Markup  # tables of the field's best

    @classmethod
    def of(cls, results: Results, numbers: Published) -> _Published:
        means = published.measured(results.records, results.cells)
        frame = published.beside(numbers, means)
        sentence = published.verdict(frame, numbers, means)
        best = [(title, rows, "") for title, rows in field.split(field.best(numbers))]
        return cls(sentence, grids.published_grid(frame), published.sources(frame), _tables(best, field.NOTES))


def _facts(results: Results) -> dict[str, str]:
    """What the head of the page says in numbers."""
    cells = results.cells
    status = cells["status"].value_counts()
    quantized = cells[cells["role"] != "float"]
    images = cells["images"].dropna()
    amount = sorted({int(number) for number in images})
    return {
        "suites": ", ".join(sorted(cells["suite"].unique())) or "nothing",
        "records": f"{len(cells):,}",
        "measured": f"{status.get('ok', 0):,}",
        "failed": f"{status.get('failed', 0):,}",
        "skipped": f"{status.get('skipped', 0):,}",
        "methods": f"{quantized['method'].nunique():,}",
        "models": f"{cells['model'].nunique():,}",
        "seeds": f"{quantized['seed'].nunique():,}",
        "images": " or ".join(f"{number:,}" for number in amount[:4]) + (" or more" if len(amount) > 4 else ""),
        "first": min((record.started for record in results.records), default="")[:10],
        "last": max((record.finished for record in results.records), default="")[:10],
    }


def _left_out(sentences: Sequence[str]) -> Iterator[Section]:
    """What is missing from the page since its files cannot be used, if there is such."""
    if sentences:
        items = Markup("\n").join(Markup("<li>{}</li>").format(text) for text in sentences)
        yield Section("left-out", "Files that cannot be used", Markup("<ul>{}</ul>").format(items))


def _sections(results: Results, images: Images) -> Iterator[Section]:
    """The parts between the table of results and the published numbers; those without content are left out."""
    if not results.conflicts.empty:  # first, since it may decide whether the rest is believed
        title = "Records that contradict each other"
        body = html.table(conflicts.conflict_table(results.conflicts), title)
        yield Section("conflicts", title, Markup("{}{}").format(body, html.notes(conflicts.NOTES)))
    summary = results.summary
    named = [
        (title + tables.metric(group), tables.comparison_table(group), verdicts.sensitivity(group))
        for title, group in tables.groups(summary)
    ]
    if named:
        yield Section(
            "comparison", "Comparison, a table per precision and scheme", _tables(named, tables.notes(summary))
        )
    below = [(title, table, "") for title, table in hidden.split(results.hidden)]
    if below:
        yield Section("hidden", "What the mean hides", _tables(below, hidden.NOTES))
    if len(results.switches):
        switched = [(t, frame, verdicts.sensitivity(rows)) for t, rows, frame in ablation.split(results.switches)]
        yield Section("ablation", "Ablation", _tables(switched, ablation.notes(results.switches)))
    predicted = prediction_figures(results.cells, images.predictions)
    bodies = [
        (label := f"Predictions, {', '.join(names)}", _figure(figure, f"p{place}", label))
        for place, (names, figure) in enumerate(predicted)
    ]
    if bodies:
        yield Section("predictions", "What models say of the first evaluation images", _foldable(bodies))
    drawn = _drawn(results, images)
    crossed = [(title, cross.table(rows), verdicts.sensitivity(rows)) for title, rows in cross.split(results.crossed)]
    for kind, title in KINDS.items():
        body = drawn.get(kind, Markup(""))
        if kind == "exported" and not results.exported.empty:
            own = html.table(exported.exported_table(results.exported), "Fake against real")
            body = Markup("{}{}").format(own, html.notes(exported.NOTES)) + body
        if kind == WITH_TABLES and crossed:
            body = _tables(crossed, cross.notes(results.crossed)) + body
            same_order = [(title, frame, "") for title, frame in ranks.split(results.ranks)]
            body += _tables(same_order, ranks.NOTES) if same_order else Markup("")
            lost = [
                (f"Difference to real images: {title}", robustness.table(rows), verdicts.sensitivity(rows))
                for title, rows in robustness.split(results.robustness)
            ]
            body += _tables(lost, robustness.notes(results.robustness)) if lost else Markup("")
        if body:
            yield Section(kind, title, body)
    kept = [(found[0], _gallery(*found)) for found in galleries(results.cells, images.kept)]
    if kept:
        yield Section("images", "Calibration images", _foldable(kept))


def _tables(found: list[tuple[str, Any, str]], notes: str) -> Markup:
    """Tables that can be folded, with what the paired test could see below each."""
    parts = [
        Markup("<details{}><summary>{}</summary>{}<p>{}</p></details>").format(
            Markup(" open") if len(found) <= OPEN or place == 0 else "",
            title,
            html.table(frame.rename(columns=_METRIC_COLUMN), title),
            seen.strip(),
        )
        for place, (title, frame, seen) in enumerate(found)
    ]
    return Markup("\n").join([*parts, html.notes(notes)])


def _drawn(results: Results, images: Images) -> dict[str, Markup]:
    """Figures of every kind; folded, apart from the first, where there are many."""
    found: dict[str, list[tuple[str, Markup]]] = {}
    for place, picture in enumerate(pictures(results, images.snapshots)):
        figure = picture.draw()
        if figure is not None:
            label = KINDS[picture.kind] + (f", {picture.model}" if picture.model else "")
            found.setdefault(picture.kind, []).append((label, _figure(figure, f"f{place}", label)))
    return {kind: _foldable(figures) for kind, figures in found.items()}


def _foldable(parts: Sequence[tuple[str, Markup]]) -> Markup:
    """Titled parts, which can be folded if there are more than a few; the first is open."""
    if len(parts) <= OPEN:
        return Markup("\n").join(body for _, body in parts)
    return Markup("\n").join(
        Markup("<details{}><summary>{}</summary>{}</details>").format(Markup(" open" * (not place)), title, body)
        for place, (title, body) in enumerate(parts)
    )


def _figure(drawn: Figure, name: str, label: str) -> Markup:
    """A figure that is scrolled where the page is too narrow for it; see `html.figure`."""
    return Markup('<figure><div class=scroll tabindex=0 role=region aria-label="{}">{}</div></figure>').format(
        label, html.figure(drawn, name, label)
    )


def _gallery(model: str, seed: int, rows: list[tuple[str, NDArray[np.uint8]]]) -> Markup:
    """Rows of images under their methods' names."""
    shown = Markup("\n").join(
        Markup("<tr><th scope=row>{}</th><td class=strip>{}</td></tr>").format(
            Markup("<br>").join(label.splitlines()), html.strip(pictures)
        )
        for label, pictures in rows[:STRIPS]
    )
    rest = f"; {len(rows) - STRIPS} more methods are left out" if len(rows) > STRIPS else ""
    first = max(len(html.shown(pictures)) for _, pictures in rows)
    caption = f"{model}, seed {seed}: the first {first} images of every method{rest}"
    return Markup(
        '<div class=scroll tabindex=0 role=region aria-label="{0}"><table class=gallery><caption>{0}</caption>'
        "<tbody>{1}</tbody></table></div>"
    ).format(caption, shown)


def _provenance(results: Results, stale: int | None) -> Markup:
    frame, more = provenance_table(results.records)
    parts = [Markup("<div class=wrapping>{}</div>").format(html.table(frame, "Distinct origins of the records"))]
    if more:
        parts.append(Markup("<p>{} more are left out.</p>").format(more))
    prepared = preprocessing_table(results.records)
    if len(prepared):
        title = "How images are made ready for the models"
        parts.append(Markup("<div class=wrapping>{}</div>").format(html.table(prepared, title)))
    if stale is not None:
        text = (
            f"{stale:,} of these records are stale: other code of the methods, or another torch or timm, made them than"
            " was there when this page was made."
        )
        parts.append(Markup("<p>{}</p>").format(text if stale else "None of these records is stale."))
    return Markup("\n").join(parts)
