"""What files hold, by SHA-256. Files are read once; what was found is remembered for as long as they are untouched.

A file counts as untouched while size, times of change and inode are the same. The memory is one file per folder
(`harness.io.remembered`).
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from harness.api.errors import UsageError
from harness.io import files as regular
from harness.io.files import reason
from harness.io.remembered import Findings

Check = Callable[[BinaryIO], str]  # what is wrong with an opened file; empty: nothing
Signature = tuple[int, int, int, int]  # size, mtime and ctime in nanoseconds, inode
T = TypeVar("T")
R = TypeVar("R")

_VERSION = 1  # of the memory, and of the checks whose result it holds
_THREADS = 8
_BATCH = 64  # files for one thread at once
_LONG = 2**30  # bytes; reading more than these is announced
# A file that was changed so short a time before it was read may change again within one tick of its clock.
_SETTLED = 2.0  # seconds


class UnreadableError(OSError):
    """A path is not a regular file that can be read; the text says why."""


@dataclass(frozen=True)
class _Known:
    signature: Signature
    sha256: str
    passed: str  # name of the check that found nothing wrong with it; empty: none was asked for


def hash_files(folder: Path, files: Sequence[Path], check: Check | None = None) -> list[str]:
    """SHA-256 of the bytes of every file, in hex. Reads and checks files that are new or were changed, on threads.

    Args:
        folder: where the files lie; what is known of them is remembered under its name.
        files: regular files, or symbolic links to such.
        check: what each has to pass, such as `image_files.undecodable`; a function of a module, known by its name.

    Raises:
        UsageError: a file cannot be read, is not a regular file or does not pass; the first one is named.
    """
    started = time.time()
    memory = _Memory(folder)
    names = [_name(folder, path) for path in files]
    signatures = _each(lambda path: _outcome(signature, path), files)
    known = [memory.get(name, found, check) for name, found in zip(names, signatures, strict=True)]
    new = [place for place, (found, old) in enumerate(zip(signatures, known, strict=True)) if old is None]
    _announce(folder, [found[0] for place in new if isinstance(found := signatures[place], tuple)])

    def read(place: int) -> _Known | OSError:
        found = signatures[place]
        return found if isinstance(found, OSError) else _outcome(lambda path: _read(path, check), files[place])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of oddities in files that it can read
        found_now = dict(zip(new, _each(read, new), strict=True))
    memory.add({names[place]: found for place, found in found_now.items() if isinstance(found, _Known)}, started)
    outcomes = [known[place] or found_now[place] for place in range(len(files))]
    bad = [(path, error) for path, error in zip(files, outcomes, strict=True) if isinstance(error, OSError)]
    if bad:
        path, error = bad[0]
        more = f"; {len(bad) - 1} more in {folder} cannot either" if len(bad) > 1 else ""
        raise UsageError(f"{path} cannot be used: {reason(error)}{more}")
    return [found.sha256 for found in outcomes if isinstance(found, _Known)]


def identity(folder: Path, files: Sequence[Path], hashes: Sequence[str], more: Iterable[str] = ()) -> str:
    """Hash of what files hold and of where in `folder` they lie, in their order, and of `more`: 16 hex digits."""
    whole = hashlib.sha256()
    for path, content in zip(files, hashes, strict=True):
        whole.update(os.fsencode(f"{_name(folder, path)}\0{content}\n"))
    for text in more:
        whole.update(os.fsencode(f"\0{text}\n"))
    return whole.hexdigest()[:16]


def signature(path: Path) -> Signature:
    """What changes when the regular file at `path` does.

    Raises:
        OSError: there is no such file; `UnreadableError` if it cannot be read to its end.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise UnreadableError(f"it is a symbolic link to {path.readlink()}, which does not exist") from None
        raise
    return _regular(found)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never waits, as opening a FIFO would.

    Raises:
        OSError: as `signature`, or the file may not be read.
    """
    signature(path)  # it says what there is in place of a file
    return regular.open_regular(path, most=sys.maxsize)


def _regular(found: os.stat_result) -> Signature:
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFDIR: "a folder"}
        raise UnreadableError(f"it is {kinds.get(stat.S_IFMT(found.st_mode), 'a socket or the like')}, not a file")
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _read(path: Path, check: Check | None) -> _Known:
    with open_regular(path) as file:
        before = _regular(os.fstat(file.fileno()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has `readinto`
        if check is not None:
            file.seek(0)
            if found := check(file):
                raise UnreadableError(found)
        if _regular(os.fstat(file.fileno())) != before:
            raise UnreadableError("it changes while it is read")
    return _Known(before, digest, "" if check is None else check.__name__)


def _outcome(function: Callable[[T], R], argument: T) -> R | OSError:
    try:
        return function(argument)
    except OSError as error:
        return error


def _each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`function` of every item, on threads: reading, hashing and decoding leave the interpreter free."""
    parts = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [found for part in pool.map(lambda part: [function(item) for item in part], parts) for found in part]


def _name(folder: Path, path: Path) -> str:
    inside = str(path).removeprefix(f"{folder}{os.sep}")  # several times as fast as pathlib, for a million files
    return inside.replace(os.sep, "/")


def _announce(folder: Path, sizes: Sequence[int]) -> None:
    if sum(sizes) >= _LONG:
        amount = f"{len(sizes):,} files ({sum(sizes) / 2**30:.1f} GiB)"
        sys.stderr.write(f"Reading {amount} in {folder}, once, to know what they hold.\n")


class _Memory:
    """What is known of the files of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._findings = Findings("contents", folder, _VERSION)
        self._known = self._load()

    def get(self, name: str, found: Signature | OSError, check: Check | None) -> _Known | None:
        """What is known of a file, if it is as it was and passed the check."""
        known = self._known.get(name)
        if known is None or known.signature != found:
            return None
        return known if check is None or known.passed == check.__name__ else None

    def add(self, new: dict[str, _Known], started: float) -> None:
        """Remember files, but for those that were changed just before; forget those that are gone."""
        settled = (started - _SETTLED) * 1e9
        new = {name: known for name, known in new.items() if max(known.signature[1:3]) < settled}
        if not new:
            return
        kept = {n: known for n, known in self._load().items() if n in new or os.path.lexists(self._folder / n)} | new
        self._findings.keep({n: [*known.signature, known.sha256, known.passed] for n, known in kept.items()})

    def _load(self) -> dict[str, _Known]:
        entries = self._findings.load().items()
        return {name: _Known((size, *times), sha256, passed) for name, (size, *times, sha256, passed) in entries}
