"""Readings of CLAMP-ViT's search, judged without data: `python tests/perf/readings.py --out readings.jsonl`.

For each reading (form of the layer loss, its scope and weight, kind of search), model, precision and seed the method
runs without its own check of the result. Then the distance of quantized from float output is measured on held-out
synthetic images of each judge (other seeds; two are other sources), before and after the search. No label and no real
image takes part: the evaluation data are identified when cells are planned, and no image of them is run.

One line of JSON for each run is appended to `--out`, and what has its line there is not run again, so that a killed run
continues. A line counts only for the code that made it. The table, `--out` with the suffix `.md`, has the ratio after :
before, geometric means over seeds; below 1 the search came nearer to the float model. Seeds are the outer loop, so that
a part of a run has all readings.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import torch
from resumed import append, context_of, whole_lines
from torch import Tensor

from harness.api.contracts import RunContext, Suite, VisionModel
from harness.api.spec import BitSpec
from harness.catalog.catalog import Catalog
from harness.catalog.code import code_for
from harness.identity.cell import Cell
from harness.plan.plan import Request, make_plan
from harness.results.store import Store
from methods.calibrators.clamp_search.working import State, Working
from methods.end_to_end.clamp.held_out import SOURCES, distances, held_out_images
from methods.end_to_end.clamp.info import INFO, ClampOptions
from methods.end_to_end.clamp.method import Clamp

TASK = "classification"
NETWORK = {"search": "network"}
WHOLE = {"output_loss": "candidate"}
LITERAL = {"local_loss": "infonce", "search_temperature": 0.1}
RELATIONAL = {"local_loss": "relational", "search_temperature": 0.1}
SQUARED = {"local_loss": "mse"}
DRAWN = NETWORK | LITERAL | {"anchors": "both", "negatives": "both", "local_outputs": "blocks"}
READINGS: dict[str, dict[str, Any]] = {
    "infonce": LITERAL,
    "infonce, L^O of every candidate": LITERAL | WHOLE,
    "infonce, temperature 0.3": LITERAL | {"search_temperature": 0.3},
    "infonce, temperature 1": LITERAL | {"search_temperature": 1.0},
    "infonce, temperature 3": LITERAL | {"search_temperature": 3.0},
    "infonce, symmetric": LITERAL | {"anchors": "both"},
    "infonce, negatives of both": LITERAL | {"negatives": "both"},
    "infonce, symmetric, negatives of both": LITERAL | {"anchors": "both", "negatives": "both"},
    "infonce, centred": LITERAL | {"centred": True},
    "infonce, centred, symmetric, negatives of both": LITERAL
    | {"centred": True, "anchors": "both", "negatives": "both"},
    "infonce, own and later": LITERAL | {"local_scope": "later"},
    "infonce x 0.1, L^O of every candidate": LITERAL | WHOLE | {"local_weight": 0.1},
    "infonce x 0.01, L^O of every candidate": LITERAL | WHOLE | {"local_weight": 0.01},
    "relational": RELATIONAL,
    "relational x 0.1": RELATIONAL | {"local_weight": 0.1},
    "relational, temperature 1": RELATIONAL | {"search_temperature": 1.0},
    "relational, centred": RELATIONAL | {"centred": True},
    "relational, centred, temperature 1": RELATIONAL | {"centred": True, "search_temperature": 1.0},
    "relational, temperature 1, own and later": RELATIONAL | {"search_temperature": 1.0, "local_scope": "later"},
    "relational, temperature 1, L^O of every candidate": RELATIONAL | WHOLE | {"search_temperature": 1.0},
    "cosine": {"local_loss": "cosine"},
    "squared error": SQUARED,
    "squared error x 0.1": SQUARED | {"local_weight": 0.1},
    "squared error, L^O of every candidate": SQUARED | WHOLE,
    "L^O alone": WHOLE | {"local_weight": 0.0},
    "network, infonce": NETWORK | LITERAL,
    "network, as drawn": DRAWN,
    "network, as drawn, temperature 1": DRAWN | {"search_temperature": 1.0},
    "network, as drawn, centred": DRAWN | {"centred": True},
    "network, as drawn, x 0.1": DRAWN | {"local_weight": 0.1},
    "network, relational, temperature 1": NETWORK | RELATIONAL | {"search_temperature": 1.0},
    "network, squared error": NETWORK | SQUARED,
    "network, L^O alone": NETWORK | {"local_weight": 0.0},
}
Distances = dict[str, float]  # by judge


class Judged(Clamp):
    """The method, its result always kept, with what every judge says of it."""

    def __init__(self, options: ClampOptions, judges: Mapping[str, Tensor]) -> None:
        super().__init__(options)
        self.before: Distances = {}
        self.after: Distances = {}
        self._judges = judges

    def keeps(
        self, model: VisionModel, working: Working, start: State, judges: Mapping[str, Tensor], ctx: RunContext
    ) -> bool:
        """Measure both, and keep the search's."""
        found = working.state
        self.after = distances(model, working, self._judges)
        working.restore(start)
        self.before = distances(model, working, self._judges)
        working.restore(found)
        return True


class Runner:
    """Runs cells; keeps the last model."""

    def __init__(self, catalog: Catalog, args: argparse.Namespace) -> None:
        self._catalog = catalog
        self._suite: Suite = catalog.tasks.get(TASK).open_suite(args.suite, args.data_root)
        self._cache: Path = args.cache
        self._model: tuple[str, VisionModel] | None = None

    def run(self, cell: Cell, options: ClampOptions) -> dict[str, Any]:
        """Distances by judge before and after the search, and seconds of all but the judges' images."""
        if self._model is None or self._model[0] != cell.model:
            self._model = cell.model, self._suite.load(cell.model, torch.device("cpu"))
        model, spec = self._model[1], BitSpec.parse(cell.bits)
        ctx = context_of(self._catalog, cell, self._cache)
        judges: dict[str, Tensor] = {}
        for name in SOURCES:
            judges |= held_out_images(name, options, model, spec=spec, scheme=cell.scheme, ctx=ctx)
        method, began = Judged(options, judges), time.perf_counter()
        method.quantize(model, spec=spec, scheme=cell.scheme, calib=None, ctx=ctx)
        return {"before": method.before, "after": method.after, "seconds": round(time.perf_counter() - began, 1)}


def cells(catalog: Catalog, args: argparse.Namespace) -> Iterator[tuple[str, Cell, ClampOptions]]:
    """Reading, cell and options, seed by seed."""
    planned: dict[int, list[tuple[str, Cell, ClampOptions]]] = defaultdict(list)
    for reading in args.readings or READINGS:
        # `Judged` always keeps the result; some judge has to be named for it to be asked, and noise costs nothing.
        overrides = {**json.loads(args.options), **READINGS[reading], "held_out": "noise"}
        options = INFO.resolve(args.preset, overrides)
        assert isinstance(options, ClampOptions)
        request = Request(
            ("clamp",),
            tuple(args.models),
            tuple(args.bits),
            schemes=(args.scheme,),
            suite=args.suite,
            data_root=args.data_root,
            seeds=args.seeds,
            preset=args.preset,
            overrides={"clamp": overrides},
            references=False,
        )
        for each in make_plan(request, catalog, Store(args.cache / "no-records")).cells:
            if not each.cell.is_float:
                planned[each.cell.seed].append((reading, each.cell, options))
    for seed in sorted(planned):
        yield from sorted(planned[seed], key=lambda found: found[1].model)  # stable: a model is loaded once a seed


def mean_ratio(lines: Sequence[Mapping[str, Any]], judge: str) -> float:
    """Geometric mean of after : before."""
    logs = [log(max(line["after"][judge], 1e-12) / max(line["before"][judge], 1e-12)) for line in lines]
    return exp(sum(logs) / len(logs))


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table for each judge: a row per reading, a column per model and precision, best mean first."""
    parts = []
    for judge in SOURCES:
        by_column: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for line in lines:
            by_column[f"{line['model']} {line['bits']}"][line["reading"]].append(line)
        readings = {line["reading"] for line in lines}
        # Of readings that are not measured everywhere yet nothing is said that could be compared.
        whole = [r for r in readings if all(r in column for column in by_column.values())]
        ratios = {r: {c: mean_ratio(column[r], judge) for c, column in by_column.items()} for r in whole}
        means = {r: exp(sum(map(log, values.values())) / len(values)) for r, values in ratios.items()}
        heads = ["reading", "mean", "worst", *by_column, "seeds", "seconds"]
        parts.append(f"**judge: {judge}**\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for reading in sorted(whole, key=lambda r: means[r]):
            own = [line for line in lines if line["reading"] == reading]
            values = [f"{value:.3f}" for value in (means[reading], max(ratios[reading].values()))]
            values += [f"{ratios[reading][column]:.3f}" for column in by_column]
            seeds = min(len(column[reading]) for column in by_column.values())
            seconds = sum(line["seconds"] for line in own) / len(own)
            parts[-1] += f"\n| {' | '.join([reading, *values, str(seeds), f'{seconds:.0f}'])} |"
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run what has no line yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="cifar10")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--models", nargs="+", default=["vit", "swin"])
    parser.add_argument("--bits", nargs="+", default=["W8A8", "W4A8", "W4A4", "MP4.5"])
    parser.add_argument("--scheme", default="full")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--options", default="{}", help="JSON of options that all readings share")
    parser.add_argument("--readings", nargs="+", choices=READINGS, metavar="READING", help=f"of: {'; '.join(READINGS)}")
    parser.add_argument("--cache", type=Path, required=True, help="folder of synthesized images")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    args.cache.mkdir(parents=True, exist_ok=True)
    catalog = Catalog.default()
    runner, lines = Runner(catalog, args), []
    done = {line["cell"] + line["code"]: line for line in whole_lines(args.out)}
    wanted = list(cells(catalog, args))
    for number, (reading, cell, options) in enumerate(wanted, start=1):
        code = code_for(catalog, cell).fingerprint
        line = done.get(cell.key + code)
        if line is None:
            line = {"reading": reading, "model": cell.model, "bits": cell.bits, "scheme": cell.scheme}
            line |= {"seed": cell.seed, "cell": cell.key, "code": code, **runner.run(cell, options)}
            append(args.out, line)
        lines.append(line)
        args.out.with_suffix(".md").write_text(tables(lines), encoding="utf-8")
        sys.stdout.write(f"{number}/{len(wanted)} {cell.label}: {reading}, {line['seconds']} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
