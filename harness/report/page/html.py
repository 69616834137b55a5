"""Pieces of a page: tables, notes, figures and images as HTML that needs nothing from outside of itself."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.report.figures.files import svg as svg_of
from harness.report.tables import BOLD, is_numeric

PIXELS_A_POINT = 96 / 72  # SVG sizes of matplotlib are in points
SMALLEST = 0.8  # of a figure's own size, below which it is scrolled instead of shrunk
MARGINS = "6rem"  # of the page, at least, beside a figure
STRIP = 8  # images of a strip
TILE = 112  # largest side of a tile in stored pixels; larger images are averaged down
SHOWN = 84  # side of a tile on the screen, in CSS pixels
_INLINE = (
    (re.compile(r"\*\*(.+?)\*\*"), "strong"),
    (re.compile(r"\*(\w[^*]*?)\*"), "em"),
    (re.compile(r"`(.+?)`"), "code"),
)


def table(frame: pd.DataFrame, caption: str) -> Markup:
    """A frame of strings as a table; `**` around a cell is bold. Two levels of columns become two rows of headers."""
    levels = frame.columns.nlevels
    head = Markup("")
    for level in range(levels):
        names = [str(name) for name in frame.columns.get_level_values(level)]
        first = (
            Markup("<th scope=col>{}</th>").format(frame.index.name or "")
            if level == levels - 1
            else Markup("<td></td>")
        )
        head += Markup("<tr>{}{}</tr>\n").format(first, _headers(names, merged=level < levels - 1))
    right = [is_numeric(name) for name in frame.columns.get_level_values(levels - 1)]
    body = Markup("").join(
        Markup("<tr><th scope=row>{}</th>{}</tr>\n").format(
            label, Markup("").join(_cell(str(text), right=r) for text, r in zip(row, right, strict=True))
        )
        for label, row in zip(frame.index, frame.to_numpy(), strict=True)
    )
    return Markup(
        '<div class=scroll tabindex=0 role=region aria-label="{0}"><table><caption>{0}</caption>\n'
        "<thead>{1}</thead>\n<tbody>{2}</tbody></table></div>"
    ).format(caption, head, body)


def _headers(names: list[str], *, merged: bool) -> Markup:
    """Cells of a header row; equal neighbours share one if `merged`."""
    cells: list[tuple[str, int]] = []
    for name in names:
        if merged and cells and cells[-1][0] == name:
            cells[-1] = (name, cells[-1][1] + 1)
        else:
            cells.append((name, 1))
    return Markup("").join(
        Markup("<th scope=colgroup colspan={}>{}</th>").format(span, name)
        if merged
        else Markup("<th scope=col{}>{}</th>").format(Markup(" class=number") if is_numeric(name) else "", name)
        for name, span in cells
    )


def _cell(text: str, *, right: bool) -> Markup:
    bold = BOLD.fullmatch(text)
    inner = Markup("<strong>{}</strong>").format(bold[1]) if bold else escape(text)
    return Markup("<td{}>{}</td>").format(Markup(" class=number") if right else "", inner)


def notes(text: str) -> Markup:
    """Notes under tables, a list in the Markdown that they are written in, as HTML."""
    items = re.split(r"^- ", text.strip(), flags=re.MULTILINE)[1:]
    return Markup("<ul class=notes>{}</ul>").format(
        Markup("").join(Markup("<li>{}</li>").format(inline(" ".join(item.split()))) for item in items)
    )


def lines(markdown: Iterable[str]) -> Markup:
    """Paragraphs of headings and list items, in the Markdown that tables have below them, as HTML."""
    parts = []
    for line in markdown:
        if line.startswith("## "):
            parts.append(Markup("<h3>{}</h3>").format(line[3:].strip()))
        elif line.startswith("- "):
            parts.append(Markup("<p class=item>{}</p>").format(line[2:]))
    return Markup("\n").join(parts)


def inline(text: str) -> Markup:
    """Bold, italic and code of Markdown as HTML."""
    found = str(escape(text))
    for pattern, tag in _INLINE:
        found = pattern.sub(rf"<{tag}>\1</{tag}>", found)
    return Markup(found)


def figure(drawn: Figure, name: str, label: str) -> Markup:
    """A figure as inline SVG, the same bytes for the same figure.

    Args:
        drawn: The figure.
        name: Unique in the page: begins every id in the SVG, since ids of several SVGs would collide.
        label: What the figure shows, in words.
    """
    text = svg_of(drawn)
    width, height = (float(size) for size in re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2])
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|\burl\(#|\bhref="#)', rf"\g<1>{name}-", body)
    pixels = width * PIXELS_A_POINT
    svg = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {} {}" '
        'role=img aria-label="{}" style="width:{}px;max-width:max({}px,100vw - {})">'
    ).format(f"{width:g}", f"{height:g}", label, round(pixels), round(SMALLEST * pixels), MARGINS)
    return svg + Markup(body)


def strip(images: NDArray[np.uint8]) -> Markup:
    """The first images side by side, each a PNG in the page; enlarged by the browser without smoothing."""
    return Markup("").join(
        Markup('<img src="{}" alt="" width={} height={}>').format(png(image), *_size(image)) for image in shown(images)
    )


def shown(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Those images that a strip has."""
    return images[:STRIP]


def _size(image: NDArray[np.uint8]) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = SHOWN / max(height, width)
    return round(width * scale), round(height * scale)


def png(image: NDArray[np.uint8]) -> str:
    """An image (height, width, channels), large ones averaged down, as a data URI."""
    from PIL import Image

    factor = -(-max(image.shape[:2]) // TILE)
    small = _averaged(image, factor) if factor > 1 else image
    buffer = io.BytesIO()
    picture = Image.fromarray(small[:, :, 0] if small.shape[2] == 1 else small)
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _averaged(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means of squares of `factor` pixels per side; what is left over at the right and at the bottom is cut off."""
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: rows * factor, : columns * factor]
    blocks = whole.reshape(rows, factor, columns, factor, image.shape[2])
    means: NDArray[np.uint8] = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    return means
