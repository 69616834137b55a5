"""What a runtime is to the export: it opens a file with some threads, and tells what computes each product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Session(Protocol):
    """A loaded file."""

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """All outputs for normalised images (n, channels, height, width), float32."""


class Runtime(Protocol):
    """A program that runs ONNX files on this machine's CPU.

    `package` is what has to be installed, and `supported` whether its results are known to be right.
    """

    name: str
    package: str
    supported: bool

    def version(self) -> str:
        """Version of the installed package."""

    def open(self, path: Path, threads: int) -> Session:
        """Load a file, with all optimizations. Raises UsageError if the runtime cannot."""

    def script(self, path: Path) -> str:
        """Lines of Python that load a file as it is loaded where nothing is set, as the function `run(images)`."""

    def kernels(self, path: Path, products: Sequence[str]) -> Mapping[str, tuple[str, bool]]:
        """Operation -> what computes it in the runtime's own optimized graph, and whether that is integer arithmetic.

        What the runtime gives no account of is left out.
        """


def in_pieces(run: Callable[[np.ndarray], list[np.ndarray]], images: np.ndarray, size: int | None) -> list[np.ndarray]:
    """Outputs of `run`, which takes `size` images at once, or any number."""
    import numpy as np

    if size is None:
        return run(images)
    found = [run(images[i : i + size]) for i in range(0, len(images), size)]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]
