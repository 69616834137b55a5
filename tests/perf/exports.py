"""What exported files give: `python tests/perf/exports.py FILE`, the embedded models with four methods if no more is
said, and `python tests/perf/exports.py FILE --table` for the tables of docs/export.md.

FILE gets a line of JSON for each cell when it is done; a cell that has one is not measured again, so that the command
is repeated after it was stopped. Files and records go to folders beside it. Where fewer predictions than 99.5 % are the
fake-quantized model's, the line says what is known of the cause: how many codes of the file are torch's, what the
runtime predicts without optimizations, and how the fake-quantized model agrees with itself when the last bit of every
pixel changes. Nothing here is a test: times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the script is run by its path

import onnxruntime  # noqa: E402
import torch  # noqa: E402

from harness.api.contracts import Deployment  # noqa: E402
from harness.api.errors import UsageError  # noqa: E402
from harness.catalog.catalog import Catalog  # noqa: E402
from harness.cli.options import parse_overrides, split  # noqa: E402
from harness.export.codes import compare_codes  # noqa: E402
from harness.export.compare import SAME, Comparison, arrays  # noqa: E402
from harness.export.export import MODEL, Wish, export  # noqa: E402
from harness.export.onnx_file import INPUT  # noqa: E402
from harness.export.remake import Remade, deployment_of, folder_name, remake  # noqa: E402
from harness.export.runtimes import RUNTIMES  # noqa: E402
from harness.io.files import prepare_folder  # noqa: E402
from harness.plan.plan import Request, make_plan  # noqa: E402
from harness.report.sections.exported import exported_frame  # noqa: E402
from harness.results.exported import Exported  # noqa: E402
from harness.results.store import Store  # noqa: E402
from harness.run.checks import probes  # noqa: E402
from harness.run.runner import CellRunner, Settings  # noqa: E402

PROBES = 64
BITS = ("W8A8", "W4A8", "MP4.5")
Line = dict[str, Any]


def lines_of(path: Path) -> list[Line]:
    """What was measured; a line that was cut off is none."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def causes(remade: Remade, deployment: Deployment, path: Path) -> Line:
    """Shares in points: of codes that are torch's, and of equal predictions of the file without optimizations, and of
    the fake-quantized model for images whose every value is the next larger number of float32.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fake, plain = arrays(remade.quantized), arrays(remade.model.net)
    unfused = Comparison(lambda x: session.run(None, {INPUT: x.numpy()}), fake, plain)
    nudged = Comparison(lambda x: fake(torch.nextafter(x, torch.tensor(math.inf))), fake, plain)
    for comparison in (unfused, nudged):
        remade.suite.evaluate(remade.model, comparison, remade.cell.limit)
    codes = compare_codes(path, deployment.module, probes(remade.model, PROBES))
    return {
        "codes": codes and codes.share,
        "near": codes and codes.near_share,
        "unfused": [unfused.to_fake.same, unfused.relative],
        "nudged": [nudged.to_fake.same, nudged.relative],
    }


def measure(remade: Remade, settings: Settings, store: Store, wish: Wish) -> Line:
    """One cell: figures as in the report, more of its times, and the causes of a low agreement."""
    exported, problems = export(remade, settings, store, wish)
    line: Line = exported_frame([exported]).iloc[0].to_dict()
    line |= {"problems": problems, "times": [each.model_dump() for each in exported.runtimes[0].timings]}
    line |= {"largest": exported.runtimes[0].to_fake.largest, "mean": exported.runtimes[0].to_fake.mean}
    line |= {"processor": exported.processor, "features": exported.features, "versions": exported.versions}
    line["float_kernels"] = _floats(exported)
    if line["same"] is not None and line["same"] < SAME:
        deployment = deployment_of(remade, allow_float=wish.allow_float)
        line["causes"] = causes(remade, deployment, wish.to / folder_name(remade.cell) / MODEL)
    return line


def _floats(exported: Exported) -> dict[str, str]:
    return {each.operation: each.why or each.kernel for each in exported.runtimes[0].computed if not each.integer}


def run(arguments: argparse.Namespace) -> None:
    """Measure what has no line yet."""
    torch.set_num_threads(1)
    records, files, cache = (arguments.file.absolute().parent / name for name in ("records", "files", "cache"))
    for folder in (records, files, cache):
        prepare_folder(folder, "FILE")
    catalog, store = Catalog.default(), Store(records)
    request = Request(
        methods=split(arguments.methods),
        models=split(arguments.models),
        bits=split(arguments.bits),
        schemes=split(arguments.schemes),
        suite=arguments.suite,
        data_root=arguments.data_root,
        limit=arguments.limit,
        preset=arguments.preset,
        overrides=parse_overrides(arguments.option),
        references=False,
    )
    plan = make_plan(request, catalog, store)
    settings = Settings(catalog, "cpu", 1, cache, arguments.data_root, plan.requested, False, plan.skips)
    wish = Wish(files, [RUNTIMES["onnxruntime"]], allow_float=True, compare=False)
    runner = CellRunner(settings)
    order = {bits: i for i, bits in enumerate(split(arguments.bits))}
    for cell in sorted((each.cell for each in plan.cells), key=lambda cell: order.get(cell.bits, -1)):
        if cell.is_float or cell.key in {line["key"] for line in lines_of(arguments.file)}:
            continue
        started = time.process_time()
        line: Line = {"key": cell.key, "preset": arguments.preset, "threads": 1}
        try:
            line |= measure(remake(runner, settings, cell, store, lambda *_: None), settings, store, wish)
        except UsageError as error:
            line |= {name: getattr(cell, name) for name in ("model", "method", "bits", "scheme")}
            line["refused"] = str(error)
        line["cpu_seconds"] = time.process_time() - started
        with arguments.file.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")
        sys.stdout.write(f"{cell.label}: {line.get('same', line.get('refused'))}\n")
        sys.stdout.flush()


def tables(lines: list[Line]) -> str:
    """The figures as Markdown, the causes below them."""
    rows = ["| model, scheme | method | bits | fake / file | same % | relative | integer % | smaller | CPU time |"]
    rows += ["|---|---|---|---|---:|---:|---:|---:|---|"]
    notes = []
    lines = sorted(lines, key=lambda line: [line[name] for name in ("model", "scheme", "method", "bits")])
    for line in lines:
        place = f"| {line['model']}, {line['scheme']} | {line['method']} | {line['bits']} |"
        if "refused" in line:
            notes.append(f"{place} {line['refused']} |")
            continue
        times = {each["batch"]: each["float_cpu_ms"] / each["exported_cpu_ms"] for each in line["times"][:2]}
        rows.append(
            f"{place} {line['fake']:.2f} / {line['real']:.2f} | {line['same']:.2f} | {line['relative']:.3f} | "
            f"{line['integer']:.1f} | {line['float_bytes'] / line['bytes']:.2f} | "
            f"{' / '.join(f'{times[batch]:.2f}' for batch in sorted(times))} |"
        )
        if "causes" in line:
            found = line["causes"]
            notes.append(
                f"{place} {line['same']:.2f} | {found['unfused'][0]:.2f} | {found['nudged'][0]:.2f} | "
                f"{found['codes'] or 0:.2f} ({found['near'] or 0:.2f}) |"
            )
    return "\n".join([*rows, "", *notes])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", action="store_true", help="print the lines of FILE as tables and measure nothing")
    parser.add_argument("--methods", default="clamp,psaq,real+repq,real+qdrop")
    parser.add_argument("--models", default="vit,swin")
    parser.add_argument("--bits", default=",".join(BITS))
    parser.add_argument("--schemes", default="matmul,full")
    parser.add_argument("--suite", default="embedded")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--option", action="append", default=[], help="NAME.FIELD=VALUE, as in bench")
    arguments = parser.parse_args()
    if arguments.table:
        sys.stdout.write(f"{tables(lines_of(arguments.file))}\n")
        return
    run(arguments)


if __name__ == "__main__":
    main()
