"""What images depend on beside the float model."""

from __future__ import annotations

from harness.api.spec import BitSpec


class OfFloatModel:
    """Base of sources whose images are the same at every precision and in every scheme."""

    def precision(self, spec: BitSpec, scheme: str) -> str:
        """Of neither bits nor scheme: only the float model takes part."""
        return ""
