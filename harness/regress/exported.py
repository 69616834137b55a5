"""The gate's exported cell: a file of it has torch's codes, and the runtime computes it with integer kernels.

No accuracy is compared. What this finds is a release of torch, onnxscript or onnxruntime that writes or runs files in
another way than the export counts on.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from harness.api.errors import UsageError
from harness.api.images import probes
from harness.api.written import Written
from harness.identity.cell import Cell
from harness.results.store import Store
from harness.run.runner import CellRunner, Settings

IMAGES = 16
EQUAL, NEAR = 95.0, 99.9  # points of codes that are equal, and at most one apart; see `compare_codes`


class ExportedCase(Written):
    """`[exported]` of a suite: a cell, and how many of its layers and matrix products integer kernels compute."""

    model: str
    method: str
    bits: str
    scheme: str
    integer: int = Field(ge=1)


def exported_faults(case: ExportedCase, cell: Cell, settings: Settings, folder: Path) -> list[str]:
    """What is wrong with the cell's file, a sentence each; empty if nothing is.

    Args:
        case: what is pinned of it.
        cell: what is exported.
        settings: with which cells are measured.
        folder: for the file, emptied by whoever made it.

    Raises:
        UsageError: the cell cannot be made.
    """
    from harness.export.codes import compare_codes
    from harness.export.onnx_file import write_quantized
    from harness.export.remake import deployment_of, remake
    from harness.export.runtimes import RUNTIMES

    store = Store(folder / "exported-cells")
    store.folder.mkdir(parents=True)
    remade = remake(CellRunner(settings), settings, cell, store, lambda *_: None)
    deployment = deployment_of(remade, allow_float=False)
    path = folder / "exported.onnx"
    try:
        write_quantized(deployment, probes(remade.model, 2), path, {})
    except UsageError as error:
        return [str(error)]
    codes = compare_codes(path, deployment.module, probes(remade.model, IMAGES))
    kernels = RUNTIMES["onnxruntime"].kernels(path, [product.op for product in deployment.products])
    integer = sum(whole for _, whole in kernels.values())
    faults = []
    if codes is None:
        faults.append("the file quantizes at other places than torch")
    elif codes.share < EQUAL or codes.near_share < NEAR:
        far = f"{100 - codes.near_share:.3f} % by more than one"
        faults.append(f"{100 - codes.share:.2f} % of the codes in the file differ from torch's, {far}")
    if integer != case.integer:
        of = len(deployment.products)
        faults.append(f"onnxruntime computes {integer} of {of} products with integers, where {case.integer} are pinned")
    return faults
