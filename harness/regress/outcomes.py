"""What the gate keeps of every image: whether it was right or, where a metric is not a share of right images, a digest.

A digest says whether an image's outcome changed, not how; what the metric would be on resampled images says how much of
a difference such changes make. Both are small, so that a baseline holds no detections and no confusion matrices.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.io.canonical import digest
from harness.report import stats

Correct = NDArray[np.bool_]
_DIGITS = 8  # hexadecimal ones of an image's digest, 32 bits


@dataclass(frozen=True)
class Dense:
    """Outcomes of images that are not simply right or wrong.

    `digests` has one number per image, (images,), equal where the outcome is; `resampled` the metric in points, its
    draws in single precision as in a file.
    """

    digests: NDArray[np.uint32]
    resampled: stats.Resampled

    def __len__(self) -> int:
        return len(self.digests)

    @classmethod
    def of(cls, frame: pd.DataFrame, metric: stats.Metric) -> Dense:
        """The outcomes of a cell, a row per image.

        Columns of floats do not count as part of an outcome: scores are rounded differently where nothing is found
        differently, and whether their order changed is seen in the other columns and in the metric.
        """
        kept = frame[[name for name in frame if not _is_float(frame[name])]]
        rows = (digest([_plain(value) for value in row]) for row in kept.itertuples(index=False))
        digests = np.array([int(found[:_DIGITS], 16) for found in rows], dtype=np.uint32)
        found = stats.resample(metric, len(frame))
        return cls(digests, stats.Resampled(found.images, found.value, _single(found.draws)))

    def pack(self) -> tuple[str, str]:
        """Digests and draws in base64."""
        draws = self.resampled.draws.astype("<f4")
        return _encoded(self.digests.astype("<u4").tobytes()), _encoded(draws.tobytes())

    @classmethod
    def unpack(cls, value: float, images: int, digests: str, draws: str) -> Dense:
        """The outcomes again.

        Raises:
            ValueError: the texts are not base64 of as many numbers as there are images and resamples.
        """
        first, second = (base64.b64decode(text, validate=True) for text in (digests, draws))
        if images < 1 or len(first) != 4 * images or len(second) != 4 * stats.RESAMPLES:
            raise ValueError(f"{len(first)} and {len(second)} bytes of outcomes do not fit {images} images")
        found = np.frombuffer(second, dtype="<f4").astype(np.float64)
        return cls(np.frombuffer(first, dtype="<u4").astype(np.uint32), stats.Resampled(images, value, found))


def pack_correct(correct: Correct) -> str:
    """A bit per image, the first one the highest, in base64."""
    return _encoded(np.packbits(correct).tobytes())


def unpack_correct(text: str, value: float, images: int) -> Correct:
    """Outcome of every image, (images,).

    Raises:
        ValueError: `text` is not base64 of as many bits as there are images, or disagrees with `value`.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if images < 1 or len(packed) != -(-images // 8):
        raise ValueError(f"{len(packed)} bytes of outcomes do not fit {images} images")
    found = np.unpackbits(packed, count=images).astype(bool)
    if not is_share(value, found):
        raise ValueError(f"{100 * found.mean():.4f} % of the outcomes are right, the value is {value:.4f}")
    return found


def is_share(value: float, correct: Correct) -> bool:
    """Whether `value` is the share of images that are right, in points."""
    return len(correct) > 0 and abs(value - 100 * float(correct.mean())) < 1e-6


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _single(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    return draws.astype(np.float32).astype(np.float64)


def _is_float(column: pd.Series) -> bool:
    """Whether a column holds floats, or lists of them."""
    values = np.concatenate([np.atleast_1d(np.asarray(value)) for value in column] or [np.zeros(0)])
    filled = [np.asarray(value) for value in column if np.size(value)]
    return bool(len(values)) and all(np.issubdtype(value.dtype, np.floating) for value in filled)


def _plain(value: object) -> object:
    return np.asarray(value).tolist()
