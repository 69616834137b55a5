"""A quantized model kept as safetensors: codes, scales and sites, which Python runs again without calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.contracts import QuantizedModel
from harness.api.errors import UsageError, first_line
from harness.identity.cell import Cell
from harness.io.files import read_regular, reason

if TYPE_CHECKING:
    import torch

    from harness.export.remake import Remade

ARTEFACT = "model.safetensors"
_FORMAT = "dfqbench-quantized-1"


def save_artefact(remade: Remade, path: Path) -> str | None:
    """Write the quantized model of a cell; None if all went well, or why it has no such form.

    Codes of at most four bits are packed, two in a byte.
    """
    from safetensors.torch import save_file

    # As the checks of results, the one place here where the methods' own knowledge of their models is asked.
    from methods.core.deployment.kept import NotKeptError, kept

    try:
        tensors, described = kept(remade.quantized)  # type: ignore[arg-type]  # of another kind it is refused
    except NotKeptError as error:
        return str(error)
    shapes = {}
    for name in [each for each in tensors if each.endswith(".codes")]:
        packed = _packed(tensors[name])
        if packed is not None:
            shapes[name] = [str(tensors[name].dtype).removeprefix("torch."), list(tensors[name].shape)]
            tensors[name] = packed
    said: dict[str, Any] = {"cell": remade.cell.model_dump(mode="json"), "model": described, "packed": shapes}
    said["requested"] = remade.requested
    save_file(tensors, str(path), {"format": _FORMAT, "dfqbench": json.dumps(said, separators=(",", ":"))})
    return None


def load_artefact(path: Path, data_root: Path | None = None) -> QuantizedModel:
    """The model; see `dfqbench.load`."""
    from safetensors.torch import load

    from harness.catalog.catalog import Catalog
    from methods.core.deployment.kept import NotKeptError, restored

    try:
        content = read_regular(path)
    except OSError as error:
        raise UsageError(f"model {path} cannot be read ({reason(error)})") from None
    try:
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        if metadata.get("format") != _FORMAT:
            raise ValueError("it was not written by dfqbench export")
        said = json.loads(metadata["dfqbench"])
        cell = Cell.model_validate(said["cell"])
        tensors = load(content)
        for name, (kind, shape) in said["packed"].items():
            tensors[name] = _unpacked(tensors[name], kind, shape)
    except Exception as error:  # what readers of damaged files raise has no common class
        raise UsageError(f"model {path} cannot be read ({first_line(error)}); export it again") from None
    import torch

    suite = Catalog.default().tasks.get(cell.task).open_suite(cell.suite, data_root)
    net = suite.load(said["requested"], torch.device("cpu")).net
    try:
        return restored(net, tensors, said["model"])
    except NotKeptError as error:
        raise UsageError(f"model {path} does not fit network '{cell.model}' ({error}); export it again") from None


def _packed(codes: torch.Tensor) -> torch.Tensor | None:
    """Two codes in a byte, as they follow each other; None if they need more than four bits."""
    import torch

    low = -8 if codes.dtype == torch.int8 else 0
    if int(codes.min()) < low or int(codes.max()) > low + 15:
        return None
    flat = (codes.flatten().to(torch.int16) - low).to(torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(len(flat) % 2)])
    return flat[::2] | (flat[1::2] << 4)


def _unpacked(packed: torch.Tensor, kind: str, shape: list[int]) -> torch.Tensor:
    import torch

    dtype = {"int8": torch.int8, "uint8": torch.uint8}[kind]
    flat = torch.stack([packed & 15, packed >> 4], 1).flatten()[: int(torch.Size(shape).numel())]
    values: torch.Tensor = (flat.to(torch.int16) - (8 if kind == "int8" else 0)).to(dtype).reshape(shape)
    return values
