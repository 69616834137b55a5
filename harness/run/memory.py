"""Peak memory of a stretch of code: the CUDA allocator's, or the resident size of the process."""

from __future__ import annotations

import sys
from pathlib import Path

_MIB = 2**20


class MemoryMeter:
    """Peak since the meter was made, absolute and above the level at that moment."""

    def __init__(self, device: str) -> None:
        self._cuda = device if device.startswith("cuda") else None
        self._reused = 0.0
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._start = torch.cuda.memory_allocated(self._cuda) / _MIB
        else:
            _reset_high_water_mark()
            self._start = _status_mib("VmRSS") or _max_rss_mib()

    def include(self, added_mib: float) -> None:
        """Take into account what an earlier run needed to make a result that was now read from a cache."""
        self._reused = max(self._reused, added_mib)

    @property
    def peak_mib(self) -> float:
        """Highest use in MiB."""
        return self._start + self.added_mib

    @property
    def added_mib(self) -> float:
        """Highest use above the level at the start, in MiB."""
        if self._cuda:
            import torch

            now: float = torch.cuda.max_memory_allocated(self._cuda) / _MIB
        else:
            now = _status_mib("VmHWM") or _max_rss_mib()
        return max(now - self._start, self._reused, 0.0)


def _reset_high_water_mark() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: the peak then counts from the start of the process


def _status_mib(field: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def _max_rss_mib() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024
