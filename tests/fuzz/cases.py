"""One hostile case each: damage something, use it as the project does, and say what happened.

A case ends in `refused` (a sentence for the user), `left out` (named, the rest is used), `made anew` or `used` (what
was damaged makes no difference). It raises `Wrong` if a number came out other than it was, and whatever the project
raises beyond its own UsageError is a traceback that a user would see.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pandas as pd
import torch
from mutations import altered, damaged, hostile_word
from torch import nn
from typer.testing import CliRunner

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "harness_report"), str(TESTS / "harness" / "plugins")]

import synthetic  # noqa: E402 - of tests/harness_report

from harness.cli.main import app  # noqa: E402
from harness.report import tables  # noqa: E402
from harness.report.results import load  # noqa: E402
from harness.results.store import Store  # noqa: E402

CONTROL = {chr(code) for code in (*range(9), *range(11, 32), 127, 0x202E)} - {"\r"}
PINNED = ["model", "method", "bits", "seed", "accuracy", "images"]  # of a cell, whatever happens to its files


class Wrong(AssertionError):
    """A number, or a text, that is not what it says."""


class Records:
    """Records and sidecars of a small sweep: a table shows what was measured, or nothing."""

    def __init__(self, folder: Path) -> None:
        self._base, self._work = folder / "base", folder / "work"
        self._base.mkdir(parents=True)
        synthetic.fill(Store(self._base), models=("vit_a",), seeds=2, bits=("W8A8",))
        self._catalog = Catalog.default()
        self._files = sorted(self._base.iterdir())
        self._known = self._cells(self._base)

    def __call__(self, rng: Random) -> str:
        """Damage one file and make the tables."""
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self._base, self._work)
        victim = self._work / rng.choice(self._files).name
        if victim.suffix == ".json" and rng.random() < 0.7:
            victim.write_text(altered(victim.read_text("utf-8"), rng), "utf-8", errors="surrogatepass")
        else:
            victim.write_bytes(damaged(victim.read_bytes(), rng))
        try:
            found = self._cells(self._work)
        except UsageError as error:
            raise Wrong(f"{victim.name}: one bad file, and no report at all: {error}") from None
        same = self._known.loc[found.index.intersection(self._known.index)]
        if len(same) != len(found) or not found[PINNED].equals(same[PINNED]):
            raise Wrong(f"{victim.name}: other numbers than were measured\n{found[PINNED].compare(same[PINNED])}")
        return "used" if len(found) == len(self._known) else "left out"

    def _cells(self, folder: Path) -> pd.DataFrame:
        results = load(Store(folder), self._catalog)
        text = tables.comparison(results.summary, results.cells) + tables.costs(results.summary)
        text += tables.latex(results.summary) + tables.csv(results.cells)
        if bad := CONTROL & set(text):
            raise Wrong(f"control characters {bad} reach the tables")
        return results.cells.set_index("key").sort_index()


class Cache:
    """A cached set of images: used as it was made, or made anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "cache"
        self._images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def __call__(self, rng: Random) -> str:
        """Damage the file and ask for the images."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        made = self._ask()
        (file,) = self._folder.iterdir()
        file.write_bytes(damaged(file.read_bytes(), rng))
        count = self._ask()
        assert made == 1
        return "made anew" if count else "used"

    def _ask(self) -> int:
        from harness.identity.code import Code
        from harness.run.context import Context

        calls: list[int] = []

        def make() -> torch.Tensor:
            calls.append(1)
            return self._images.clone()

        record = synthetic.record("psaq+minmax")
        code = Code("c", ())
        context = Context(
            record.cell,
            cache=self._folder,
            code=code,
            code_of=lambda _: code,
            device=torch.device("cpu"),
            threads=1,
            report=lambda *_: None,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = context.cached_images({"source": "psaq"}, make)
        if not torch.equal(found, self._images):
            raise Wrong("images from the cache are not those that were made")
        return len(calls)


class Checkpoints:
    """A checkpoint: loaded whole and finite, or refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "checkpoints"
        self._folder.mkdir(parents=True)

    def __call__(self, rng: Random) -> str:
        """Write a state of some form, damage it or not, and load it."""
        from safetensors.torch import save_file

        from tasks.models.checkpoints import load_weights

        net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
        state = {name: value.clone() for name, value in net.state_dict().items()}
        suffix = rng.choice([".safetensors", ".pth", ".pt"])
        path = self._folder / f"w{suffix}"
        if suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(self._odd(state, rng) if rng.random() < 0.6 else state, path)
        if rng.random() < 0.6:
            path.write_bytes(damaged(path.read_bytes(), rng))
        try:
            load_weights(net, path)
        except UsageError as error:
            if len(str(error).splitlines()) != 1 or str(path) not in str(error):
                raise Wrong(f"the refusal is not one sentence that names the file: {error}") from None
            return "refused"
        for name, value in net.state_dict().items():
            if value.shape != state[name].shape or not value.isfinite().all():
                raise Wrong(f"weights {name} are not finite, or of another shape")
        return "used"

    @staticmethod
    def _odd(state: dict[str, torch.Tensor], rng: Random) -> object:
        name = rng.choice(sorted(state))
        value = state[name]
        forms = {
            "complex": lambda: value.to(torch.complex64) * float("nan"),
            "sparse": value.to_sparse,
            "quantized": lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
            "meta": lambda: value.to("meta"),
            "integer": lambda: (value * 10).to(torch.int32),
            "nan": lambda: value * float("nan"),
            "half": value.half,
            "none": lambda: None,
            "list": value.tolist,
            "shape": lambda: value[:-1],
            "object": lambda: SimpleNamespace(a=1),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: quantized tensors are on their way out
            changed = {**state, name: forms[rng.choice(sorted(forms))]()}
        if rng.random() < 0.2:
            changed = {f"{rng.choice(['module.', 'model.', '_orig_mod.', 'x.'])}{key}": v for key, v in changed.items()}
        return {rng.choice(["state_dict", "model", "weights"]): changed} if rng.random() < 0.3 else changed


class CommandLines:
    """What a user may type: an exit code that is documented, and never a traceback."""

    WORDS = (
        "psaq",
        "clamp",
        "noise",
        "real+omse",
        "toynoise",
        "float",
        "W4A8",
        "MP4.5",
        "full",
        "matmul",
        "tiny",
        "toy",
    )
    OPTIONS = (
        *("--methods", "--models", "--bits", "--schemes", "--tasks", "--suite", "--seeds", "--limit", "--preset"),
        *("--option", "--device", "--rerun", "--timeout", "--threads", "--ablation", "--data-root", "--out", "--sink"),
    )
    COMMANDS = (
        "plan",
        "list",
        "describe",
        "tables",
        "report",
        "merge",
        "history",
        "diagnose",
        "bench --help",
        "nonsense",
    )

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "cli"
        self._folder.mkdir(parents=True)

    def __call__(self, rng: Random) -> str:
        """Run one command in this process."""
        command = rng.choice(self.COMMANDS[:3] if rng.random() < 0.7 else self.COMMANDS)
        arguments = command.split()
        if command == "plan":
            arguments += ["--suite", "toy", "--tasks", "toy", "--models", "tiny"]
            for _ in range(rng.randrange(4)):
                arguments += [rng.choice(self.OPTIONS), hostile_word(rng, self.WORDS)]
        elif command in ("tables", "report", "diagnose"):
            arguments += [
                "--out",
                str(self._folder / hostile_word(rng, self.WORDS).replace("/", "").replace("\0", "")[:99]),
            ]
        else:
            arguments += [hostile_word(rng, self.WORDS) for _ in range(rng.randrange(3))]
        arguments = [word.replace("\0", "").encode("utf-8", "ignore").decode() for word in arguments]
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code not in (0, 1, 2, 3, 4):
            raise Wrong(f"{arguments}: exit code {result.exit_code}")
        if bad := CONTROL & set(result.output):
            raise Wrong(f"{arguments}: control characters {bad} reach the terminal")
        return "used" if result.exit_code == 0 else "refused"


def all_kinds(folder: Path) -> dict[str, object]:
    """Every kind of case, ready to be called with a generator."""
    return {kind.__name__: kind(folder / kind.__name__) for kind in (Records, Cache, Checkpoints, CommandLines)}
