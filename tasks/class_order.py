"""In which order a suite takes the images of its classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def in_turn(labels: Sequence[int] | NDArray[np.integer]) -> list[int]:
    """Indices of all images, the classes in turn, so that any first part of them is as balanced as can be.

    Args:
        labels: class of every image, (n,); within a class the order stays.
    """
    classes = pd.Series(np.asarray(labels, dtype=np.int64))
    rank = classes.groupby(classes).cumcount()
    return np.lexsort((classes, rank)).tolist()
