"""In which order a suite takes the images of its classes, and a model knows them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.api.errors import UsageError


def in_turn(labels: Sequence[int] | NDArray[np.integer]) -> list[int]:
    """Indices of all images, the classes in turn, so that any first part of them is as balanced as can be.

    Args:
        labels: class of every image, (n,); within a class the order stays.
    """
    classes = pd.Series(np.asarray(labels, dtype=np.int64))
    rank = classes.groupby(classes).cumcount()
    order: list[int] = np.lexsort((classes, rank)).tolist()
    return order


def outputs_of(wanted: Sequence[str], known: Sequence[str], where: str, data: str) -> list[int]:
    """For each class of the data, in their order, which of the model's outputs is its.

    Args:
        wanted: names of the data's classes.
        known: names of the model's outputs, without repetition.
        where: what says the model's names.
        data: whose classes are wanted.

    Raises:
        UsageError: they are not the same names.
    """
    only_data = sorted(set(wanted) - set(known))
    only_model = sorted(set(known) - set(wanted))
    if only_data or only_model:
        parts = [
            f"{len(only)} that {whose}, '{only[0]}' among them"
            for only, whose in ((only_data, f"only {data} has"), (only_model, f"only {where} names"))
            if only
        ]
        raise UsageError(f"the classes of {data} are not those of {where}: {' and '.join(parts)}")
    place = {name: index for index, name in enumerate(known)}
    return [place[name] for name in wanted]


def check_one_order(names: Sequence[str], data: str, remedy: str) -> None:
    """Check that class folders have the same order for all who train on them.

    torchvision sorts them as text; timm counts digits as numbers and takes capitals for small letters.

    Raises:
        UsageError: they have not, so that nobody knows which class an output means.
    """
    for by_text, by_number in zip(sorted(names), sorted(names, key=_natural), strict=True):
        if by_text != by_number:
            raise UsageError(
                f"the classes of {data} have one order for torchvision and another for timm ('{by_text}' or "
                f"'{by_number}' first), and the checkpoint does not say which is meant; {remedy}"
            )


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower())]
