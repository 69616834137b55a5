"""Torch's switches that cells set in the process that measures them (`CellRunner`)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


@contextmanager
def put_back() -> Iterator[None]:
    """Afterwards, threads, determinism and the filling of memory are as they were."""
    threads, filled = torch.get_num_threads(), deterministic.fill_uninitialized_memory
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        deterministic.fill_uninitialized_memory = filled
