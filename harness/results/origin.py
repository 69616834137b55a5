"""What a record says and where it was made, as short texts: for records that contradict each other."""

from __future__ import annotations

from harness.io.text import visible
from harness.results.record import Provenance, Record

NONE = "–"


def result(record: Record) -> str:
    """Metrics, or what stands instead of them."""
    if record.status != "ok":
        return record.status
    return visible(", ".join(f"{name} {value:.4f}" for name, value in sorted(record.metrics.items())))


def origin(provenance: Provenance) -> dict[str, str]:
    """What may explain that two numbers differ."""
    git = provenance.git
    commit = str(git.get("commit", NONE))[:12] if git else NONE
    versions = {name: provenance.versions.get(name) for name in ("torch", "timm", "numpy")}
    hardware = {name: provenance.hardware.get(name) for name in ("processor", "instructions", "gpu")}
    found = {
        "git": commit + (", with changes" if git and git.get("modified") else ""),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value) or NONE,
        "hardware": ", ".join(str(value) for value in hardware.values() if value) or NONE,
        "threads": str(provenance.threads),
    }
    return {name: visible(text) for name, text in found.items()}
