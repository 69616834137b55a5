"""How the C library keeps memory that tensors have left: for the next ones, instead of giving it back each time.

By default glibc gives memory at the top of the heap back to the system as soon as there is a little of it. A forward
pass makes and drops tensors of megabytes all the time, so that many of them lie on pages that the system has to make
anew: 3 to 15 % of a cell's time, by `nox -s perf -- --only memory`. Elsewhere than in glibc nothing is changed.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# Parameters of `mallopt`, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1
_LARGEST = 2**25  # bytes of what comes from the heap: 32 MiB, the most that all versions of glibc take


@cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def keep_freed_memory() -> None:
    """From now on, memory of this process that is free again stays with it, up to 2 GiB."""
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, _MOST)


def return_freed_memory() -> None:
    """Give back once what is free, so that a measurement of memory begins without what was kept."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
