"""What can be done with timm's models, family by family: `nox -s families` finds it out. Imports no torch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

FILE = Path(__file__).with_name("timm_families.json")
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- families: made by nox -s families -->", "<!-- end of families -->"
# Methods that stand for all with the same requirements of a network; the first two ask for no blocks.
STAND_FOR = {
    "minmax": "range calibrators",
    "repq": "calibrators without blocks",
    "psaq": "psaq, fdd, psaq2",
    "clamp": "clamp",
    "qdrop": "calibrators by blocks",
    "mimiq": "mimiq, sardfq",
}
SCHEMES = ("full", "matmul")


class Family(BaseModel):
    """The networks of one module of timm.

    Of `models` names `traced` were looked at, and all that follows is about those. `works` counts the members on which
    a method can run, by method and scheme (`psaq/full`); methods stand for all that require the same of a network.
    `why` has the commonest reason of those on which it cannot. `runs` says what happened when methods really ran on the
    `example`, with random weights on small images: "ok", or why not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    models: int
    traced: int
    example: str
    works: dict[str, int] = Field(default_factory=dict)
    why: dict[str, str] = Field(default_factory=dict)
    runs: dict[str, str] = Field(default_factory=dict)

    def possible(self, method: str) -> int:
        """Members on which the method can run in one scheme at least."""
        return max(self.works.get(f"{method}/{scheme}", 0) for scheme in SCHEMES)

    @property
    def verdict(self) -> str:
        """What works, in a few words."""
        counts = [self.possible(method) for method in STAND_FOR]
        if not any(counts):
            return "refused"
        missing = [words for method, words in STAND_FOR.items() if not self.possible(method)]
        if missing == [words for method, words in STAND_FOR.items() if method not in ("minmax", "repq")]:
            text = "calibrators without blocks only"
        else:
            text = f"all but {'; '.join(missing)}" if missing else "all methods"
        fewest = min(count for count in counts if count)
        if max(counts) == self.traced == fewest:
            return text
        return f"{text} ({fewest if fewest == max(counts) else f'{fewest} to {max(counts)}'} of {self.traced} traced)"

    @property
    def reason(self) -> str:
        """Why the first method that cannot run on some members cannot."""
        return next((self.why[method] for method in STAND_FOR if method in self.why), "")

    @property
    def proof(self) -> str:
        """What really ran: methods that did, and those that did not."""
        done = [name for name, result in self.runs.items() if result == "ok"]
        return ", ".join(done)


@cache
def families() -> tuple[Family, ...]:
    """All of them, by name; none before they were made for the first time."""
    if not FILE.exists():
        return ()
    return tuple(Family(**entry) for entry in json.loads(FILE.read_text(encoding="utf-8"))["families"])


def table() -> str:
    """The families as a Markdown table."""
    rows = ["| family | names | traced | example | works | ran | why not |", f"| --- | ---: | ---: |{' --- |' * 4}"]
    for family in families():
        cells: tuple[object, ...] = (family.family, family.models, family.traced)
        cells += (f"`{family.example}`", family.verdict, family.proof, family.reason)
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def documented(text: str) -> str:
    """`text` with the block between the markers made anew.

    Raises:
        ValueError: it has no such block.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no block between '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
