"""The page in a real browser: sorting, filtering, paging, no error, no overflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.results.store import Store

from . import webdriver
from .test_page import fill, page_of

pytestmark = pytest.mark.skipif(bool(webdriver.missing()), reason=webdriver.missing())

WIDTHS = (1280, 390)
ROWS = """
const grid = document.querySelector(`[data-grid="${arguments[0]}"]`);
const heads = [...grid.querySelectorAll("thead th")].map((head) => head.textContent.trim());
const place = heads.indexOf(arguments[1]);
return [...grid.querySelectorAll("tbody tr")].map((row) => row.children[place].textContent);
"""
CLICK = """
const grid = document.querySelector(`[data-grid="${arguments[0]}"]`);
const head = [...grid.querySelectorAll("thead th")].find((head) => head.textContent.trim() === arguments[1]);
head.querySelector("button").click();
return head.getAttribute("aria-sort");
"""
CHOOSE = """
const grid = document.querySelector(`[data-grid="${arguments[0]}"]`);
const label = [...grid.querySelectorAll("label")].find((label) => label.firstChild.textContent.trim() === arguments[1]);
const select = label.querySelector("select");
select.value = [...select.options].find((option) => option.text === arguments[2]).value;
select.dispatchEvent(new Event("change", { bubbles: true }));
"""

WIDE = """
const parts = [...document.querySelectorAll("main > section > *, header > *")];
return parts.filter((part) => part.getBoundingClientRect().right > innerWidth + 1).map((part) => part.outerHTML);
"""
SMALLEST = """
const texts = [...document.querySelectorAll("td, th, p, label, li")];
return Math.min(...texts.map((text) => parseFloat(getComputedStyle(text).fontSize)));
"""
TALLEST = """
const controls = [...document.querySelectorAll("select, input, .filters button, .pager button")];
return Math.max(...controls.map((control) => control.getBoundingClientRect().height));
"""
FETCHED = """
const names = performance.getEntriesByType("resource").map((entry) => entry.name);
return names.filter((name) => !name.startsWith("data:"));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Browser]:
    store = Store(tmp_path_factory.mktemp("cells"))
    fill(store)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(store), encoding="utf-8")
    with webdriver.Browser() as opened:
        opened.resize(WIDTHS[0])
        opened.path = path  # type: ignore[attr-defined]
        yield opened


@pytest.fixture
def loaded(browser: webdriver.Browser) -> webdriver.Browser:
    browser.open(browser.path)  # type: ignore[attr-defined]
    return browser


def rows(browser: webdriver.Browser, grid: str, column: str) -> list[str]:
    found: list[str] = browser.js(ROWS, grid, column)
    return found


def values(texts: list[str]) -> list[float]:
    return [float(text.split()[0]) for text in texts if text[0].isdigit()]


def status(browser: webdriver.Browser, grid: str) -> Any:
    return browser.js(f"return document.querySelector('[data-grid={grid}] [data-status]').textContent")


def test_sorting_is_numeric_both_ways_and_missing_values_stay_last(loaded: webdriver.Browser) -> None:
    column = "top-1 accuracy (%)"
    for state in ("ascending", "descending"):
        assert loaded.js(CLICK, "results", column) == state
        shown = rows(loaded, "results", column)
        found = values(shown)
        assert found == sorted(found, reverse=state == "descending")
        assert len(found) > 10
        assert shown[len(found) :] == ["failed", "skipped"]
    sorted_heads = "return document.querySelectorAll('[data-grid=results] thead th:not([aria-sort=none])').length"
    assert loaded.js(sorted_heads) == 1
    assert loaded.js(CLICK, "results", "bits") == "ascending"
    assert list(dict.fromkeys(rows(loaded, "results", "bits"))) == ["W4A4", "W4A8", "MP4.5", "W6A6", "W8A8"]
    assert loaded.js(sorted_heads) == 1


def test_the_keyboard_sorts_too(loaded: webdriver.Browser) -> None:
    button = "[data-grid=cells] th:nth-child(2) button"
    state = "return document.querySelector('[data-grid=cells] th:nth-child(2)').getAttribute('aria-sort')"
    loaded.type(button, webdriver.ENTER)
    assert loaded.js(state) == "ascending"
    loaded.type(button, webdriver.SPACE)
    assert loaded.js(state) == "descending"


def test_filters_join_and_reset_brings_everything_back(loaded: webdriver.Browser) -> None:
    everything = rows(loaded, "cells", "method")
    loaded.js(CHOOSE, "cells", "bits", "W4A4")
    assert set(rows(loaded, "cells", "bits")) == {"W4A4"}
    loaded.js(CHOOSE, "cells", "role", "floor (noise)")
    assert {name.split()[0] for name in rows(loaded, "cells", "method")} == {"noise+minmax"}
    assert status(loaded, "cells") == f"rows 1 to 2 of 2, of {len(everything)} in all"
    loaded.js("document.querySelector('[data-grid=cells] button[type=reset]').click()")
    assert rows(loaded, "cells", "method") == everything
    loaded.type("#cells-text", "CLAMP w8a8")
    assert set(rows(loaded, "cells", "method")) == {"clamp *"}
    assert set(rows(loaded, "cells", "bits")) == {"W8A8"}
    loaded.type("#cells-text", " nowhere")
    assert rows(loaded, "cells", "method") == []
    assert status(loaded, "cells") == f"0, of {len(everything)} in all"


def test_long_tables_come_in_pages(loaded: webdriver.Browser) -> None:
    first = rows(loaded, "published", "note")
    assert len(first) == 100
    assert status(loaded, "published").startswith("rows 1 to 100 of 5")
    steps = "[data-grid=published] [data-step='{}']"
    assert loaded.js(f'return document.querySelector("{steps.format(-1)}").disabled') is True
    loaded.type(steps.format(1), webdriver.ENTER)
    assert status(loaded, "published").startswith("rows 101 to 200 of 5")
    loaded.js(CLICK, "published", "published")
    assert status(loaded, "published").startswith("rows 1 to 100 of 5")
    found = values(rows(loaded, "published", "published"))
    assert len(found) == 100
    assert found == sorted(found)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_nothing_is_fetched(loaded: webdriver.Browser, width: int) -> None:
    loaded.resize(width)
    try:
        loaded.open(loaded.path)  # type: ignore[attr-defined]
        inner, whole = loaded.js("return [innerWidth, document.documentElement.scrollWidth]")
        assert inner == width
        assert whole <= width
        assert loaded.js(WIDE) == []
        assert loaded.js(SMALLEST) >= 11
        assert loaded.js(TALLEST) < 60
        assert loaded.js(FETCHED) == []
        assert loaded.log() == []
    finally:
        loaded.resize(WIDTHS[0])


def test_the_log_would_show_an_error(loaded: webdriver.Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<script>undefinedFunction()</script>")
    loaded.open(broken)
    assert any("undefinedFunction" in message for message in loaded.log())
