"""One of several processes makes a file, perhaps on several machines that share a disk; the others wait for it.

A claim is a small file beside it that whoever makes it touches again and again. One that nobody touches any more, or
whose process is gone, is taken over. This rests on nothing but files that are created exclusively, and renamed, which
NFS has too; neither the clocks of machines nor the locks of file systems play a part. It saves work and keeps nothing
safe: now and then, such as when a process was stopped for minutes and went on, two make the same.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from harness.io.files import host_name, is_gone, read_regular, this_machine, written

_MOST = 4096  # bytes of a claim
_FORGOTTEN = 86400.0  # seconds after which a claim of another machine, or of before a restart, is swept
_FIRST_LOOK = 0.05  # seconds
_JITTER = random.SystemRandom()  # processes that were seeded alike should not look at the same moments


@dataclass(frozen=True)
class Pace:
    """Seconds: how often a claim is touched, after how long without that it is taken over, how long a process waits at
    most before it looks again, and how long two that take over at the same moment get to notice it.
    """

    beat: float = 10.0
    stale: float = 45.0
    look: float = 2.0
    settle: float = 0.2


class Owner(NamedTuple):
    """What a claim says of the process that made it. `machine` is empty where machines cannot be told apart, `after`
    is the token of the claim that was taken over.
    """

    host: str = ""
    machine: str = ""
    pid: int = 0
    token: str = ""
    after: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        return self.pid > 0 and is_gone(self.machine, self.pid)


class _Seen(NamedTuple):
    inode: int
    touched: int
    content: bytes


class Claim:
    """The claim of this process on what is made under the protection of the file `path`.

    `take` and `wait` raise OSError where claims do not work: the folder cannot be written, or `path` is something that
    nobody here has made.
    """

    def __init__(self, path: Path, pace: Pace) -> None:
        self._path = path
        self._pace = pace
        self._own = b""
        self._seen: tuple[_Seen, float] | None = None  # another's claim, and since when it is as it is
        self._stop = Event()

    def take(self) -> bool:
        """Whether it is for this process to make the file: nobody else does, or who did is gone.

        Raises:
            OSError: claims do not work here.
        """
        self._claim_as(Owner(host_name(), this_machine(), os.getpid(), secrets.token_hex(8)))
        try:
            self._create()
        except FileExistsError:
            seen = self._look()
            if seen is None or not self._is_abandoned(seen) or not self._take_over(seen):
                return False
        Thread(target=self._beat, name="claim", daemon=True).start()
        return True

    def wait(self, tell: Callable[[Owner, float], object]) -> bool:
        """Wait while another process makes the file.

        Args:
            tell: Called before each look but the first with who makes it, and the seconds that the wait will have taken
                by then.

        Returns:
            True if the other gave up its claim, whether the file is there or could not be made; False if the other is
            gone, so that its claim can be taken over.

        Raises:
            OSError: claims do not work here.
        """
        began, waited_for = time.monotonic(), None
        while (seen := self._look()) is not None:
            owner = _owner(seen.content)
            if waited_for is not None and owner.token != waited_for.token != owner.after:
                return True  # given up, and claimed anew by a third
            if self._is_abandoned(seen):
                return False
            waited_for = owner
            waited = time.monotonic() - began
            pause = min(self._pace.look, _FIRST_LOOK + waited / 10) * _JITTER.uniform(0.5, 1.0)
            tell(owner, waited + pause)
            time.sleep(pause)
        return True

    def give_up(self) -> None:
        """The file is there or will not be; does nothing if the claim is another's by now."""
        self._stop.set()
        with contextlib.suppress(OSError):
            if self._is_own():
                self._path.unlink()

    def _claim_as(self, owner: Owner) -> None:
        self._own = json.dumps(owner._asdict()).encode()

    def _create(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        with os.fdopen(os.open(self._path, flags, 0o644), "wb", buffering=0) as file:
            try:
                file.write(self._own)
            except OSError:
                self._path.unlink(missing_ok=True)
                raise

    def _look(self) -> _Seen | None:
        """The claim as it is now; None if there is none.

        It is opened to be looked at, since NFS may know its attributes from a while ago until then.

        Raises:
            OSError: what is there is no claim, or cannot be looked at.
        """
        try:
            return self._opened()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return self._opened()  # NFS: another machine has replaced it in this moment

    def _opened(self) -> _Seen | None:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            if not stat.S_ISREG(self._path.lstat().st_mode):
                raise OSError(errno.EINVAL, f"{self._path.name} is not a regular file; remove it")
            handle = os.open(self._path, flags)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(handle)
            return _Seen(found.st_ino, found.st_mtime_ns, os.read(handle, _MOST))
        finally:
            os.close(handle)

    def _is_abandoned(self, seen: _Seen) -> bool:
        now = time.monotonic()
        if self._seen is None or self._seen[0] != seen:
            self._seen = seen, now
        return now - self._seen[1] >= self._pace.stale or _owner(seen.content).is_gone

    def _take_over(self, seen: _Seen) -> bool:
        """Put the own claim in the place of another; False if somebody else was quicker."""
        own = Owner(**json.loads(self._own))
        self._claim_as(own._replace(after=_owner(seen.content).token))
        with written([self._path]) as (temporary,):
            temporary.write_bytes(self._own)
            if self._look() != seen:
                return False
            temporary.replace(self._path)
        time.sleep(self._pace.settle)  # others who looked at the same moment have replaced it by then
        return self._is_own()

    def _is_own(self) -> bool:
        seen = self._look()
        return seen is not None and seen.content == self._own

    def _beat(self) -> None:
        while not self._stop.wait(self._pace.beat):
            with contextlib.suppress(OSError):
                if not self._is_own():
                    return
                os.utime(self._path)


def sweep(folder: Path, suffix: str) -> None:
    """Remove the claims in `folder`, files that end in `suffix`, of processes that have ended or are long forgotten."""
    with contextlib.suppress(OSError), written([folder / f"sweep{suffix}"]) as (probe,):
        probe.touch()
        now = probe.stat().st_mtime  # by the clock of the disk
        for path in folder.glob(f"*{suffix}"):
            with contextlib.suppress(OSError):
                old = now - path.stat().st_mtime > _FORGOTTEN
                if old or _owner(read_regular(path, _MOST)).is_gone:
                    path.unlink()


def _owner(content: bytes) -> Owner:
    """Who has written a claim, as far as that can be read."""
    try:
        owner = Owner(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return Owner()
    fit = all(isinstance(value, type(default)) for value, default in zip(owner, Owner(), strict=True))
    return owner if fit and owner.pid in range(1, 2**31) else Owner()
