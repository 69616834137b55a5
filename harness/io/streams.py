"""Standard streams that cost no result: a closed pipe, a full disk or a narrow encoding never ends the program."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys

NO_OUTPUT = 74  # exit code (EX_IOERR): all went well, but what was to be printed could not be written
_STANDARD = (0, 1, 2)


class _Tolerant(io.FileIO):
    """Writes to a file descriptor; from the first failure on, what is written is dropped and `failure` says why."""

    failure: OSError | None = None

    def write(self, data: object) -> int:
        """Write `data`, or take note that it cannot be written."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        written = None
        while self.failure is None and written is None:
            try:
                written = super().write(data)  # type: ignore[arg-type]
                if written is None:  # the reader of a non-blocking pipe is behind
                    select.select([], [self], [])
            except OSError as error:
                self.failure = error
        return size if written is None else written


def tolerate() -> None:
    """Make `sys.stdout` and `sys.stderr` such that writing to them raises nothing from now on.

    Where the reader has gone (`| head -1`) or a disk is full, the rest of the output is dropped. Characters that the
    stream's encoding lacks are replaced by `?`. A descriptor that the caller closed is opened on the null device: else
    the next file to be opened would take its number, and whatever C code prints would end up in it.
    """
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not None and (not isinstance(stream, io.TextIOWrapper) or _descriptor(stream) != descriptor):
            continue  # replaced by somebody who wants it so, such as a test runner
        if stream is not None:
            _flush(stream)
        raw = _Tolerant(descriptor, "w", closefd=False)
        encoding = "utf-8" if stream is None else stream.encoding
        terminal = raw.isatty()
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                io.BufferedWriter(raw), encoding, errors="replace", line_buffering=terminal or name == "stderr"
            ),
        )


def lost_output() -> OSError | None:
    """Why part of the standard output could not be written; None if nothing was lost, or nobody wanted to read it."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return None
    _flush(stream)
    raw = getattr(stream.buffer, "raw", None)
    failure = raw.failure if isinstance(raw, _Tolerant) else None
    return None if failure is None or failure.errno == errno.EPIPE else failure


def _descriptor(stream: io.TextIOWrapper) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return -1


def _flush(stream: io.TextIOWrapper) -> None:
    with contextlib.suppress(OSError, ValueError):  # what was written before is lost
        stream.flush()
