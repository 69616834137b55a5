"""A cell measured again, by the same path, for the quantized model that its number stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.contracts import Deployable, Deployment, QuantizedModel, Suite, VisionModel
from harness.api.errors import UsageError
from harness.api.plugins import imported
from harness.api.spec import split_scheme
from harness.catalog.code import code_for
from harness.identity.cell import Cell
from harness.io.files import reason
from harness.results.provenance import is_stale
from harness.results.record import Record
from harness.results.sidecars import decisive
from harness.results.store import Store
from harness.run.runner import CellRunner, Measured, Progress, Settings

if TYPE_CHECKING:
    import pandas as pd

MOST_FLOAT = 10.0  # points of all multiply-accumulates that may be in float unsaid


@dataclass(frozen=True)
class Remade:
    """A cell's model with what it was measured with."""

    cell: Cell
    suite: Suite
    model: VisionModel
    quantized: QuantizedModel
    measured: Measured
    requested: str  # the model as the user named it

    @property
    def record(self) -> Record:
        """Of this measurement."""
        return self.measured.record


def check_exportable(cell: Cell) -> None:
    """Raise UsageError for what is known beforehand to have no file of its own: a whole detector or segmentor."""
    if cell.is_float:
        raise UsageError("the float reference is not quantized; every export has its file, float.onnx")
    if cell.task != "classification" and split_scheme(cell.scheme)[1] is None:
        raise UsageError(
            f"a whole {cell.task} model cannot be exported, since boxes and masks are computed by code that depends on "
            f"the image; export its backbone: --schemes {cell.scheme}:backbone"
        )


def remake(runner: CellRunner, settings: Settings, cell: Cell, store: Store, progress: Progress) -> Remade:
    """Measure `cell` and compare its outcomes with those that are stored; a cell that has none is stored.

    Raises:
        UsageError: it fails, is skipped, or gives other outcomes than the record.
    """
    kept: list[tuple[Suite, VisionModel, QuantizedModel]] = []
    measured = runner.measure(cell, progress, lambda *found: kept.append(found))
    record = measured.record
    if record.failure is not None:
        raise UsageError(f"{cell.label} fails ({record.failure.headline})")
    if record.status == "skipped":
        raise UsageError(f"{cell.label} is skipped: {record.reason}")
    stored = store.record(cell.key)
    if stored is not None and stored.status == "ok" and store.complete(stored):
        _check_same(stored, measured, store, settings)
    else:
        try:
            store.save(record, measured.outcomes, measured.images, measured.snapshots, measured.pictures)
        except OSError as error:
            raise UsageError(f"cannot write to folder {store.folder} ({reason(error)}); choose another --out") from None
    suite, model, quantized = kept[0]
    return Remade(cell, suite, model, quantized, measured, settings.requested.get(cell.model, cell.model))


def _check_same(stored: Record, measured: Measured, store: Store, settings: Settings) -> None:
    old = store.outcomes(stored.key)
    assert measured.outcomes is not None
    differing = differing_images(old, measured.outcomes)
    if not differing:
        return
    provenance = stored.provenance
    here = measured.record.provenance
    reasons = []
    if is_stale(provenance, code_for(settings.catalog, stored.cell)):
        reasons.append("it is stale: other code or versions made it")
    if provenance.threads != here.threads:
        reasons.append(f"it was made with {provenance.threads} threads, not {here.threads}")
    if provenance.hardware.get("processor") != here.hardware.get("processor") or provenance.device != here.device:
        reasons.append("it was made on another processor")
    raise UsageError(
        f"the model made now differs from the record of {stored.cell.label} on {differing:,} of {len(old):,} images"
        f"{(reasons and ' (' + ', and '.join(reasons) + ')') or ''}; measure the cell anew with bench --rerun all"
    )


def differing_images(old: pd.DataFrame, new: pd.DataFrame) -> int:
    """How many images have other outcomes.

    Args:
        old: as it was read from a results folder, where values of several numbers are lists or arrays.
        new: as a suite gave it.
    """
    old, new = (decisive(frame).map(_plain) for frame in (old, new))
    if old.equals(new):
        return 0
    return int((old != new).any(axis=1).sum()) if old.shape == new.shape else len(old)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def deployment_of(remade: Remade, *, allow_float: bool) -> Deployment:
    """The model as it is deployed.

    Raises:
        UsageError: it has no integer form, or more of it runs in float than may without the user's word.
    """
    method = remade.cell.method
    if not isinstance(remade.quantized, Deployable) or not remade.quantized.deployment:
        raise UsageError(
            f"{method} cannot be exported: its {type(remade.quantized).__name__} does not say how it is deployed "
            "(`deployment`, see harness/api/contracts.py)"
        )
    deploy = imported(remade.quantized.deployment, f"what deploys models of method '{method}'")
    try:
        deployment: Deployment = deploy(remade.quantized, remade.model)
    except UsageError as error:
        raise UsageError(f"{method} cannot be exported: {error}") from None
    total = sum(product.macs for product in deployment.products)
    floats = [product for product in deployment.products if not product.integer]
    share = 100.0 * sum(product.macs for product in floats) / max(1, total)
    if share > MOST_FLOAT and not allow_float:
        raise UsageError(
            f"{len(floats)} of {len(deployment.products)} layers and matrix products of {method}, {share:.1f} % of the "
            f"multiply-accumulates, would run in float32 ({floats[0].op}: {floats[0].why}); --allow-float exports it so"
        )
    return deployment


def folder_name(cell: Cell) -> str:
    """Of the folder that an export is written to; the digits of the key tell options apart."""
    parts = (cell.model, cell.method.partition("[")[0], cell.bits, cell.scheme.replace(":", "-"), cell.key[:8])
    text = "-".join(parts)
    return "".join(c if c.isalnum() or c in "-_.+" else "-" for c in text)[-120:]


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the model files in a folder."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.suffix in _MODELS}


_MODELS = (".onnx", ".safetensors")
