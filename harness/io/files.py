"""Files as this program touches them: only regular ones of bounded size are read, and they are written as a whole."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harness.api.errors import UsageError

MOST = 2**30  # bytes of a file that is read
_PIECE = 2**16  # bytes of a growing file, or of one that does not say its size
_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.tmp")


def open_regular(path: Path, most: int = MOST) -> BinaryIO:
    """Open a file to read its bytes. A FIFO would wait for a writer, a device may never end.

    Raises:
        OSError: there is no such file, it may not be read, it is not a regular file, or it has more than `most` bytes.
    """
    _check_regular(path, path.stat(), most)  # before it is opened as well: opening alone makes some devices act
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()), most)
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, most: int = MOST) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: as `open_regular`; also if the file grows beyond `most` bytes while it is read.
    """
    content = b""
    with open_regular(path, most) as file:
        wanted = os.fstat(file.fileno()).st_size + 1  # never `most`: a buffer of that size would be made first
        while len(content) <= most and (piece := file.read(min(wanted, most + 1 - len(content)))):
            content += piece
            wanted = _PIECE
    if len(content) > most:
        raise _too_large(path, most)
    return content


def _check_regular(path: Path, found: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if found.st_size > most:
        raise _too_large(path, most)


def _too_large(path: Path, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))


def reason(error: OSError) -> str:
    """What an OSError says, without the path."""
    return error.strerror or str(error) or type(error).__name__


def is_there(path: Path) -> bool:
    """Whether there is anything at `path`; not if its name is too long or a folder before it may not be entered."""
    try:
        return path.exists()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder, under the same conditions."""
    try:
        return path.is_dir()
    except OSError:
        return False


def names_in(folder: Path) -> list[str]:
    """Names of what is in `folder`, sorted; none if there is no such folder.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names are wanted, and thousands of paths cost time
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"folder {folder} cannot be read ({reason(error)}); choose another") from None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it to `path`."""
    with written([path]) as (temporary,):
        write(temporary)
        flush(temporary)
        temporary.replace(path)


@contextmanager
def written(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Names of temporary files beside `paths`; what is left of them afterwards is removed."""
    temporaries = [path.with_name(f".{path.name}.{host_name()}.{os.getpid()}.tmp") for path in paths]
    try:
        yield temporaries
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def prepare_folder(folder: Path, option: str) -> None:
    """Create `folder`, check that it can be written and remove what killed runs left half-written.

    Raises:
        UsageError: the folder cannot be created, read or written; the message names the `option` that changes it.
    """
    probe = folder / f".probe.{host_name()}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        found = os.listdir(folder)  # noqa: PTH208 - as above
    except OSError as error:
        raise UsageError(f"cannot write to folder {folder} ({reason(error)}); choose another with {option}") from None
    for name in found:
        match = _TEMPORARY.fullmatch(name)
        # A live process, or one on another machine that shares the folder, may still be writing.
        if match and match["host"] == host_name() and not is_alive(int(match["pid"])):
            (folder / name).unlink(missing_ok=True)


@contextmanager
def writing_report(folder: Path) -> Iterator[None]:
    """A report's files are being written to `folder`, from records that stay as they are.

    Raises:
        UsageError: instead of the OSError if one of them cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write the report in {folder} ({reason(error)}); all records are kept: make room there, "
            "then run the command again"
        ) from None


def host_name() -> str:
    """This machine's name, as far as it can stand in the name of a file."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "host"


def this_machine() -> str:
    """Tells machines apart, and containers that count processes on their own; empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def is_gone(machine: str, pid: int) -> bool:
    """Whether a process of a machine, as `this_machine` there tells it, is known to have ended."""
    return machine == this_machine() != "" and not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that number; also if that cannot be found out."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
