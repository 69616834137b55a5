"""How a paper's numbers are measured here: a TOML file for each paper, beside the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from harness.api.errors import UsageError
from harness.api.written import Written
from harness.catalog.registry import check_known
from harness.io.files import names_in
from harness.results.published import FOLDER, Sentence, Sentences, read_written

SUBFOLDER = "recipes"  # of the folder of published numbers
TASK, SUITE, METRIC = "classification", "imagenet", "top1"  # the papers' tables that recipes are for


class Tolerance(Written):
    """How many points a faithful run may lie from the printed number, and where that is known from.

    `of` says whose spread it is: the paper's `own`, that of `others` who ran the method again, or `borrowed` from
    another paper since neither is known.
    """

    points: Annotated[float, Field(gt=0, le=100)]
    of: Literal["own", "others", "borrowed"]
    source: Sentence


class Recipe(Written):
    """What a paper's table takes to be measured.

    `sources` are how the `source` of the paper's own rows begins, `quoted` the same of rows that quote it, which count
    for what its own rows lack, and `floats` of those that have its float models, the first that knows a model counting.
    `methods` has what every method of the table is here, with the options of the paper or of the code that made the
    numbers; `models` and `bits` what differs from `names.toml`. `images` is how many images the paper evaluated.

    `settings` says in sentences what the paper fixes and how it is set, `open` what it leaves open and what is taken,
    `differs` what no option here can make as it was there.
    """

    paper: Sentence
    sources: Annotated[tuple[Sentence, ...], Field(min_length=1)]
    quoted: tuple[Sentence, ...] = ()
    floats: tuple[Sentence, ...] = ()
    preset: Literal["quick", "default", "paper"] = "paper"
    seeds: Annotated[int, Field(ge=1, le=1000)] = 3
    images: Annotated[int, Field(ge=1)] = 50_000
    methods: Annotated[Sentences, Field(min_length=1)]
    models: Sentences = Field(default_factory=dict)
    bits: Sentences = Field(default_factory=dict)
    tolerance: Tolerance
    settings: Annotated[Sentences, Field(min_length=1)]
    open: Sentences = Field(default_factory=dict)
    differs: Sentences = Field(default_factory=dict)


def recipe_names(folder: Path = FOLDER) -> list[str]:
    """The papers that have a recipe beside the published numbers in `folder`.

    Raises:
        UsageError: there are none, or their folder cannot be read.
    """
    place = folder / SUBFOLDER
    names = [Path(name).stem for name in names_in(place) if name.endswith(".toml")]
    if not names:
        raise UsageError(f"there are no recipes of papers in {place}; they come with a clone of the repository")
    return names


def read_recipe(name: str, folder: Path = FOLDER) -> Recipe:
    """The recipe of paper `name`.

    Raises:
        UsageError: there is none, or it is malformed.
    """
    check_known("paper", name, recipe_names(folder))
    return read_written(folder / SUBFOLDER / f"{name}.toml", "recipe", Recipe)
