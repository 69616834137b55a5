"""What the pages say is there: links, anchors, files and sessions of nox."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/**/*.md"), *ROOT.glob("tasks/**/*.md")]
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:harness|methods|tasks|tests|docs|results)/[\w./-]+\.(?:py|md|toml|csv|json|yml))`")
PLACEHOLDER = re.compile(r"/[A-Z]+\.\w+$")  # NAME.toml
MADE = ("results/runs/", "results/cache/")  # by commands, so that no checkout has them


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings; of equal ones the first."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text(page)), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", text(page))):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    named = [name for name in NAMED.findall(text(page)) if not name.startswith(MADE) and not PLACEHOLDER.search(name)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_sessions_that_are_named_exist():
    defined = re.findall(r"^def (\w+)\(session", text(ROOT / "noxfile.py"), re.MULTILINE)
    named = {name for page in PAGES for name in re.findall(r"\bnox -s ([\w-]+)", text(page))}
    assert len(named) > 5
    assert named - set(defined) == set()


def test_code_names_no_page_that_is_not_there():
    """Comments and docstrings send readers to pages of this project alone."""
    modules = [module for folder in ("harness", "methods", "tasks") for module in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 100
    pages = {page.name for page in PAGES}
    missing = {
        (str(module.relative_to(ROOT)), name)
        for module in modules
        for name in re.findall(r"\b([A-Z_]+\.md)\b", text(module))
        if name not in pages
    }
    assert missing == set()
