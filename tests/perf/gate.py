"""What the regression gate sees, measured: `python tests/perf/gate.py faults|scale|power [--baseline FILE]`.

`faults` injects three faults into the running code, one after the other, and runs the whole gate on each; `scale`
makes one of them smaller and smaller; `power` computes nothing but simulates the rule on the cases of the baseline.
The baseline must have been measured on this machine with the same number of threads, since these runs are compared as
any others are.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table
from torch import Tensor

from harness.api.contracts import VisionModel
from harness.catalog.catalog import Catalog
from harness.regress.baseline import read_baseline
from harness.regress.gate import Options, run_gate
from harness.regress.rule import Limits, detectable, seen
from harness.regress.suite import plan_cases, read_suite
from harness.results.store import Store
from methods.core import range_calibrator
from tasks.suites.embedded.dataset import EmbeddedData

FACTORS = (1.0005, 1.001, 1.002, 1.005, 1.01, 1.02, 1.05)
Fault = Callable[[], AbstractContextManager[Any]]


def scaled(factor: float) -> AbstractContextManager[Any]:
    """Min-max calibration finds weight scales that are `factor` too large."""
    plain = range_calibrator.weight_quantizers

    def wrong(*args: Any, **options: Any) -> Any:
        return {name: replace(q, scale=q.scale * factor) for name, q in plain(*args, **options).items()}

    return mock.patch.object(range_calibrator, "weight_quantizers", wrong)


def unquantized() -> AbstractContextManager[Any]:
    """Min-max calibration overlooks the last activation site."""
    plain = range_calibrator.find_sites

    def wrong(*args: Any, **options: Any) -> Any:
        sites = plain(*args, **options)
        return replace(sites, activations=sites.activations[:-1])

    return mock.patch.object(range_calibrator, "find_sites", wrong)


def swapped() -> AbstractContextManager[Any]:
    """Evaluation images are normalised with mean and standard deviation in each other's place."""
    plain = EmbeddedData.evaluation

    def wrong(self: EmbeddedData, model: VisionModel, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        (mean,), (std,) = model.mean, model.std
        for images, labels in plain(self, model, count):
            yield (images * std + mean - std) / mean, labels

    return mock.patch.object(EmbeddedData, "evaluation", wrong)


FAULTS: Mapping[str, Fault] = {
    "none": nullcontext,
    "weight scale × 1.05 in min-max": lambda: scaled(1.05),
    "one activation site left in float in min-max": unquantized,
    "mean and std swapped in evaluation": swapped,
}


def gate(baseline: Path, fault: AbstractContextManager[Any], threads: int | None) -> tuple[int, list[str]]:
    """Exit code of the gate with a fault, and the cells that its output names."""
    output = io.StringIO()
    options = Options(baseline, history=Path("not-written.csv"), threads=threads, executor="in-process")
    with fault:
        code = run_gate(options, Catalog.default(), {}, Console(file=output, width=140))
    return code, [line for line in output.getvalue().splitlines() if line.startswith(("FAIL ", "MISSING ", "XPASS "))]


@contextmanager
def shown(columns: Sequence[str]) -> Iterator[Table]:
    """A table that is printed when it is full, also if the run is cut short."""
    table = Table(*columns)
    try:
        yield table
    finally:
        Console(width=140).print(table)


def faults(arguments: argparse.Namespace) -> None:
    """Every fault, with the exit code and the first cells that are named."""
    with shown(("fault", "exit code", "cells named", "cells")) as table:
        for name, fault in FAULTS.items():
            code, named = gate(arguments.baseline, fault(), arguments.threads)
            table.add_row(name, str(code), str(len(named)), "\n".join(named), end_section=True)


def scale(arguments: argparse.Namespace) -> None:
    """Growing factors on weight scales, until the gate fails."""
    with shown(("factor", "exit code", "cells named", "cells")) as table:
        for factor in FACTORS:
            code, named = gate(arguments.baseline, scaled(factor), arguments.threads)
            table.add_row(f"{factor:g}", str(code), str(len(named)), "\n".join(named), end_section=True)
            if code:
                break


def power(arguments: argparse.Namespace) -> None:
    """Smallest drops that the rule sees, in points: net, and true ones with 80 and 95 % probability."""
    path = arguments.baseline
    suite, baseline = read_suite(path.with_suffix(".toml")), read_baseline(path.with_suffix(".json"))
    if baseline is None:
        sys.exit(f"there is no baseline {path}")
    cases = plan_cases(suite, path, Catalog.default(), Store(Path("not-written")))
    columns = ("case", "environment", "flips", "net", "80 %", "95 %")
    with shown(columns) as table:
        for case in cases:
            images = baseline.cases[case.name].images
            for repeatable in (True, False):
                limits = Limits(images, case.tolerance if repeatable else case.elsewhere, repeatable)
                # In the same environment nothing flips; elsewhere half of what is tolerated is taken to.
                flips = 0 if repeatable else int(limits.flips / 2)
                found = (
                    detectable(limits, flips, len(cases)),
                    *(seen(limits, flips, len(cases), wanted) for wanted in (0.8, 0.95)),
                )
                place = "same" if repeatable else "other"
                table.add_row(case.name, place, str(flips), *("–" if f is None else f"{f:.2f}" for f in found))


def main() -> None:
    """Parse arguments and run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("faults", "scale", "power"))
    parser.add_argument("--baseline", type=Path, default=Path("results/baselines/embedded.json"))
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    {"faults": faults, "scale": scale, "power": power}[arguments.what](arguments)


if __name__ == "__main__":
    main()
