"""The committed baseline: one JSON file with the outcomes of every case. Reads and writes it, compares nothing."""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.api.errors import UsageError
from harness.identity.cell import Cell
from harness.io.canonical import digest
from harness.io.files import read_regular, reason, write_atomically
from harness.regress.environment import Environment, differences
from harness.regress.measure import Fact, Measurement
from harness.regress.outcomes import Correct, Dense, pack_correct, unpack_correct
from harness.regress.suite import Case, first_problem, name_of
from harness.results.provenance import Revision


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DenseOutcomes(_Part):
    """Outcomes of a metric that is not a share of right images, see `outcomes.Dense`: both in base64, little-endian.

    `digests` has 32 bits per image, `draws` the metric on resampled images in single precision; `check` is a digest of
    both with the value and the number of images.
    """

    digests: str
    draws: str
    check: str


class Entry(_Part):
    """One case. `correct` has a bit per image, packed (the first image is the highest bit) and in base64; a metric that
    is not a share of right images has `dense` instead. `environment` is set where the outcomes come from another one
    than the baseline's.
    """

    cell: Cell
    metric: str
    value: float
    images: int
    correct: str | None = None
    dense: DenseOutcomes | None = None
    facts: dict[str, Fact]
    environment: Environment | None = None

    @classmethod
    def of(cls, measured: Measurement) -> Entry:
        """The entry of a measurement."""
        found, value, images = measured.outcomes, measured.value, measured.images
        dense = None
        if isinstance(found, Dense):
            digests, draws = found.pack()
            dense = DenseOutcomes(digests=digests, draws=draws, check=_check(value, images, digests, draws))
        return cls(
            cell=measured.cell,
            metric=measured.metric,
            value=value,
            images=images,
            correct=None if isinstance(found, Dense) else pack_correct(found),
            dense=dense,
            facts=dict(measured.facts),
        )

    def outcomes(self) -> Correct | Dense:
        """Outcomes of the images.

        Raises:
            ValueError: they do not fit the number of images, or disagree with `value`.
        """
        if (self.correct is None) == (self.dense is None):
            raise ValueError("it needs either 'correct' or 'dense'")
        if self.correct is not None:
            return unpack_correct(self.correct, self.value, self.images)
        assert self.dense is not None
        digests, draws = self.dense.digests, self.dense.draws
        found = Dense.unpack(self.value, self.images, digests, draws)
        if self.dense.check != _check(self.value, self.images, digests, draws):
            raise ValueError(f"its outcomes are not those of the value {self.value:.4f}")
        return found


def _check(*parts: object) -> str:
    return digest(list(parts))[:16]


class Update(_Part):
    """Why the values became what they are, and at which commit."""

    reason: str
    commit: str
    date: str
    modified: bool

    @classmethod
    def now(cls, reason: str, revision: Revision | None) -> Update:
        """An update at a revision of the project; without one (no git), commit and date are empty."""
        if revision is None:
            return cls(reason=reason, commit="", date="", modified=False)
        return cls(reason=reason, commit=revision.commit, date=revision.date, modified=revision.modified)


class Baseline(_Part):
    """The file. `updates` has every reason, the last one last."""

    schema_version: Literal[1] = 1
    environment: Environment
    updates: Annotated[tuple[Update, ...], Field(min_length=1)]
    cases: dict[str, Entry]


def read_baseline(path: Path) -> Baseline | None:
    """The baseline, or None if there is no such file.

    Raises:
        UsageError: the file is malformed or contradicts itself.
    """
    advice = 'restore it from git, or measure it anew: remove it and run regress --update-baseline "why"'
    try:
        baseline = Baseline.model_validate_json(read_regular(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"baseline {path} cannot be read ({reason(error)}); {advice}") from None
    except ValidationError as error:
        raise UsageError(f"baseline {path} is not valid ({first_problem(error)}); {advice}") from None
    for name, entry in baseline.cases.items():
        try:
            if name != name_of(entry.cell):
                raise ValueError(f"it holds the cell '{name_of(entry.cell)}'")
            entry.outcomes()
        except (ValueError, binascii.Error) as error:
            raise UsageError(f"baseline {path} is not valid (case '{name}': {error}); {advice}") from None
    return baseline


def renewed(
    old: Baseline | None, entries: Sequence[tuple[Case, Entry]], environment: Environment, update: Update
) -> tuple[Baseline, list[str]]:
    """The baseline with the values of `entries`, and the names of the cases that keep their old ones.

    A case that is expected to fail keeps the value that it should have: renewed, it would pass, and nobody would be
    reminded of it. It also keeps the environment of that value if it is another one.
    """
    cases: dict[str, Entry] = {}
    kept = []
    for case, entry in entries:
        if case.xfail and old and case.name in old.cases:
            before = old.cases[case.name]
            origin = before.environment or old.environment
            cases[case.name] = before.model_copy(
                update={"environment": origin if differences(origin, environment) else None}
            )
            kept.append(case.name)
        else:
            cases[case.name] = entry
    updates = (*(old.updates if old else ()), update)
    return Baseline(environment=environment, updates=updates, cases=cases), kept


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write the file; a case's facts stand a line each, so that git shows what an update changed.

    Raises:
        UsageError: it cannot be written.
    """
    content = baseline.model_dump(mode="json")
    for case in content["cases"].values():
        for name in ("correct", "dense", "environment"):
            if case[name] is None:
                del case[name]
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))
    except OSError as error:
        raise UsageError(f"cannot write baseline {path} ({error.strerror}); choose another with --baseline") from None
