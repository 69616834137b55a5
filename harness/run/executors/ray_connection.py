"""The connection to a Ray cluster; what goes wrong with it, in sentences."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.api.errors import UsageError

_HERE = "auto"
_SECONDS = 10.0  # for a connection to be accepted
_TOKEN = "where a cluster asks for a token, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH tell it here as they do there"


def connect(address: str | None) -> Any:
    """The package `ray`, connected to the cluster at `address`, `HOST:PORT` or `auto`, the one that this machine
    belongs to. Ray itself would start a cluster of this machine alone where there is none, or try for many minutes.

    Raises:
        UsageError: there is no such cluster, or it does not let this process in.
    """
    address = address or _HERE
    if address == "local" or "://" in address:
        raise UsageError(
            f"--address {address}: run the command on a machine of the cluster, with --address auto or HOST:PORT;"
            " `ray start` makes a cluster"
        )
    try:
        import ray
    except ImportError:
        raise UsageError("--executor ray needs package ray; install it: pip install 'dfqbench[ray]'") from None
    _check_answers(address)
    main = threading.current_thread() is threading.main_thread()
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with _quiet():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        if type(error).__name__ == "AuthenticationError":  # not in Ray's older versions
            raise UsageError(f"--address {address}: the cluster does not know this user; {_TOKEN}") from None
        text = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"--address {address}: Ray cannot connect ({text}); {_TOKEN}") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, terminate)  # Ray's own would end this program as if all was well
    # Reports of dead processes and nodes, which would be printed among the results; a lost host is said in a sentence.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    return ray


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lose what is written to stderr by Ray's C++ part, which reports each of many attempts."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_answers(address: str) -> None:
    """See to it that somebody listens there.

    Raises:
        UsageError: nobody does, or the address has another form.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        place = canonicalize_bootstrap_address_or_die(address)
        host, _, port = place.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except ValueError:
        raise UsageError(f"--address {address} is not of the form HOST:PORT or auto") from None
    except OSError as error:
        if address == _HERE and type(error) is ConnectionError:  # Ray's: no cluster was found
            where = "no Ray cluster runs on this machine"
        else:
            where = f"no Ray cluster answers at {place if address == _HERE else address}"
        raise UsageError(
            f"{where}; start one with `ray start --head` here and `ray start --address=...` on other machines, or give"
            " another --address"
        ) from None
