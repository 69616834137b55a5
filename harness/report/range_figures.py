"""Activation ranges against those of real images, site by site: why one image source calibrates better than another."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.figures import Style, calibration, method_styles
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
    rows: list[dict[str, Any]] = []
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
            own = {**common, "method": method, "role": role, "calibration_images": images, "reference": reference}
            for place, site in enumerate(site for site in ours if site in real):
                rows.append({**own, "place": place, "site": site, **_agreement(ours[site], real[site])})
    frame = pd.DataFrame(rows, columns=COLUMNS)
    order = ["overlap", "closeness", *SAME, "method", "place"]
    return frame.assign(closeness=-frame["log2_width"].abs()).sort_values(order, ignore_index=True)[COLUMNS]


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


def _agreement(ours: tuple[float, float], real: tuple[float, float]) -> dict[str, float]:
    width, real_width = ours[1] - ours[0], real[1] - real[0]
    union = max(ours[1], real[1]) - min(ours[0], real[0])
    shared = max(0.0, min(ours[1], real[1]) - max(ours[0], real[0]))
    known = math.isfinite(width) and math.isfinite(real_width) and width > 0 and real_width > 0
    return {
        **{"low": ours[0], "high": ours[1], "real_low": real[0], "real_high": real[1]},
        "log2_width": float(np.log2(width / real_width)) if known else np.nan,
        "overlap": shared / union if known else np.nan,
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
