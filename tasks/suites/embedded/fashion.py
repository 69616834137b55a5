"""Reading the original Fashion-MNIST files (IDX format, MIT licence, Zalando Research)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.files.downloads import downloading, downloads
from tasks.suites.embedded.architectures import IMAGE_SIZE, MEAN, STD

# Where Debian's package `dataset-fashion-mnist` puts the four files.
DEBIAN_ROOT = Path("/usr/share/datasets/fashion-mnist")
_PREFIX = {"train": "train", "test": "t10k"}


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Parse one gzipped IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist, file format section)."""
    with gzip.open(path, "rb") as stream:
        raw = stream.read()
    dims = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape)


def default_root() -> Path:
    """Folder of the original files when the user names none: Debian's package, else what `download` fetched.

    Raises:
        UsageError: there is no such package, and the user has no home folder.
    """
    return DEBIAN_ROOT if DEBIAN_ROOT.is_dir() else downloads() / "FashionMNIST" / "raw"


def download() -> Path:
    """Fetch the original files with torchvision unless they are there; return their folder.

    Raises:
        UsageError: they cannot be had, or what came is damaged.
    """
    from torchvision.datasets import FashionMNIST

    with downloading("Fashion-MNIST", "name the folder of its four .gz files with --data-root"):
        return Path(FashionMNIST(str(downloads()), download=True).raw_folder)


def load_split(root: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (n, 28, 28) and labels (n,) of `split` (`train` or `test`), as the authors published them.

    Raises:
        FileNotFoundError: `root` does not hold the files; the message says how to get them.
    """
    images, labels = (root / f"{_PREFIX[split]}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    for path in (images, labels):
        if not path.is_file():
            raise FileNotFoundError(
                f"Fashion-MNIST file {path} is missing; install Debian's dataset-fashion-mnist, use --download, or "
                "name the folder of the four .gz files with --data-root"
            )
    return _read_idx(images), _read_idx(labels)


def normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pad uint8 (n, 28, 28) with zeros to 32x32 and normalise: float32 (n, 1, 32, 32)."""
    border = (IMAGE_SIZE - images.shape[-1]) // 2
    padded = np.pad(images, ((0, 0), (border, border), (border, border)))
    scaled = padded[:, None].astype(np.float32) / 255.0
    return (scaled - np.float32(MEAN[0])) / np.float32(STD[0])
