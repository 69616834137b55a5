"""Text of files and users is shown as text: FAULTS K5 "a method option or model name with `$…$`, ANSI escapes ..."."""

from __future__ import annotations

import csv
import io
import unicodedata
from xml.etree import ElementTree as ET

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from harness.io import text
from harness.report import tables
from harness.report.figures.files import _file_name, save, svg

HOSTILE = (
    *("$x^2$", "$\\alpha", "\x1b[31mred\x1b[0m", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "a|b", "[red]"),
    *("\u202eabc", "\ud800", "a\u2028b", "\x9b31m", "@SUM(1)", "**bold**", "[a](javascript:b)", "`x`", "&lt;", "\\$"),
    *("[/]", "a\nb", "\\|", "+1+1", "-2+3", "\t=1"),
)
texts: st.SearchStrategy[str] = st.one_of(
    st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=()), max_size=12)
)

in_frames = texts.filter(lambda found: not any("\ud800" <= c <= "\udfff" for c in found))  # no record holds others


def unseen(shown: str) -> list[str]:
    return [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@given(texts)
def test_visible_text_has_no_character_that_is_not_seen(given_text):
    shown = text.visible(given_text)
    assert not unseen(shown)
    assert text.visible(shown) == shown
    shown.encode("utf-8")
    if not unseen(given_text):
        assert shown == given_text


@pytest.mark.parametrize(
    "name", ["psaq[steps=10]+omse", "timm:vit_tiny_patch16_224@a.b", "worse <0.001", "fdd *", "81.00 ± 2.00 [2/3]", "×"]
)
def test_ordinary_names_stay_as_they_are(name):
    assert text.visible(name) == text.markdown(name) == text.csv(name) == name


@given(in_frames)
def test_no_spreadsheet_takes_a_cell_for_a_formula(given_text):
    written = tables.csv(pd.DataFrame({"name": [given_text], "x": [-1.5]}))
    _, (cell, number) = csv.reader(io.StringIO(written))
    assert not cell.lstrip().startswith(("=", "@")) and number == "-1.5"
    assert not cell.startswith(("+", "-")) or cell[1:].replace(".", "").replace("e", "").strip("+-").isdecimal()
    assert not unseen(cell)


@given(st.lists(in_frames, min_size=2, max_size=2))
def test_a_table_in_markdown_keeps_its_cells(names):
    lines = tables.markdown(pd.DataFrame({"method": names, "result": ["**9.00**", "8.00"]})).splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3
    assert "**9.00**" in lines[2]
    assert not unseen("".join(lines))


@given(texts)
def test_markdown_has_neither_markup_nor_formulas(given_text):
    bare = text.markdown(given_text)
    for place, character in enumerate(bare):
        if character in "$`|":
            assert bare[place - 1] == "\\"
    assert "](" not in bare
    assert "<script" not in bare.replace("\\<", "")


@given(texts)
def test_latex_has_no_open_group_command_or_formula(given_text):
    bare = text.latex(given_text)
    for known in (*text._LATEX.values(), "{[}", "{*}"):
        bare = bare.replace(known, "")
    assert not set(bare) & set("\\$&#%^~{}<>|")
    assert not text.latex(given_text).startswith(("[", "*"))


def shown_in(drawn: str) -> list[str]:
    return ["".join(found.itertext()) for found in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]


@given(st.sampled_from(HOSTILE))
def test_figures_take_nothing_for_a_formula(given_text):
    figure = Figure(figsize=(1, 1))
    axis = figure.subplots()
    axis.set_title(text.visible(given_text))
    axis.set_xticks([0], [text.visible(given_text)])
    assert shown_in(svg(figure)).count(text.visible(given_text)) == 2


def test_numbers_on_a_logarithmic_axis_keep_their_powers():
    figure = Figure(figsize=(3, 3))
    axis = figure.subplots()
    axis.plot([1, 10], [1, 1e6])
    axis.set_yscale("log")
    assert not any("$" in found for found in shown_in(svg(figure)))


@pytest.mark.parametrize("model", ["x" * 5000, "\u00e9" * 300, "../../x", "a/b"])
def test_k5_names_of_models_over_255_bytes_have_files(tmp_path, model):
    """FAULTS K5 "names over 255 bytes"."""
    path = save(Figure(figsize=(1, 1)), tmp_path, "predictions", model)
    assert path.parent == tmp_path and path.exists()
    assert _file_name(model) != _file_name(model + "y")
