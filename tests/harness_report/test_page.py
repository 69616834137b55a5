"""The page: one file that asks for nothing, the same from the same records, with what the tables say."""

from __future__ import annotations

import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from harness.catalog.catalog import Catalog
from harness.report import notes, tables
from harness.report.page import html
from harness.report.page.page import OPEN, Images, page
from harness.report.results import assemble
from harness.report.sections.origins import preprocessing_table
from harness.report.tables import NONE
from harness.results.published import read
from harness.results.store import Store

from . import synthetic as fake
from .test_diagnostic_figures import mixed, ranged, save, searched, snapshots

HOSTILE = "x</script><img src=x onerror=alert(1)>"


def fill(store: Store) -> None:
    """A small folder with everything that the page has a section for."""
    fake.fill(store, models=["vit_a"], seeds=2)
    for seed in range(2):
        save(store, mixed(seed, "MP4.5"))
        save(store, searched(seed, "W6A6"), snapshots("clamp", 60))
        save(store, ranged("real+omse", seed, bits="W4A4"))
        save(store, ranged("psaq+omse", seed, bits="W4A4"))
    parts = {f"{kind}:{name}": {} for kind, name in (("source", "s"), ("calibrator", "c"))}
    for source in ("psaq", "noise"):
        for calibrator in ("minmax", "omse"):
            name = f"{source}+{calibrator}"
            parts = {f"source:{source}": {"images": 32}, f"calibrator:{calibrator}": {}}
            made = fake.record(name, bits="W4A8", options={"preset": "quick", "parts": parts})
            fake.save(store, made, fake.outcome(70 + len(name), 1), images=fake.picture(source))
    store.save(fake.failed("broken", 0))
    store.save(fake.record(HOSTILE, status="skipped", reason=HOSTILE, metrics={}, quantization=None))


def results_of(store: Store, *, shuffle: int = 0):
    records = store.records()
    random.Random(shuffle).shuffle(records)
    outcomes = {r.key: store.outcomes(r.key)["correct"].to_numpy() for r in records if r.status == "ok"}
    return assemble(records, outcomes, Catalog.default())


def page_of(store: Store, *, shuffle: int = 0) -> str:
    return page(results_of(store, shuffle=shuffle), Images(store.images, store.snapshots, store.pictures), read(), 3)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("cells"))
    fill(store)
    return store


@pytest.fixture(scope="module")
def text(filled: Store) -> str:
    return page_of(filled)


class Elements(HTMLParser):
    """Start tags with attributes, in order; checks that tags are closed in order."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "path", "use"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in tags]


@pytest.fixture(scope="module")
def elements(text: str) -> Elements:
    return Elements(text)


@pytest.mark.slow
def test_every_order_of_records_gives_the_same_bytes(filled: Store, text: str) -> None:
    assert page_of(filled, shuffle=1) == text


def test_k2_how_images_are_made_ready_is_on_the_page() -> None:
    """FAULTS K2 "mean/std and crop: shown nowhere"; what a record says is text."""
    said = {"mean": [0.5, 0.25], "crop_pct": 0.9, "from": "<b>w.json</b>", "weights": ""}
    records = [fake.record(name, preprocessing=said) for name in ("psaq", "clamp")]
    frame = preprocessing_table([*records, fake.record("noise", model="other")])
    assert frame.index.tolist() == ["vit_a (embedded)"]
    assert frame.loc["vit_a (embedded)"].to_dict() == {
        **{"mean": "0.5 0.25", "crop_pct": "0.9", "from": "<b>w.json</b>", "weights": NONE}
    }
    assert "&lt;b&gt;w.json" in html.table(frame, "title")
    assert not len(preprocessing_table([fake.record("noise")]))


def test_the_page_asks_for_nothing_outside_of_itself(text: str, elements: Elements) -> None:
    for _, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (name, value)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not elements.of("iframe", "object", "embed", "base")
    assert [s for s in elements.of("script") if "src" in s] == []
    (policy,) = (m["content"] for m in elements.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_document_is_well_formed(elements: Elements) -> None:
    assert elements.open == []
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {attributes["aria-labelledby"] for attributes in elements.of("section")}
    links = {attributes["href"][1:] for attributes in elements.of("a")}
    labels = {attributes["for"] for attributes in elements.of("label")}
    references = {
        value for _, a in elements.found for value in re.findall(r"url\(#(.+?)\)", " ".join(map(str, a.values())))
    }
    uses = {a["xlink:href"][1:] for a in elements.of("use")}
    assert named | links | labels | references | uses <= set(ids)
    assert len(elements.of("h1")) == 1
    assert all(attributes.get("aria-label") for attributes in elements.of("svg"))
    assert all("alt" in attributes for attributes in elements.of("img"))


def test_it_has_a_section_for_all_that_the_records_hold(elements: Elements) -> None:
    sections = [attributes["id"] for attributes in elements.of("section")]
    assert sections == [
        *("results", "comparison", "accuracy", "pareto", "cross", "bits", "sensitivity", "ranges", "search", "stages"),
        *("iterations", "images", "published", "cells", "provenance"),
    ]


def test_sections_without_content_are_left_out(store: Store) -> None:
    store.save(fake.failed("broken", 0))
    found = Elements(page(results_of(store), Images(store.images, store.snapshots, store.pictures), None, None))
    assert [attributes["id"] for attributes in found.of("section")] == ["results", "comparison", "cells", "provenance"]
    assert found.open == []


@pytest.mark.slow
def test_many_figures_are_folded_but_the_first(store: Store) -> None:
    for place in range(OPEN + 1):
        fake.save(store, fake.record("clamp", model=f"vit_{place}"), fake.outcome(80, place))
    found = Elements(page(results_of(store), Images(store.images, store.snapshots, store.pictures), None, None))
    titles = [text for text in found.texts["summary"] if text.startswith("Time of each stage")]
    assert titles == [f"Time of each stage, vit_{place}" for place in range(OPEN + 1)]
    # One table for all models, then two kinds of figures.
    assert ["open" in attributes for attributes in found.of("details")] == [True, *[True, *[False] * OPEN] * 2]


def test_headers_sort_by_buttons_and_say_their_state(elements: Elements) -> None:
    sortable = [attributes for attributes in elements.of("th") if "aria-sort" in attributes]
    assert len(sortable) > 20
    assert {attributes["aria-sort"] for attributes in sortable} == {"none"}
    assert len([a for a in elements.of("button") if "data-sort" in a]) == len(sortable)


def test_the_payload_is_the_tables(filled: Store, text: str) -> None:
    (payload,) = re.findall(r'<script type="application/json" id="payload">(.*?)</script>', text)
    grids = json.loads(payload)
    assert set(grids) == {"results", "cells", "published"}
    assert grids["cells"]["rows"] == len(filled.records())
    assert grids["published"]["rows"] == len(read().numbers)
    for grid in grids.values():
        for column in grid["columns"]:
            assert len(column["codes"]) == grid["rows"]
            assert set(column["codes"]) == set(range(len(column["levels"])))


def test_text_of_records_cannot_become_markup(text: str, elements: Elements) -> None:
    assert not any("onerror" in attributes for attributes in elements.of("img"))
    assert HOSTILE not in text
    assert "x&lt;/script&gt;" in text  # in the list of skipped cells
    assert "x\\u003c/script>" in text  # in the payload


def test_tables_say_what_those_in_markdown_say(filled: Store, elements: Elements) -> None:
    results = results_of(filled)
    written = tables.comparison(results.summary, results.cells)
    bold = re.findall(r"\*\*(\d.+?)\*\*", written)
    assert bold
    assert set(bold) <= set(elements.texts["strong"])
    for label in set(tables.method_labels(results.summary)):
        assert label in elements.texts["th"], label


def test_provenance_and_stale_records_are_shown(text: str) -> None:
    assert "3 of these records are stale" in text
    assert "Distinct origins of the records" in text


def test_table_escapes_and_merges_headers() -> None:
    frame = pd.DataFrame([["**1**", "a<b", "2"]], index=pd.Index(["m&m"], name="method"))
    frame.columns = pd.MultiIndex.from_tuples([("x", "result"), ("x", "Δ"), ("y", "result")])
    found = str(html.table(frame, "t"))
    assert "<th scope=colgroup colspan=2>x</th><th scope=colgroup colspan=1>y</th>" in found
    assert "<th scope=row>m&amp;m</th><td><strong>1</strong></td><td class=number>a&lt;b</td><td>2</td>" in found


def test_notes_become_a_list() -> None:
    found = str(html.notes("- **a** is *b*\n  and `c`.\n- second < one\n"))
    assert found == (
        "<ul class=notes><li><strong>a</strong> is <em>b</em> and <code>c</code>.</li><li>second &lt; one</li></ul>"
    )
    assert "<code>*</code> marks" in html.notes(notes.REBUILT)


def test_figures_share_no_id_and_repeat_to_the_byte() -> None:
    def drawn() -> Figure:
        figure = Figure(figsize=(3, 2))
        figure.subplots().plot([1, 2], marker="o")
        return figure

    first, again, other = (str(html.figure(drawn(), name, 'a "b"')) for name in ("f0", "f0", "f1"))
    assert first == again
    ids = [set(re.findall(r'\bid="(.+?)"', svg)) for svg in (first, other)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])
    assert "<metadata" not in first
    assert 'aria-label="a &#34;b&#34;"' in first


def test_images_are_kept_as_they_are_unless_large() -> None:
    def decoded(uri: str) -> np.ndarray:
        import base64

        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))

    grey = fake.picture("a")[0]
    np.testing.assert_array_equal(decoded(html.png(grey)), grey[:, :, 0])
    large = np.zeros((224, 225, 3), dtype=np.uint8)
    large[:2, :2] = [[[100, 0, 0], [200, 0, 0]], [[100, 0, 0], [200, 0, 0]]]
    small = decoded(html.png(large))
    assert small.shape == (74, 75, 3)
    assert small[0, 0].tolist() == [67, 0, 0]
    assert len(re.findall("<img ", html.strip(fake.picture("a")))) == html.STRIP


@pytest.mark.slow
def test_the_command_writes_it_beside_the_tables(filled: Store, text: str, tmp_path: Path) -> None:
    from rich.console import Console

    from harness.report.write import write_page

    target = write_page(filled, Catalog.default(), Console(file=io.StringIO()), tmp_path / "new" / "page.html")
    written = target.read_text(encoding="utf-8")
    stale = len(filled.records())  # none was made by this code
    assert written == text.replace("3 of these records", f"{stale} of these records")
    names = {path.name for path in (filled.folder / "report").iterdir()}
    assert {
        "comparison.md",
        "comparison.tex",
        "published.md",
        "published.csv",
        "published.tex",
        "accuracy.svg",
    } <= names
