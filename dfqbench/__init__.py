"""What other programs import of dfqbench: quantized models that were kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["load"]


def load(path: str | Path, *, data_root: str | Path | None = None) -> Any:
    """The quantized model that `dfqbench export` wrote as `model.safetensors`, without calibration.

    Args:
        path: the file.
        data_root: folder of the suite's data, for suites that need one to build their models.

    Returns:
        A model that is called with normalised images (n, channels, height, width) and gives what the fake-quantized
        network gave, with a `summary` of what is quantized; its network is `net`.

    Raises:
        harness.api.errors.UsageError: the file cannot be read, is none of these, or its network cannot be built.
    """
    from harness.export.artefact import load_artefact

    return load_artefact(Path(path), None if data_root is None else Path(data_root))
