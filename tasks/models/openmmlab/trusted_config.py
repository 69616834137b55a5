"""Configs that are programs, run in a process of their own: whatever they do there, the reader gets data or a sentence.

That guards against accidents. It is not a sandbox: a config may do all that its user may.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.errors import UsageError, first_line
from tasks.models.openmmlab import ops, run_config

if TYPE_CHECKING:
    from mmengine.config import Config

SECONDS = 120.0  # that a config may take; most of it is for imports of custom modules


def run_trusted(path: Path) -> Config:
    """The mmengine config in `path`, with its custom modules imported here, too, so that its models can be built.

    Modules named in `custom_imports` are looked for where this process finds its own: installed packages, PYTHONPATH.

    Raises:
        UsageError: it fails, ends the process, does not end in time or gives no plain data, or a module is missing.
    """
    ops.install()
    from mmengine.config import Config

    content = _content(path)
    modules = content.get("custom_imports")
    if modules:
        from mmengine.utils import import_modules_from_strings

        try:
            import_modules_from_strings(**modules)
        except (Exception, SystemExit) as error:  # imports run code
            raise UsageError(f"custom modules of config {path} cannot be imported ({first_line(error)})") from None
    try:
        return Config(content, cfg_text=" ", filename=str(path))
    except Exception as error:  # mmengine keeps some names to itself
        raise UsageError(f"config {path} cannot be used ({first_line(error)})") from None


def _content(path: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="dfqbench-config-") as folder:
        result = Path(folder, "config.json")
        code = _wait(path, result)
        try:
            found = json.loads(result.read_bytes())
            if "error" not in found:
                return run_config.restored(found["config"])  # type: ignore[no-any-return]
        except (OSError, ValueError):
            found = {"error": f"the process that ran it ended with exit code {code} before it was read"}
    raise UsageError(f"config {path} cannot be read ({found['error']})")


def _wait(path: Path, result: Path) -> int:
    # -P: the folder of the program is not a place to import from; all others are as here.
    command = [sys.executable, "-P", run_config.__file__, str(path.absolute()), str(result)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part or str(Path.cwd()) for part in sys.path)}
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=nothing, stdout=nothing, stderr=nothing, env=environment, start_new_session=True
    )
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        raise UsageError(f"config {path} was still running after {SECONDS:g} seconds; it must come to an end") from None
    finally:  # and what it started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.wait()
