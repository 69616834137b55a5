"""Writes figures as files; beside `write_report` the only one of the package to do so."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

from harness.io.canonical import digest

DPI = 150
LONGEST = 160  # bytes of a model's name in a file's, which has 255


def save(figure: Figure | None, folder: Path, name: str, model: str = "", *, dpi: int | None = DPI) -> Path | None:
    """Write `<name>_<model>.png` without anything that would differ next time, if there is a figure.

    With None as `dpi` it has the figure's own resolution.
    """
    if figure is None:
        return None
    path = folder / (f"{name}_{_file_name(model)}.png" if model else f"{name}.png")
    write_png(figure, path, dpi)
    return path


def write_png(figure: Figure, path: Path, dpi: int | None = DPI) -> None:
    """Write the figure to a file, likewise."""
    _plain(figure)
    figure.savefig(path, dpi=dpi or "figure", metadata={"Software": None})


def _file_name(model: str) -> str:
    """The model's name as part of a file's; one that is too long for that ends in a hash of the whole."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in model)
    if len(safe.encode(errors="replace")) <= LONGEST:
        return safe
    return f"{safe.encode(errors='replace')[: LONGEST // 2].decode(errors='ignore')}-{digest(model)[:12]}"


def _plain(figure: Figure) -> None:
    """Show names as they are: a `$` in one begins no formula. Numbers on axes are matplotlib's own, and may be one."""
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    numbers = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter | ScalarFormatter)]
    kept = {id(label) for axis in numbers for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in kept:
            text.set_parse_math(False)


def save_svg(figure: Figure | None, folder: Path, name: str) -> Path | None:
    """Write `<name>.svg`, likewise."""
    if figure is None:
        return None
    path = folder / f"{name}.svg"
    path.write_text(svg(figure), encoding="utf-8", newline="\n")
    return path


def svg(figure: Figure) -> str:
    """The figure as SVG: ids depend on nothing but the figure, text stays text."""
    import matplotlib as mpl

    _plain(figure)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "dfqbench", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
