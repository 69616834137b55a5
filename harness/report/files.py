"""Writes figures as files; beside `write_report` the only one of the package to do so."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

DPI = 150


def save(figure: Figure | None, folder: Path, name: str, model: str = "", *, dpi: int | None = DPI) -> Path | None:
    """Write `<name>_<model>.png` without anything that would differ next time, if there is a figure.

    With None as `dpi` it has the figure's own resolution.
    """
    if figure is None:
        return None
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in model)
    path = folder / (f"{name}_{safe}.png" if model else f"{name}.png")
    figure.savefig(path, dpi=dpi or "figure", metadata={"Software": None})
    return path


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

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "dfqbench", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
