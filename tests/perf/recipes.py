"""Which recipe of source, calibrator and transform is best, judged without data, and its accuracy: one sweep.

    python tests/perf/recipes.py --out results/runs/recipes --cache results/cache --models vit swin --bits W4A4 \
        --methods '{real,psaq,clamp,maskaq,noise}+{repq,qdrop,glfq}' --suite cifar10 --data-root DIR

Every cell is measured as `bench` measures it and kept in `--out`, so that `nox -s report` makes its tables. Beside it
stands, in `--out`/held_out.jsonl, how far the quantized output is from the float one on images that had no part in it:
those of PSAQ-ViT and of CLAMP-ViT, or of other sources (`--judges`), of another seed. No label and no real image takes
part in that. What has its line is not measured again, so that a killed sweep continues; seeds are the outer loop.

The table ranks recipes by that distance alone: for every model, precision and seed relative to the least one there,
then geometric means. The accuracy beside it is looked at afterwards, and Kendall's τ says whether the two agree.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

from resumed import append, context_of, whole_lines
from torch import Tensor

from harness.api.compose import images_of
from harness.api.contracts import QuantizedModel, Suite, VisionModel
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from harness.catalog.code import code_for
from harness.identity.cell import Cell
from harness.identity.names import parse_name, split_names
from harness.plan.plan import Request, make_plan
from harness.report.stats import rank_correlation
from harness.results.store import Store
from harness.run.runner import CellRunner, Settings
from methods.core.held_out import HeldOutContext, output_distance

TASK = "classification"
JUDGES = ("psaq", "clamp")  # two, since a recipe is favoured by images of its own source; better one that none has


class Sweep:
    """Measures cells, one after the other; keeps them and their distances."""

    def __init__(self, catalog: Catalog, args: argparse.Namespace) -> None:
        self._catalog = catalog
        self._settings = Settings(catalog, "cpu", 1, args.cache, args.data_root)
        self._runner = CellRunner(self._settings)
        self._preset: str = args.preset
        self._judges: Sequence[str] = args.judges
        self._overrides: Mapping[str, Mapping[str, Any]] = args.options
        self.store = Store(args.out)
        self._file: Path = args.out / "held_out.jsonl"
        self.lines = {line["cell"]: line for line in whole_lines(self._file)}

    def measure(self, cell: Cell) -> dict[str, Any]:
        """The cell's line, measured if there is none of this code with all judges."""
        code = code_for(self._catalog, cell).fingerprint
        known = self.lines.get(cell.key)
        if known is not None and known["code"] == code and known["distances"].keys() >= set(self._judges):
            return known
        distances: dict[str, float] = {}

        def keep(_suite: Suite, model: VisionModel, quantized: QuantizedModel) -> None:
            for name in self._judges:
                distances[name] = output_distance(model, quantized, self._images(name, cell, model))

        measured = self._runner.measure(cell, lambda *_: None, keep)
        record = measured.record
        self.store.save(
            record, measured.outcomes, measured.images, snapshots=measured.snapshots, pictures=measured.pictures
        )
        line = {"cell": cell.key, "code": code, "model": cell.model, "bits": cell.bits, "method": cell.method}
        line |= {"seed": cell.seed, "status": record.status, "distances": distances}
        line |= {"accuracy": record.metrics.get(record.primary_metric), "seconds": round(record.seconds, 1)}
        append(self._file, line)
        self.lines[cell.key] = line
        return line

    def _images(self, name: str, cell: Cell, model: VisionModel) -> Tensor:
        """Held-out images of a source, made once for a model, precision and seed."""
        own = {name: self._overrides[name]} if name in self._overrides else {}
        info, options = self._catalog.resolve(f"{name}+minmax", self._preset, own).parts[0]
        return images_of(
            info,
            options,
            info.load()(options),
            model,
            spec=BitSpec.parse(cell.bits),
            scheme=cell.scheme,
            ctx=HeldOutContext(context_of(self._catalog, cell, self._settings.cache)),
        )


class Standings:
    """Recipes by their distances, relative to the least data-free one of each model, precision and seed.

    Of recipes that are not measured everywhere yet nothing is said that could be compared.
    """

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        by_place: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = defaultdict(dict)
        for line in lines:
            if line["status"] == "ok" and line["distances"]:
                by_place[line["model"], line["bits"], line["seed"]][line["method"]] = line
        self.places = list(by_place.values())
        found = {line["method"] for line in lines}
        whole = sorted(method for method in found if all(method in place for place in self.places))
        self.free = [method for method in whole if source(method) != "real"]
        self.recipes = whole if self.free else []
        asked = [line["distances"] for place in self.places for line in place.values()]
        self.judges = [name for name in (asked[0] if asked else ()) if all(name in each for each in asked)]
        self._logs = {judge: self._relative(judge) for judge in self.judges}

    def _relative(self, judge: str) -> dict[str, float]:
        """Of every recipe, the mean logarithm of its relative distance on the judge's images."""
        logs = [
            {method: log(max(place[method]["distances"][judge], 1e-12)) for method in self.recipes}
            for place in self.places
        ]
        least = [min(here[method] for method in self.free) for here in logs] if self.free else []
        return {
            method: fmean(here[method] - first for here, first in zip(logs, least, strict=True))
            for method in self.recipes
        }

    def distance(self, method: str, judges: Sequence[str] | None = None) -> float:
        """Geometric mean of its relative distances on the images of `judges`, by default all that every line has."""
        return exp(fmean(self._logs[judge][method] for judge in (self.judges if judges is None else judges)))

    def accuracy(self, method: str) -> float:
        """Mean over models, precisions and seeds."""
        return fmean(place[method]["accuracy"] for place in self.places)

    def tau(self, methods: Sequence[str], *, foreign: bool = False) -> float:
        """Kendall's τ_b between nearness and accuracy of `methods`; `foreign`: each is judged on the images of other
        sources than its own alone.
        """
        asked = {x: [judge for judge in self.judges if not foreign or judge != source(x)] for x in methods}
        known = [method for method, judges in asked.items() if judges]
        return rank_correlation(
            [-self.distance(method, asked[method]) for method in known], [self.accuracy(method) for method in known]
        )


def source(method: str) -> str:
    """Where a recipe's images come from."""
    return parse_name(method)[0].name


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Recipes from the nearest down, and whether that is the order of their accuracies."""
    standings = Standings(lines)
    judges = standings.judges
    heads = ["recipe", "distance", *(f"on {judge}'s images" for judge in judges), "accuracy, looked at afterwards"]
    rows = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for method in sorted(standings.recipes, key=standings.distance):
        apart = (standings.distance(method, [judge]) for judge in judges)
        values = (standings.distance(method), *apart, standings.accuracy(method))
        rows.append(f"| {method} | {' | '.join(f'{value:.2f}' for value in values)} |")
    rows += ["", f"Models, precisions and seeds: {len(standings.places)}.", ""]
    rows += ["Kendall's τ_b between nearness and accuracy, 1 if distance orders recipes as accuracy does:", ""]
    heads = ["model", "precision", "all", "judged on other sources' images alone", "of each source"]
    rows += [f"| {' | '.join(heads)} |", "|---|---|---:|---:|---|"]
    for model, bits in sorted({(line["model"], line["bits"]) for line in lines}):
        here = Standings([line for line in lines if (line["model"], line["bits"]) == (model, bits)])
        joined = [method for method in here.free if len(parse_name(method)) > 1]  # without the floor
        by_source = defaultdict(list)
        for method in joined:
            by_source[source(method)].append(method)
        each = ", ".join(f"{name} {here.tau(methods):.2f}" for name, methods in by_source.items())
        rows.append(f"| {model} | {bits} | {here.tau(joined):.2f} | {here.tau(joined, foreign=True):.2f} | {each} |")
    return "\n".join(rows) + "\n"


def cells(catalog: Catalog, args: argparse.Namespace) -> list[Cell]:
    """Seed by seed and model by model."""
    methods = tuple(split_names(args.methods))
    used = {info.name for method in (*methods, "noise", "real") for info, _ in catalog.find(method)}
    request = Request(
        methods,
        tuple(args.models),
        tuple(args.bits),
        schemes=(args.scheme,),
        suite=args.suite,
        data_root=args.data_root,
        seeds=args.seeds,
        limit=args.limit,
        preset=args.preset,
        overrides={name: options for name, options in args.options.items() if name in used},  # judges have some, too
    )
    planned = [each.cell for each in make_plan(request, catalog, Store(args.out)).cells]
    return sorted(planned, key=lambda cell: (cell.seed, cell.model))  # stable: a model is loaded once a seed


def main() -> None:
    """Measure what has no line yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", required=True, help="as in bench")
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--bits", nargs="+", default=["W4A4"])
    parser.add_argument("--scheme", default="matmul")
    parser.add_argument("--suite", default="embedded")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--options", type=json.loads, default={}, help='JSON, such as {"psaq": {"steps": 75}}')
    parser.add_argument("--judges", nargs="+", default=list(JUDGES), help="sources of the held-out images")
    parser.add_argument("--cache", type=Path, required=True, help="folder of synthesized images")
    parser.add_argument("--out", type=Path, required=True, help="folder of records and distances")
    args = parser.parse_args()
    for folder in (args.cache, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    catalog = Catalog.default()
    sweep, lines = Sweep(catalog, args), []
    wanted = cells(catalog, args)
    for number, cell in enumerate(wanted, start=1):
        line = sweep.measure(cell)
        if cell.is_float:
            continue
        lines.append(line)
        near = ", ".join(f"{judge} {value:.3g}" for judge, value in line["distances"].items())
        sys.stdout.write(f"{number}/{len(wanted)} {cell.label}: {line['accuracy']} ({near}), {line['seconds']} s\n")
        sys.stdout.flush()
        (args.out / "held_out.md").write_text(table(lines), encoding="utf-8")
    sys.stdout.write(table(lines))


if __name__ == "__main__":
    main()
