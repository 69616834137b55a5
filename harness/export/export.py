"""An export from the cell to its folder: remade, written, run, compared, timed, described."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness.api.contracts import Deployment, Evaluation
from harness.api.errors import UsageError
from harness.api.images import probes
from harness.catalog.code import code_for
from harness.export.artefact import ARTEFACT, save_artefact
from harness.export.card import table, write_card
from harness.export.compare import Comparison, arrays, verdict
from harness.export.competitors import competitors
from harness.export.onnx_file import write_float, write_quantized
from harness.export.remake import Remade, deployment_of, folder_name, remake, sizes
from harness.export.runtimes.base import Runtime, Session
from harness.export.speed import peak_mib, processor_features, timings
from harness.identity.cell import Cell
from harness.io.exit_codes import OK
from harness.io.files import prepare_folder, reason
from harness.results.exported import FOLDER, Computed, Difference, Exported, InRuntime, keep_exported
from harness.results.provenance import processor_of
from harness.results.store import Store
from harness.run.machine import usable_cores
from harness.run.runner import CellRunner, Settings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

WRONG = 1
MODEL, FLOAT, RESULT = "model.onnx", "float.onnx", "export.json"
_PACKAGES = ("dfqbench", "torch", "onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Wish:
    """What the user asks for: where to, which runtimes check the file, and whether much of it may run in float."""

    to: Path
    runtimes: Sequence[Runtime]
    allow_float: bool = False
    compare: bool = True


@dataclass
class _Seen:
    """The first image of an evaluation, for the card."""

    image: np.ndarray | None = None


def export_cells(cells: Sequence[Cell], settings: Settings, store: Store, wish: Wish, console: Console) -> int:
    """Export each of the cells; the exit code: 1 where a runtime does not compute the quantized model.

    Raises:
        UsageError: a cell cannot be remade or exported, or something cannot be written.
    """
    runner = CellRunner(settings)
    code = OK
    for cell in cells:
        console.print(f"{cell.label}: measured again ...", markup=False, highlight=False)
        remade = remake(runner, settings, cell, store, lambda *_: None)
        exported, problems = export(remade, settings, store, wish)
        for line in table(exported):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(f"Wrote {wish.to / folder_name(cell)}.", markup=False, highlight=False, soft_wrap=True)
        for problem in problems:
            console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
            code = WRONG
    return code


def export(remade: Remade, settings: Settings, store: Store, wish: Wish) -> tuple[Exported, list[str]]:
    """Write and check the files of one cell; what is known of them, and a sentence for each runtime not to be used."""
    cell, model = remade.cell, remade.model
    deployment = deployment_of(remade, allow_float=wish.allow_float)
    folder = wish.to / folder_name(cell)
    prepare_folder(folder, "--to")
    plain = model.net.get_submodule(model.part or "")
    images = probes(model, 2)
    said = _metadata(remade)
    try:
        write_float(plain, images, folder / FLOAT, said | {"bits": "FP32"})
        at_once = write_quantized(deployment, images, folder / MODEL, said)
        not_kept = save_artefact(remade, folder / ARTEFACT)
    except OSError as error:
        raise UsageError(f"cannot write to folder {folder} ({reason(error)}); choose another with --to") from None
    found: list[InRuntime] = []
    problems: list[str] = []
    seen = _Seen()
    quantization = Difference(same=None, mean=0.0, rms=0.0, largest=0.0)
    for runtime in wish.runtimes:
        try:
            one, quantization = _in_runtime(
                runtime, remade, deployment, folder=folder, threads=settings.threads, seen=seen
            )
        except UsageError as error:
            problems.append(f"{error}: {folder / MODEL} cannot be used with it.")
            continue
        found.append(one)
        if one.verdict == "wrong":
            problems.append(_wrong(one, folder / MODEL))
    others = competitors(remade, folder / FLOAT, settings.threads, seen.image) if wish.compare and found else []
    exported = Exported(
        key=cell.key,
        cell=cell,
        primary_metric=remade.suite.primary_metric,
        images=len(remade.measured.outcomes) if remade.measured.outcomes is not None else 0,
        metrics=dict(remade.record.metrics),
        float_metrics=found[0].float_metrics if found else {},
        quantization=quantization,
        files=sizes(folder),
        runtimes=found,
        competitors=others,
        processor=processor_of(model.device),
        features=processor_features(),
        code=code_for(settings.catalog, cell).fingerprint,
        versions={name: found_version for name in _PACKAGES if (found_version := _version(name))},
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        folder=folder.name,
        not_kept=not_kept,
        at_once=at_once,
    )
    keep_exported(exported, folder / RESULT)
    keep_exported(exported, store.folder / FOLDER / f"{cell.key}.json")
    write_card(exported, model, folder, seen.image if model.part is None else None)
    return exported, problems


def _in_runtime(
    runtime: Runtime, remade: Remade, deployment: Deployment, *, folder: Path, threads: int, seen: _Seen
) -> tuple[InRuntime, Difference]:
    import numpy as np

    model, limit = remade.model, remade.cell.limit
    plain = model.net.get_submodule(model.part or "")
    fake: Callable[[Tensor], Any] = remade.quantized if model.part is None else deployment.module
    session = runtime.open(folder / MODEL, threads)
    comparison = Comparison(_run(session, seen), arrays(fake), arrays(plain))
    metrics = _evaluate(remade, comparison, limit).metrics
    in_float = _tensors(runtime.open(folder / FLOAT, threads))
    float_metrics = _evaluate(remade, in_float, limit).metrics
    kernels = runtime.kernels(folder / MODEL, [product.op for product in deployment.products])
    shape = (1, *model.input_shape)
    image = np.zeros(shape, np.float32) if seen.image is None else seen.image[None]
    to_fake = comparison.to_fake
    found = InRuntime(
        runtime=runtime.name,
        version=runtime.version(),
        supported=runtime.supported,
        metrics=dict(metrics),
        float_metrics=dict(float_metrics),
        to_fake=to_fake,
        relative=comparison.relative,
        verdict=verdict(to_fake, comparison.relative),
        computed=[
            Computed(
                operation=product.op,
                macs=product.macs,
                codes=product.integer,
                why=product.why,
                kernel=kernels.get(product.op, ("", False))[0],
                integer=kernels.get(product.op, ("", False))[1],
            )
            for product in deployment.products
        ],
        timings=timings(runtime, folder / MODEL, folder / FLOAT, image, usable_cores()),
        peak_mib=peak_mib(runtime, folder / MODEL, shape),
        float_peak_mib=peak_mib(runtime, folder / FLOAT, shape),
    )
    return found, comparison.quantization


def _evaluate(remade: Remade, forward: Callable[..., Any], limit: int | None) -> Evaluation:
    """The suite's own evaluation; of a part, the float network with that part in the runtime's hands."""
    part = remade.model.part
    if part is None:
        return remade.suite.evaluate(remade.model, forward, limit)
    net = _with_part(remade.model.net, part, forward)
    return remade.suite.evaluate(remade.model, net, limit)


def _with_part(net: nn.Module, part: str, forward: Callable[..., Any]) -> nn.Module:
    from torch import nn as modules

    class Part(modules.Module):
        def forward(self, images: Tensor) -> Any:
            return forward(images)

    copied = copy.deepcopy(net)
    parent, _, name = part.rpartition(".")
    setattr(copied.get_submodule(parent), name, Part())
    return copied.eval()


def _array(images: Tensor) -> np.ndarray:
    return images.detach().cpu().contiguous().numpy()


def _run(session: Session, seen: _Seen) -> Callable[[Tensor], list[np.ndarray]]:
    def run(images: Tensor) -> list[np.ndarray]:
        given = _array(images)
        if seen.image is None:
            seen.image = given[0].copy()
        return session(given)

    return run


def _tensors(session: Session) -> Callable[[Tensor], Any]:
    import torch

    def run(images: Tensor) -> Any:
        outputs = tuple(torch.from_numpy(each) for each in session(_array(images)))
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def _wrong(one: InRuntime, path: Path) -> str:
    what = (
        f"other predictions than the quantized model on {100.0 - one.to_fake.same:.1f} % of the images"
        if one.to_fake.same is not None
        else f"outputs that differ from the quantized model's by {one.relative:.2f} of what quantization does"
    )
    return f"{one.runtime} {one.version.partition('-')[0]} gives {what}: {path} must not be used with it."


def _metadata(remade: Remade) -> dict[str, str]:
    cell, model = remade.cell, remade.model
    said = {
        "cell": cell.key,
        "suite": cell.suite,
        "model": cell.model,
        "weights": cell.weights,
        "method": cell.method,
        "bits": cell.bits,
        "scheme": cell.scheme,
        "code": remade.record.provenance.code,
        "dfqbench": _version("dfqbench"),
        "mean": str(list(model.mean)),
        "std": str(list(model.std)),
    }
    return said | {f"preprocessing.{name}": str(value) for name, value in model.preprocessing.items()}


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:  # PackageNotFoundError
        return ""
