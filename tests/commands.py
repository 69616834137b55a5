"""The command line in a process of its own, which does not have to import torch and its like anew."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.run.executors.processes import new_process


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def harness(*arguments: str, cwd: Path, path: Path | None = None) -> Done:
    """`dfqbench ARGUMENTS` in a folder; `path`: where else packages are found."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = new_process(_main, (later(arguments), cwd, path, out, err), {})
        process.start()
        process.join()
        assert process.exitcode is not None
        return Done(process.exitcode, out.read_text(), err.read_text())


def later(arguments: Sequence[str]) -> list[str]:
    """Arguments of which a later option takes the place of an earlier one: so helpers have defaults of their own."""
    kept: dict[str, list[str]] = {}
    name = ""
    for number, text in enumerate(arguments):
        if text.startswith("--"):
            name = text.partition("=")[0]
            name += f" {number}" * (name == "--option")  # which is repeatable
            kept.pop(name, None)
        kept.setdefault(name, []).append(text)
    return [text for part in kept.values() for text in part]


def _main(arguments: list[str], cwd: Path, path: Path | None, out: Path, err: Path) -> None:
    os.chdir(cwd)
    if path is not None:
        sys.path.insert(0, str(path))
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = ["dfqbench", *arguments]
    from harness.cli.main import main

    main()
