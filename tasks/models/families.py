"""What can be done with timm's models, family by family: `nox -s families` finds it out. Imports no torch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

FILE = Path(__file__).with_name("timm_families.json")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
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
# The families of timm that are made of attention, in whole or in large part.
# fmt: off
TRANSFORMERS = frozenset((
    "beit", "cait", "coat", "convit", "crossvit", "davit", "deepseek_vit", "deit", "edgenext", "efficientformer",
    "efficientformer_v2", "efficientvit_msra", "eva", "gcvit", "gemma4_vit", "hiera", "hieradet_sam2", "levit",
    "maxxvit", "metaformer", "mobilevit", "mvitv2", "naflexvit", "nest", "nextvit", "pit", "pvt_v2", "qwen3_vit",
    "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "tnt", "twins", "visformer",
    "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam",
    "vitamin", "volo", "xcit",
))
# fmt: on


class Family(BaseModel):
    """The networks of one module of timm.

    Of `models` names `traced` were looked at; `alike` more differ from one of those only in size, so that the same is
    taken to be true of them. All that follows is about these. `works` counts the members on which a method can run, by
    method and scheme (`psaq/full`); methods stand for all that require the same of a network. `why` has the commonest
    reason of those on which it cannot. `runs` says what happened when methods really ran on the `example`, with random
    weights on a few small images: "ok", or why not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    models: int
    traced: int
    alike: int = 0
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
        known = self.traced + self.alike
        if max(counts) == known == fewest:
            return text
        return f"{text} ({fewest if fewest == max(counts) else f'{fewest} to {max(counts)}'} of {known})"

    @property
    def said(self) -> str:
        """What works in a few words, and if nothing does, why not."""
        why = self.reason.rpartition("cannot be quantized in scheme full: ")[2].partition("; ")[0]
        return f"{self.verdict}: {why}" if self.verdict == "refused" and why else self.verdict

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
    rows = [
        "| family | names | traced | alike | example | works | ran | why not |",
        f"| --- |{' ---: |' * 3}{' --- |' * 4}",
    ]
    for family in families():
        cells: tuple[object, ...] = (family.family, family.models, family.traced, family.alike)
        cells += (f"`{family.example}`", family.verdict, family.proof, family.reason)
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def totals() -> str:
    """How many names methods can run on, in a sentence."""
    parts = []
    for kind, members in (
        ("made of attention, in whole or in large part", [f for f in families() if f.family in TRANSFORMERS]),
        ("others", [f for f in families() if f.family not in TRANSFORMERS]),
    ):
        known = sum(family.traced + family.alike for family in members)
        counts = ", ".join(f"`{m}` on {sum(f.possible(m) for f in members):,}" for m in STAND_FOR)
        parts.append(
            f"Families {kind}: {sum(f.models for f in members):,} names, of which "
            f"{sum(f.traced for f in members):,} were traced and {known - sum(f.traced for f in members):,} more are "
            f"alike; {counts}."
        )
    return "\n".join(parts)


def documented(text: str) -> str:
    """`text` with the block between the markers made anew.

    Raises:
        ValueError: it has no such block.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no block between '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n\n{totals()}\n\n{table()}\n\n{END}{after}"
