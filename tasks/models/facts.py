"""What users call classifiers, and what is known of how one is used. Imports no torch, so that a plan need not."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "timm:"  # before timm's own names
RANDOM = "random"  # after @: weights drawn anew instead of a file


@dataclass(frozen=True)
class Facts:
    """How a model is used, for its record: where its preprocessing is known from, what tells which class an output
    means, and which of a file's weights were taken. `notices` are sentences for the user.
    """

    origin: str
    classes: str = ""
    weights: str = ""
    notices: tuple[str, ...] = ()
