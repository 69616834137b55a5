"""In what environment a number was computed, as far as it can change arithmetic, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.io.canonical import digest
from harness.results.provenance import arithmetic_variables, told
from harness.results.record import Provenance

_HARDWARE = ("system", "machine", "processor", "instructions", "gpu")
_FLAGS = ("amx", "asimd", "avx", "f16c", "fma", "sse", "ssse", "sve")  # beginnings of the names of instruction sets
_CPUINFO = Path("/proc/cpuinfo")


class Environment(BaseModel):
    """Versions, hardware (`flags`: the CPU's instruction sets), variables, device and threads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: dict[str, str]
    hardware: dict[str, str]
    variables: dict[str, str]
    device: str
    threads: int

    @classmethod
    def of(cls, provenance: Provenance) -> Environment:
        """The environment of a number that was made on this machine."""
        hardware = {name: str(provenance.hardware[name]) for name in _HARDWARE if name in provenance.hardware}
        return cls(
            versions={n: provenance.versions[n] for n in provenance.decisive or () if n in provenance.versions},
            hardware={**hardware, "flags": " ".join(_flags())},
            variables=arithmetic_variables(provenance.variables or {}),
            device=provenance.device,
            threads=provenance.threads,
        )

    def flat(self) -> dict[str, str]:
        """Everything by name."""
        return {
            **self.versions,
            **self.hardware,
            **self.variables,
            "device": self.device,
            "threads": str(self.threads),
        }

    @property
    def fingerprint(self) -> str:
        """Eight digits that equal environments share."""
        return digest(self.flat())[:8]


def differences(old: Environment, new: Environment) -> list[tuple[str, str, str]]:
    """What differs: name, old value, new value. Of flags only those that one of the two lacks are given.

    Versions are compared where both tell them: which packages count follows from what the code imports, and may be more
    today than when the old environment was written down. Of Python the first two numbers count.
    """
    both = old.versions.keys() & new.versions.keys()
    before, now = (
        e.model_copy(update={"versions": {n: told(v, n) for n, v in e.versions.items() if n in both}}).flat()
        for e in (old, new)
    )
    found = []
    for name in dict.fromkeys([*before, *now]):
        first, second = before.get(name, ""), now.get(name, "")
        if first != second:
            if name == "flags":
                a, b = set(first.split()), set(second.split())
                first, second = " ".join(sorted(a - b)), " ".join(sorted(b - a))
            found.append((name, first or "–", second or "–"))
    return found


def sentence(changes: list[tuple[str, str, str]]) -> str:
    """What the comparison assumes about the environment."""
    if changes:
        return (
            "The environment is not that of the baseline, so outcomes may differ by rounding: the wider tolerances"
            " hold, and a change must be significant."
        )
    return "The environment is that of the baseline: unchanged code gives identical outcomes, so tolerances are tight."


@cache
def _flags() -> tuple[str, ...]:
    """Instruction sets of the CPU that matter to arithmetic; empty where the system does not tell."""
    return flags_in(_CPUINFO.read_text(encoding="utf-8", errors="replace")) if _CPUINFO.exists() else ()


def flags_in(text: str) -> tuple[str, ...]:
    """Instruction sets of the first CPU in the text of /proc/cpuinfo."""
    facts: Mapping[str, str] = {
        name.strip(): value
        for name, _, value in reversed([line.partition(":") for line in text.splitlines() if ":" in line])
    }
    known = f"{facts.get('flags', '')} {facts.get('Features', '')}".split()
    return tuple(sorted({flag for flag in known if flag.startswith(_FLAGS)}))
