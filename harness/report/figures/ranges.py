"""Activation ranges against those of real images, site by site: why one image source calibrates better than another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.report.figures.accuracy import Style, calibration, method_styles
from harness.report.frame import CONTEXT
from harness.report.tables import bit_order
from harness.results.record import Record

REFERENCE = "real"  # the image source that ranges are compared with; a name of display only
SAME = [*CONTEXT, "model", "scheme", "bits", "seed"]  # what two records share whose ranges are compared
RANGES = ["low", "high", "real_low", "real_high", "log2_width", "overlap"]
COLUMNS = [*SAME, "method", "role", "calibration_images", "reference", "place", "site", *RANGES]
INCHES_A_SITE = 0.135


def range_frame(records: Iterable[Record], cells: pd.DataFrame) -> pd.DataFrame:
    """One row per site of every record that used no real image: its range beside that of real images.

    A record is compared with that of real images under the same calibrator (`psaq+omse` with `real+omse`), so that the
    images alone differ, or where there is none with `real`, whose ranges are min-max. `log2_width` is the logarithm of
    the ratio of widths, -1 where ours is half as wide; `overlap` is the intersection by the union.
    Both are NaN where a range is infinite or empty. `place` counts sites in execution order. Rows are sorted by
    disagreement, the least overlap first.
    """
    by_key = {record.key: record for record in records}
    measured = cells[(cells["status"] == "ok") & cells["key"].isin(by_key)]
    pairs: list[dict[str, Any]] = []
    sites: list[list[str]] = []  # of every pair
    numbers: list[dict[str, NDArray[np.float64]]] = []  # likewise
    for coordinates, group in measured.groupby(SAME, sort=True):
        references = {
            str(method): key
            for method, key in zip(group["method"], group["key"], strict=True)
            if _plain(method)[0] == REFERENCE
        }
        if not references:
            continue
        common = dict(zip(SAME, coordinates, strict=True))
        for method, role, images, key in group[["method", "role", "calibration_images", "key"]].itertuples(index=False):
            reference = _reference_of(method, references)
            if role not in ("method", "floor") or reference is None:
                continue
            ours, real = (_ranges(by_key[k]) for k in (key, references[reference]))
            sites.append([site for site in ours if site in real])
            numbers.append(_agreement(*(np.array([each[site] for site in sites[-1]]) for each in (ours, real))))
            pairs.append(
                {**common, "method": method, "role": role, "calibration_images": images, "reference": reference}
            )
    return _sorted(pairs, sites, numbers)


def _sorted(
    pairs: list[dict[str, Any]], sites: list[list[str]], numbers: list[dict[str, NDArray[np.float64]]]
) -> pd.DataFrame:
    """The frame, from what is common to the rows of every pair of records and what is not.

    A large folder has millions of rows, so that texts are numbers of categories.
    """
    lengths = [len(own) for own in sites]
    frame = pd.DataFrame(pairs, columns=[name for name in COLUMNS if name not in ("place", "site", *RANGES)])
    texts = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    frame = frame.astype(dict.fromkeys(texts, "category")).take(np.repeat(np.arange(len(pairs)), lengths))
    frame = frame.reset_index(drop=True)
    frame["place"] = np.concatenate([np.arange(length) for length in lengths] or [np.arange(0)])
    frame["site"] = pd.Categorical(list(chain.from_iterable(sites)))
    for name in RANGES:
        frame[name] = np.concatenate([own[name] for own in numbers] or [np.zeros(0)])
    keys = [frame["overlap"], -frame["log2_width"].abs(), *(frame[name] for name in (*SAME, "method", "place"))]
    codes = [key.cat.codes if isinstance(key.dtype, pd.CategoricalDtype) else key for key in reversed(keys)]
    return frame[COLUMNS].take(np.lexsort(codes)).reset_index(drop=True)


def _plain(method: str) -> list[str]:
    """Source and calibrator, if any, without the options in brackets of a name or label."""
    nested = r"\s*\[[^][]*\]"
    while re.search(nested, method):
        method = re.sub(nested, "", method)
    return method.split("+")


def _reference_of(method: str, references: Mapping[str, str]) -> str | None:
    """The best counterpart: same calibrator and options, same calibrator, then what comes first by name."""

    def mismatch(other: str) -> tuple[bool, bool, str]:
        return _plain(other)[1:] != _plain(method)[1:], other.partition(" ")[2] != method.partition(" ")[2], other

    return min(references, key=mismatch, default=None)


def _ranges(record: Record) -> Mapping[str, tuple[float, float]]:
    return record.quantization.activation_ranges if record.quantization else {}


def _agreement(ours: NDArray[np.float64], real: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Columns of `RANGES` from ranges (sites, 2)."""
    (low, high), (real_low, real_high) = ours.reshape(-1, 2).T, real.reshape(-1, 2).T
    with np.errstate(all="ignore"):
        width, real_width = high - low, real_high - real_low
        union = np.maximum(high, real_high) - np.minimum(low, real_low)
        shared = np.maximum(0.0, np.minimum(high, real_high) - np.maximum(low, real_low))
        known = np.isfinite(width) & np.isfinite(real_width) & (width > 0) & (real_width > 0)
        return {
            **{"low": low, "high": high, "real_low": real_low, "real_high": real_high},
            "log2_width": np.where(known, np.log2(width / real_width), np.nan),
            "overlap": np.where(known, shared / union, np.nan),
        }


def range_figure(frame: pd.DataFrame) -> Figure | None:
    """Width against real images at every site of one model: a line per method and a panel per scheme, precision
    and reference, so that the methods of a panel differ in their images alone.
    """
    known = frame[frame["log2_width"].notna()]
    if known.empty:
        return None
    panels = [
        (str(scheme), str(bits), str(reference), panel)
        for (scheme, bits, reference), panel in known.groupby(["scheme", "bits", "reference"])
    ]
    panels.sort(key=lambda item: (item[0], bit_order(item[1], most=True), item[2]))
    styles = method_styles(frame[["method", "role"]].drop_duplicates().sort_values("method"))
    size = (max(7.5, 3.8 + INCHES_A_SITE * (frame["place"].max() + 1)), 0.4 + 2.3 * len(panels) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for place, (axis, (scheme, bits, reference, panel)) in enumerate(zip(axes, panels, strict=True)):
        last = place == len(panels) - 1 or panels[place + 1][0] != scheme  # of those that share their sites
        _draw(axis, panel, styles, named=last)
        amount = calibration(panel)
        amount += "; their mean, band from least to most" if len(panel["seed"].unique()) > 1 else ""
        title = f"{frame['model'].iloc[0]}, {bits}, scheme {scheme}, against {reference}: {amount}"
        axis.set_title(title, fontsize=9, loc="left")
    return figure


def _draw(axis: Axes, panel: pd.DataFrame, styles: Mapping[str, Style], *, named: bool) -> None:
    axis.axhline(0, color="black", linewidth=1)
    for method, style in styles.items():
        of_method = panel[panel["method"] == method]
        if of_method.empty:
            continue
        spread = of_method.groupby("place")["log2_width"].agg(["mean", "min", "max"])
        distance, overlap = of_method["log2_width"].abs().mean(), of_method["overlap"].mean()
        label = f"{method}:\nmean |log2| {distance:.2f}, overlap {overlap:.2f}"
        axis.plot(spread.index, spread["mean"], label=label, **{**style, "markersize": 3, "linewidth": 0.9})
        axis.fill_between(spread.index, spread["min"], spread["max"], color=style["color"], alpha=0.15, linewidth=0)
    names = panel.drop_duplicates("place").sort_values("place")
    axis.set(xlim=(-0.7, names["place"].max() + 0.7), ylabel="log2 (range width /\nwidth on real images)")
    axis.set_xticks(names["place"], names["site"] if named else [""] * len(names), rotation=90, fontsize=7)
    if named:
        axis.set_xlabel("activation site, in execution order", fontsize=9)
    axis.grid(color="#DDDDDD", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
