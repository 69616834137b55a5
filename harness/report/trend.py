"""What the command `history` does: changes of level as text, and the figure."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from harness.api.errors import UsageError
from harness.io.exit_codes import NOTHING_MEASURED, OK
from harness.io.text import visible
from harness.results import history


def show_history(path: Path, figure: Path, console: Console) -> int:
    """Print where series change their level and draw all of them; return the exit code, 4 if there is nothing.

    Raises:
        UsageError: the history cannot be read, or the figure cannot be written.
    """
    from harness.report.figures.files import svg, write_png
    from harness.report.figures.trend import trend_figure

    if figure.suffix not in (".png", ".svg"):
        raise UsageError(f"--figure {figure} must end in .png or .svg")
    frame = history.read(path)
    drawn = trend_figure(frame)
    if drawn is None:
        console.print(f"{path} has no rows.", style="red")
        return NOTHING_MEASURED
    changes = [change for rows in history.series(frame) for change in history.changes(rows)]
    for change in changes:
        console.print(visible(str(change)), markup=False, highlight=False, soft_wrap=True)
    amount = f"{len(history.series(frame))} series over {frame['run'].nunique()} runs"
    console.print(f"{amount}, changes of level: {len(changes)}.", markup=False, highlight=False)
    try:
        figure.parent.mkdir(parents=True, exist_ok=True)
        if figure.suffix == ".svg":
            figure.write_text(svg(drawn), encoding="utf-8", newline="\n")
        else:
            write_png(drawn, figure)
    except OSError as error:
        raise UsageError(f"cannot write --figure {figure} ({error.strerror}); choose another file") from None
    console.print(str(figure), markup=False, highlight=False, soft_wrap=True)
    return OK
