"""Make the embedded part of Fashion-MNIST from the original files: `python -m tasks.suites.embedded.make_subset`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.suites.embedded.architectures import CLASSES
from tasks.suites.embedded.dataset import FILE
from tasks.suites.embedded.fashion import default_root, load_split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SEED = 20_170_828
# Part of the subset -> split that it comes from, number of images.
PARTS = {"test": ("test", 2_000), "calibration": ("train", 512)}


def choose(labels: NDArray[np.uint8], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `count` random images with the classes taken in turn: the i-th has class i % 10."""
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(CLASSES)]
    return np.array([by_class[i % CLASSES][i // CLASSES] for i in range(count)], dtype=np.int64)


def make_subset(data_root: Path, target: Path) -> None:
    """Write `target`: for each part its images (n, 28, 28) and labels (n,), both uint8, and its original indices (n,).

    Raises:
        FileNotFoundError: the original files are not in `data_root`.
    """
    rng = np.random.default_rng(SEED)
    arrays: dict[str, NDArray[np.generic]] = {}
    for part, (split, count) in PARTS.items():
        images, labels = load_split(data_root, split)
        chosen = choose(labels, count, rng)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images[chosen], labels[chosen]
        arrays[f"{part}_indices"] = chosen.astype(np.int32)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **arrays)  # type: ignore[arg-type]  # dates in the archive are constant


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="make_subset", description="Make the embedded part of Fashion-MNIST.")
    parser.add_argument("--data-root", type=Path, help="folder of the four original .gz files")
    parser.add_argument("--output", type=Path, default=FILE)
    args = parser.parse_args(argv)
    try:
        make_subset(args.data_root or default_root(), args.output)
    except FileNotFoundError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
