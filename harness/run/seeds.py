"""Seeds as hashes of named coordinates, so that only what is named can change the random numbers."""

from __future__ import annotations

from typing import Any

from harness.io.canonical import digest


def derive_seed(**coordinates: Any) -> int:
    """A 63-bit seed from JSON-able coordinates; their order does not matter, every value and name does."""
    return int(digest(coordinates), 16) % 2**63
