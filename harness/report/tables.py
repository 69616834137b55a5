"""Tables as text, from the summary frame. The same summary gives the same bytes: no times of day, no paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.catalog import metrics
from harness.io import text as safe
from harness.report import notes as noted
from harness.report import verdicts
from harness.report.frame import GROUP
from harness.report.verdicts import checked, marked, sensitivity, verdict

Shown = Callable[[dict[Any, Any]], str]  # from a row of a frame to what a table shows
NONE = verdicts.NONE
ALIKE = 0.01  # bits of a weight that are no difference
WIDTH = 120  # columns of a terminal that a table must fit
NUMERIC = {
    *("Δ", "synth. s", "calib. s", "search s", "refresh s", "total s", "peak MiB", "size MiB", "GBOPs"),
    *("W bits", "by layer", "A bits", "W eff.", "A eff.", "eff. W/A", "published", "difference"),
}  # columns aligned right, with those of secondary metrics
# columns of the first table of costs; a second one has the others
TIMES = ("method", "synth. s", "calib. s", "search s", "refresh s", "total s", "peak MiB", "seeds")
# columns of costs.csv beside those of the group
COSTS = [
    *("model", "method", "role", "origin", "seeds", "seed_list"),
    *("synthesize_s", "synthesize_cached", "images_s", "calibrate_s", "search_s", "refresh_s", "total_s", "seconds"),
    *("peak_memory_mib", "added_memory_mib", "weight_mib", "gbops", "mean_weight_bits", "mean_layer_bits"),
    *("mean_activation_bits", "effective_weight_bits", "effective_activation_bits", "weight_sites", "activation_sites"),
]


def is_numeric(column: Hashable) -> bool:
    """Whether a column of that title is aligned right."""
    return column in NUMERIC | {*map(metrics.label, metrics.secondary())}


def comparison(summary: pd.DataFrame, cells: pd.DataFrame) -> str:
    """The main table as Markdown: accuracy, difference to float and significance, a table per scheme and precision."""
    parts = ["# Comparison\n"]
    if summary.empty:
        parts.append(_floats(cells) or "Nothing was measured.\n")
    for title, group in groups(summary):
        parts.append(f"## {safe.markdown(title + metric(group))}\n")
        parts += [markdown(part) for part in fitting(comparison_table(group))]
        parts.append(sensitivity(group))
    if not summary.empty:
        parts.append(notes(summary))
    return "\n".join([*parts, *unmeasured(cells)])


def notes(summary: pd.DataFrame) -> str:
    """What is explained below the main tables."""
    other = any(_take_other_bits(group) for _, group in groups(summary))
    effective = noted.EFFECTIVE if other else ""
    return noted.COMPARED + noted.spread(summary) + effective + noted.ends(summary) + noted.marks(summary)


def _floats(cells: pd.DataFrame) -> str:
    """The float models, a line each, for a table without quantized ones; empty if none was measured."""
    floats = cells[(cells["role"] == "float") & (cells["status"] == "ok")]
    texts = [
        f"float {row.model}: {row.accuracy:.2f}, {row.task} on {row.suite}, {row.images:,} images, "
        f"{metrics.title(str(row.metric))}"
        for row in floats.itertuples()
    ]
    return "".join(f"- {safe.markdown(text)}\n" for text in texts)


def costs(summary: pd.DataFrame) -> str:
    """The second tables as Markdown: where time and memory go, then sizes and bits; and the origin of every method."""
    parts = ["# Costs\n"]
    for title, table in _cost_tables(summary):
        times = table[[name for name in table if name in TIMES]]
        sizes = table[[name for name in table if name not in {*TIMES, "origin"} or name == "method"]]
        parts += [f"## {safe.markdown(title)}\n", markdown(times), markdown(sizes)]
    parts.append(_origins(summary))
    parts.append(
        "Mean over seeds. `c`: cached, some of the images were made for another cell; the seconds are what making them"
        " took.\n*total s* is all of quantizing, also what has no column; neither loading nor evaluating.\n"
        "*peak MiB* is the memory of the whole process while quantizing (on CUDA: of the allocator).\n"
        "*size MiB* counts parameters left in float32 too. *GBOPs* are 10^9 multiply-accumulates of one image times "
        "the bits of both factors, a float factor counting 32.\n"
        "*W eff.* and *A eff.* are the bits that a weight and an activation take on average, with their share of "
        "scales and of all else that their format keeps; scales that all images share cost activations nothing.\n"
        "In mixed precision *W bits* is the mean weight width over parameters (the budget's), *by layer* over layers, "
        "*A bits* over activation sites.\n"
    )
    return "\n".join(parts)


def _origins(summary: pd.DataFrame) -> str:
    """Where the methods come from, in a line each, since a column of it would not fit."""
    lines = [
        f"- {origin}: {safe.markdown(', '.join(sorted(methods.unique())))}\n"
        for origin, methods in summary.groupby("origin")["method"]
    ]
    return "Origin of the methods:\n\n" + "".join(lines) if lines else ""


def costs_latex(summary: pd.DataFrame) -> str:
    """The second table for a paper: one booktabs table per group and model."""
    return "\n".join(
        latex_table(title, table.set_index("method"), "".join("r" if is_numeric(name) else "l" for name in table)[1:])
        for title, table in _cost_tables(summary)
    )


def costs_csv(summary: pd.DataFrame) -> str:
    """The costs at full precision."""
    return csv(summary[[*GROUP, *COSTS]])


def _cost_tables(summary: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and table of every group and model; all have the same columns."""
    refresh = bool(summary["refresh_s"].notna().any())
    for title, group in groups(summary):
        places = order(group)
        for model, rows in group.groupby("model", sort=True):
            table = _cost_table(rows.sort_values("method", key=lambda names: names.map(places.index)))
            yield f"{model}, {title}", table if refresh else table.drop(columns="refresh s")


def _cost_table(rows: pd.DataFrame) -> pd.DataFrame:
    def column(name: str, digits: int) -> list[str]:
        return [number(value, digits) for value in rows[name]]

    cached = rows["synthesize_cached"].map({True: " c", False: ""})
    means = {"W bits": "mean_weight_bits", "by layer": "mean_layer_bits", "A bits": "mean_activation_bits"}
    widths = {title: column(name, 2) for title, name in means.items()}
    return pd.DataFrame(
        {
            "method": method_labels(rows),
            "synth. s": pd.Series(column("synthesize_s", 1), index=rows.index) + cached,
            "calib. s": column("calibrate_s", 1),
            "search s": column("search_s", 1),
            "refresh s": column("refresh_s", 1),
            "total s": column("total_s", 1),
            "peak MiB": column("peak_memory_mib", 0),
            "size MiB": column("weight_mib", 2),
            "GBOPs": column("gbops", 2),
            **(widths if rows["bits"].iloc[0].startswith("MP") else {}),
            "W eff.": column("effective_weight_bits", 2),
            "A eff.": column("effective_activation_bits", 2),
            "seeds": rows["seeds"].astype(str),
            "origin": rows["origin"],
        }
    )


def latex(summary: pd.DataFrame) -> str:
    """The main table for a paper: one booktabs table per group, needing the packages booktabs and multirow."""
    return "\n".join(latex_models(title + metric(group), comparison_table(group)) for title, group in groups(summary))


def csv(frame: pd.DataFrame) -> str:
    """Every column at full precision."""
    return _for_csv(frame).to_csv(index=False, lineterminator="\n")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write the same to a file, piece by piece."""
    _for_csv(frame).to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def _for_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with texts that no spreadsheet takes for formulas."""

    def escaped(value: Any) -> Any:
        return safe.csv(value) if isinstance(value, str) else value

    def shown(column: pd.Series[Any]) -> pd.Series[Any]:
        if isinstance(column.dtype, pd.CategoricalDtype):
            return column.cat.rename_categories(escaped)
        return column if pd.api.types.is_numeric_dtype(column) else column.map(escaped)

    return frame.assign(**{str(name): shown(frame[name]) for name in frame})


def groups(summary: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Title and rows of every group; within a scheme the most bits come first."""
    of_data = ["suite", "task", "data"]
    several = len(summary[of_data].drop_duplicates()) > len(summary[of_data[:2]].drop_duplicates())
    before_bits = GROUP[:-1]
    by_group = sorted(
        summary.groupby(GROUP),
        key=lambda item: (*item[1][before_bits].iloc[0], bit_order(item[1]["bits"].iloc[0], most=True)),
    )
    titles: list[str] = []
    for _, group in by_group:
        suite, task, data, _, scheme, bits = group[GROUP].iloc[0]
        images = group["images"].max()
        title = f"{bits}, scheme {scheme}: {task} on {suite}"
        title += f", {images:,.0f} images" if images > 0 else ""
        titles.append(title + (f" (data {data[:8]})" if several else ""))
    for title, (_, group) in zip(titles, by_group, strict=True):
        # A limit that is no less than the data takes the same images as none, in cells of another key.
        yield title + (f" (--limit {group['limit'].iloc[0]})" if titles.count(title) > 1 else ""), group


def metric(group: pd.DataFrame) -> str:
    """The end of a title: what is measured."""
    metric = next(iter(group["metric"].dropna()), None)
    return "" if metric is None else f", {metrics.title(metric)}"


def bit_order(bits: str, *, most: bool = False) -> tuple[float, ...]:
    """Sort key of `W4A8`: by weight bits, then activation bits; the most bits first if `most`."""
    numbers = tuple(float(n) for n in re.findall(r"\d+(?:\.\d+)?", re.sub(r"E\d+M\d+", "", bits)))
    numbers = numbers * 2 if bits.startswith("MX") and len(numbers) == 1 else numbers  # one format for both
    return tuple(-n for n in numbers) if most else numbers


def order(group: pd.DataFrame) -> list[str]:
    """Methods of a group: float first, then by accuracy, unmeasured ones last.

    Over several models the mean distance to the highest accuracy of each counts, so that a method measured on the
    easier model alone gains nothing by it. Unverified results count as unmeasured.
    """
    accuracy = standing(group, "method", ["model"])
    return sorted(accuracy.index, key=lambda name: (name != "float", -accuracy[name], name))


def standing(rows: pd.DataFrame, what: str, within: list[str]) -> pd.Series[float]:
    """Mean distance of each `what` to the highest accuracy `within` the same coordinates; -inf if never measured."""
    rows = rows.assign(accuracy=checked(rows))
    below_top = rows["accuracy"] - rows.groupby(within)["accuracy"].transform("max")
    return below_top.groupby(rows[what]).mean().fillna(-np.inf)


def method_labels(group: pd.DataFrame) -> pd.Series[str]:
    """Names of methods with what the notes explain: reconstruction, training, floor, ceiling."""
    role = _marked(group["role"], {"floor": " (floor)", "ceiling": " (ceiling)"})
    rebuilt = _marked(group["origin"], {"reconstruction": " *"})
    trained = _marked(group["trains"], {"quantizers": " †", "weights": " ‡"})
    return group["method"].astype(str) + rebuilt + trained + role


def _marked(values: pd.Series[Any], marks: Mapping[str, str]) -> pd.Series[str]:
    """The mark of every value, or nothing; text also where there are no values."""
    return values.map(dict(marks)).fillna("").astype(str)


def comparison_table(group: pd.DataFrame) -> pd.DataFrame:
    """The main table of one group: strings, the best data-free method of every model in `**`."""
    labels = dict(zip(group["method"], method_labels(group), strict=True))
    columns: dict[str, Shown] = {
        "": highlighted,
        "Δ": lambda row: number(row["delta"], 2, "+") if row["role"] != "float" else "",
        "vs best": significance,
    }
    for name in metrics.secondary():
        if group[name].notna().any():
            columns[metrics.label(name)] = partial(_secondary, name)
    if _take_other_bits(group):
        columns["eff. W/A"] = _effective
    return by_model(group, {method: labels[method] for method in order(group)}, columns, "method")


def _take_other_bits(group: pd.DataFrame) -> bool:
    """Whether a width says too little: values in blocks, or methods whose weights take more bits than others'."""
    taken = pd.to_numeric(group["effective_weight_bits"]).groupby(group["model"])
    return "MX" in str(group["bits"].iloc[0]) or bool((taken.max() - taken.min() > ALIKE).any())


def _effective(row: dict[Any, Any]) -> str:
    if row["role"] == "float":
        return ""
    return f"{number(row['effective_weight_bits'], 2)}/{number(row['effective_activation_bits'], 2)}"


def _secondary(name: str, row: dict[Any, Any]) -> str:
    return number(row[name], 2)


def by_model(group: pd.DataFrame, labels: Mapping[str, str], columns: Mapping[str, Shown], title: str) -> pd.DataFrame:
    """A table of strings: methods as rows, in the order of `labels`; per model the columns.

    Args:
        group: A row per method and model.
        labels: What is shown for every method.
        columns: Name of each column and how its cell is made from a row of `group`; the accuracy has no name.
        title: Of the column of labels.
    """
    cells: dict[tuple[str, str], list[str]] = {}
    for model, rows in group.groupby("model", sort=True):
        by_method = {row["method"]: row for row in rows.to_dict("records")}
        for name, cell in columns.items():
            cells[(str(model), name)] = [cell(by_method[m]) if m in by_method else NONE for m in labels]
    table = pd.DataFrame(cells, index=pd.Index(list(labels.values()), name=title))
    table.columns = pd.MultiIndex.from_tuples(cells)
    return table


def accuracy(row: dict[Any, Any]) -> str:
    """Mean and spread of a row, or its status; how many seeds it has if some are missing, a mark if unverified."""
    if row["status"] != "ok":
        return str(row["status"])
    text = f"{row['accuracy']:.2f}" + (f" ± {row['accuracy_sd']:.2f}" if row["seeds"] > 1 else "")
    text += f" [{row['seeds']}/{row['seeds_wanted']}]" if row["seeds"] < row["seeds_wanted"] else ""
    return marked(text, row["verified"])


def highlighted(row: dict[Any, Any]) -> str:
    """The `accuracy` of a row, in `**` if it is the best data-free method's."""
    return f"**{accuracy(row)}**" if row["best"] else accuracy(row)


def significance(row: dict[Any, Any]) -> str:
    """How a row stands to the best data-free method: `best`, of one seed `highest`; or the `verdict`; nothing for the
    float model.
    """
    if row["best"]:
        return "best" if row["seeds"] > 1 else verdicts.HIGHEST
    return "" if row["role"] == "float" else verdict(row)


def fitting(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The table of `by_model`, cut by models into as many as are needed to stay within WIDTH."""
    models = list(dict.fromkeys(table.columns.get_level_values(0)))
    while models:
        count = len(models)
        while count > 1 and len(markdown(_flat(table[models[:count]])).splitlines()[0]) > WIDTH:
            count -= 1
        yield _flat(table[models[:count]])
        models = models[count:]


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """Two header rows as one, which is all that Markdown has: the model's name stands over its accuracy."""
    models, names = (table.columns.get_level_values(level) for level in (0, 1))
    return table.set_axis(names.where(names != "", models), axis=1).reset_index(allow_duplicates=True)


def markdown(table: pd.DataFrame) -> str:
    """The frame of strings as a Markdown table, as narrow as its cells; tabulate would widen every header by two."""
    rows = [[_bold(str(cell), safe.markdown, "**{}**") for cell in row] for row in (table.columns, *table.to_numpy())]
    right = [is_numeric(name) for name in table.columns]
    # The rule of a right-aligned column is a dash and a colon at least.
    widths = [max(1 + r, *map(len, column)) for r, column in zip(right, zip(*rows, strict=True), strict=True)]
    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right, strict=True)]
    lines = [
        " | ".join(f"{cell:{'>' if r else '<'}{width}}" for cell, width, r in zip(row, widths, right, strict=True))
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def unmeasured(cells: pd.DataFrame, escape: Callable[[str], str] = safe.markdown) -> Iterator[str]:
    """Paragraphs on the cells that failed or were skipped, with the reason; texts of records go through `escape`."""
    for status in ("failed", "skipped"):
        rows = cells[cells["status"] == status]
        if len(rows):
            yield f"## {len(rows)} {status}\n"
            reasons = rows["reason"].fillna("no reason recorded").str.replace(r"\n.*", "", regex=True, flags=re.DOTALL)
            for _, same in rows.assign(reason=reasons).groupby(["model", "method", "bits", "scheme", "reason"]):
                row, seeds = same.iloc[0], ", ".join(map(str, sorted(same["seed"])))
                text = f"{row['model']} {row['method']} {row['bits']} {row['scheme']}, seed {seeds}: {row['reason']}"
                yield f"- {escape(text)}"
            yield ""


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A number as tables have it."""
    return NONE if value is None or np.isnan(value) else f"{value:{sign},.{digits}f}"


BOLD = re.compile(r"^\*\*(?=[\d–+-])(.+)\*\*$")  # a number, never a name


def _bold(cell: str, escape: Callable[[str], str], bold: str) -> str:
    """A cell escaped, what is bold in it within `bold`."""
    found = BOLD.match(cell)
    return bold.format(escape(found[1])) if found else escape(cell)


def latex_models(title: str, table: pd.DataFrame) -> str:
    """The table of `by_model` for a paper."""
    return latex_table(title, table, "".join("r" if is_numeric(c[1]) else "l" for c in table.columns))


def latex_table(title: str, table: pd.DataFrame, columns: str, *, long: bool = False) -> str:
    """A booktabs table of strings with their alignment, `lr` for two columns; a cell in `**` is bold as in Markdown.

    A `long` one may run over pages, by the package longtable.
    """
    escape: Callable[[object], str] = lambda cell: _bold(str(cell), safe.latex, r"\textbf{{{}}}")  # noqa: E731
    renamed = table.map(escape).rename(index=escape, columns=escape).rename_axis(index=None)
    place: dict[str, Any] = {"environment": "longtable"} if long else {"position": "htbp"}
    return str(
        renamed.style.to_latex(
            hrules=True, column_format="l" + columns, multicol_align="c", caption=escape(title), **place
        )
    )
