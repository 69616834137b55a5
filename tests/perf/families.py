"""What can be done with each of timm's models: every name is traced as when a run is planned, without weights.

    nox -s families                     all names, then runs of the smallest member of each family; over an hour
    nox -s families -- --names 'beit*'  some names, printed and not kept

Writes tasks/models/timm_families.json, which `dfqbench list models` reads, and the table of docs/models.md. Names
are looked at in processes of their own. One that dies, takes too long or needs too much memory is replaced, and
the entry of the name records it.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import itertools
import json
import math
import multiprocessing
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the script is run by its path

from harness.api.contracts import VisionModel  # noqa: E402
from harness.api.errors import UsageError, first_line  # noqa: E402
from harness.catalog.catalog import Catalog  # noqa: E402
from harness.catalog.requirements import unmet  # noqa: E402
from tasks.models.families import DOCUMENT, FILE, SCHEMES, STAND_FOR, TRANSFORMERS, Family, documented  # noqa: E402
from tasks.models.families import families as stored  # noqa: E402

METHODS = tuple(STAND_FOR)
SECONDS, GIBIBYTES = 120, 8  # of one name
CLASSES = 1000
# Two images and one step of everything: whether it runs, not how well.
TINY_RUN = {
    "noise": {"images": 2},
    "psaq": {"images": 2, "rounds": 1, "steps": 1},
    "clamp": {
        "images": 2,
        "rounds": 1,
        "steps": 1,
        "passes": 1,
        "cycles": 1,
        "population": 2,
        "refresh_steps": 1,
        "held_out_steps": 1,
    },
    "qdrop": {"steps": 1, "batch": 2},
}
RUNS = ("noise+minmax", "psaq", "clamp", "noise+repq", "noise+qdrop")


def look(name: str) -> dict[str, Any]:
    """Facts of one name: its family, size, and what keeps methods from running on it.

    It is looked at as with a checkpoint of 1,000 classes: many names (CLIP, DINOv2) have no classes of their own.
    """
    import torch

    from tasks.models.timm_models import untrained_timm, vision_model

    torch.set_num_threads(1)
    reference, facts = f"timm:{name}@random", {"name": name, "family": family_of(name), "parameters": 0}
    methods = Catalog.default().resolve_all(METHODS, "quick", {})
    try:
        net, preprocessing = untrained_timm(reference, classes=CLASSES)
        facts["parameters"] = sum(p.numel() for p in net.parameters())
        model = vision_model(reference, net, preprocessing, next(net.parameters()).device)
        found = unmet(Sketch(model), reference, methods, SCHEMES)
    except UsageError as error:
        return facts | {"refused": re.sub(r"^.*?(cannot be quantized in scheme \w+: |model '[^']*' )", "", str(error))}
    return facts | {"lacks": {f"{method}/{scheme}": reason for (method, scheme), reason in found.items()}}


def structure(name: str) -> dict[str, Any]:
    """What one name has in common with those that differ from it only in size: a hash; and its number of parameters."""
    import torch

    from tasks.models.timm_models import build_timm

    with torch.device("meta"):
        net, _ = build_timm(f"timm:{name}@random", classes=CLASSES)
    text = json.dumps(shape_of(net), sort_keys=True)
    return {
        "family": family_of(name),
        "structure": hashlib.sha256(text.encode()).hexdigest()[:16],
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def shape_of(module: torch.nn.Module) -> list[Any]:
    """A module's class and settings without sizes, and the same of its children, equal ones in a row only once."""
    settings = {key: setting(key, value) for key, value in vars(module).items() if not key.startswith("_")}
    tensors = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
    children: list[Any] = []
    for name, child in module.named_children():
        found = ["" if name.isdigit() else name, shape_of(child)]
        children += [found] * (found not in children[-1:])
    return [type(module).__qualname__, settings, tensors, children]


def setting(key: str, value: Any) -> Any:
    """A setting as it counts for the structure: sizes do not, but for the number of tokens before the patches."""
    if value is None or isinstance(value, (bool, str)) or "prefix" in key:
        return value
    if isinstance(value, float):
        return value == 0
    return getattr(value, "__name__", type(value).__name__)


@dataclass(frozen=True)
class Sketch:
    """As much of a suite as planning wants to know."""

    model: VisionModel

    def untrained(self, _name: str) -> VisionModel:
        return self.model


def run(name: str) -> dict[str, str]:
    """What happens when methods really run on `name`, its weights random: method -> "ok" or why not.

    On images of 32x32 if it takes them and no method minds; else on images of its own size.
    """
    from harness.identity.cell import Cell
    from harness.run.runner import CellRunner, Settings
    from tasks.classification.suite import open_suite

    catalog, model = Catalog.default(), f"timm:{name}@random"
    methods = catalog.resolve_all(RUNS, "quick", TINY_RUN)

    def lacks(suite: Any) -> dict[str, str]:
        try:
            return {method: reason for (method, _), reason in unmet(suite, model, methods, ["full"]).items()}
        except UsageError as error:
            return {method.name: str(error) for method in methods}

    with tempfile.TemporaryDirectory() as folder:
        pictures = draw(Path(folder) / "pictures")
        suites = {root: open_suite(suite, root) for suite, root in (("embedded", None), ("imagenet", pictures))}
        found = {root: lacks(suite) for root, suite in suites.items()}
        root = min(found, key=lambda root: len(found[root]))
        suite, results = suites[root], found[root]
        runner = CellRunner(Settings(catalog, "cpu", 1, Path(folder), root))
        for method in methods:
            if method.name in results:
                continue
            cell = Cell(
                suite=suite.name,
                task="classification",
                model=model,
                weights=suite.model_identity(model),
                data=suite.data_identity(),
                limit=2,
                method=method.name,
                options=method.options,
                bits="W4A8",
                scheme="full",
                seed=0,
            )
            record = runner.measure(cell, lambda *_: None).record
            failed = record.failure and f"{record.failure.type}: {record.failure.message}".splitlines()[0]
            results[method.name] = failed or record.reason or "ok"
    return results


def draw(root: Path) -> Path:
    """Two classes of two pictures each, in the layout of ImageNet."""
    import numpy as np
    from PIL import Image

    drawn = np.random.default_rng(0)
    for part, kind, number in itertools.product(("train", "val"), "ab", range(2)):
        file = root / part / kind / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(file)
    return root


def hasten() -> torch.library.Library:
    """Save this process half its time: what torch and timm compute in Python on the meta device has no values anyway.

    Layer norm's meta kernel and timm's initialisation are replaced; all goes well while what is returned lives.
    """
    import timm.layers.weight_init
    import torch

    def layer_norm(x: Any, shape: list[int], _weight: Any, _bias: Any, _eps: float) -> tuple[Any, Any, Any]:
        rows = x.new_empty([*x.shape[: x.dim() - len(shape)], *[1] * len(shape)])
        return torch.empty_like(x, memory_format=torch.contiguous_format), rows, rows.clone()

    timm.layers.weight_init._trunc_normal_ = lambda tensor, *_: tensor
    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("native_layer_norm", layer_norm)
    return library


def worker(connection: Any) -> None:
    """Answer names with facts, in a process of its own."""
    limit = GIBIBYTES * 2**30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    warnings.simplefilter("ignore")
    fast = None
    while True:
        function, name = connection.recv()
        if function != "run" and fast is None:
            fast = hasten()
        try:
            connection.send({"look": look, "run": run, "structure": structure}[function](name))
        except Exception as error:  # a network's code may raise anything
            connection.send({"name": name, "error": f"{type(error).__name__}: {first_line(error)}"})


class Workers:
    """One process at a time, replaced when it does not answer, and between tracing, which leaves weights as the memory
    was, and running.
    """

    def __init__(self) -> None:
        self._process: Any = None
        self._runs = False

    def ask(self, function: str, name: str) -> dict[str, Any]:
        runs = function == "run"
        if runs != self._runs:
            self.close()
            self._runs = runs
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=worker, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._connection.send((function, name))
        try:
            if self._connection.poll(SECONDS * (5 if function == "run" else 1)):
                return dict(self._connection.recv())
            reason = f"took longer than {SECONDS} s"
        except EOFError:
            reason = "the process died"
        self.close()
        return {"name": name, "error": reason}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def alike(facts: list[dict[str, Any]], structures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Facts of names that were not traced, taken from a traced name of the same structure."""
    known = {structures[fact["name"]].get("structure"): fact for fact in facts if fact["name"] in structures}
    known.pop(None, None)
    traced = {fact["name"] for fact in facts}
    return [
        known[found["structure"]]
        | {"name": name, "parameters": found["parameters"], "family": found["family"], "alike": True}
        for name, found in structures.items()
        if name not in traced and found.get("structure") in known
    ]


def families(facts: list[dict[str, Any]], every: Counter[str], ran: Set[str] = frozenset()) -> Iterator[Family]:
    """What is said of each family, from the facts of its members; `every` counts the names there are, `ran` did run."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for fact in facts:
        groups.setdefault(fact["family"], []).append(fact)
    for name, members in sorted(groups.items()):
        members.sort(key=lambda fact: (fact["parameters"], fact["name"]))
        works: Counter[str] = Counter()
        reasons: dict[str, Counter[str]] = {}
        for fact in members:
            for method in METHODS:
                for scheme in SCHEMES:
                    reason = fact.get("refused") or fact["lacks"].get(f"{_stored(method)}/{scheme}")
                    if reason is None:
                        works[f"{method}/{scheme}"] += 1
                    else:
                        reasons.setdefault(method, Counter())[general(reason)] += 1
        traced = [fact for fact in members if "alike" not in fact]
        best = min(traced, key=lambda fact: _worth(fact, ran))
        yield Family(
            family=name,
            models=every[name],
            traced=len(traced),
            alike=len(members) - len(traced),
            example=best["name"],
            works=dict(works),
            why={method: found.most_common(1)[0][0] for method, found in reasons.items()},
        )


def _worth(fact: Mapping[str, Any], ran: Set[str]) -> tuple[bool, int, bool]:
    """The least is the best example: most works on it, and it did run; timm's own tests have models of their own."""
    name = fact["name"]
    return name not in ran, len(fact.get("lacks", METHODS * 9)), name.startswith("test_")


def family_of(name: str) -> str:
    """The module of timm that defines a model: its family."""
    import timm

    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def ordered(names: Iterable[str]) -> list[str]:
    """Transformers, one name of each other family, then the others; families in turn, small names first."""
    small = re.compile(r"tiny|nano|pico|femto|atto|xx?s|small|_s\d|[bst]0|18|lite")
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name.startswith("test_"), not small.search(name), name)):
        groups.setdefault(family_of(name), []).append(name)
    places = [
        ((family not in TRANSFORMERS) * min(1 + place, 2), place, family, name)
        for family, members in groups.items()
        for place, name in enumerate(members)
    ]
    return [name for *_, name in sorted(places)]


def _stored(method: str) -> str:
    return Catalog.default().resolve(method).name


def general(reason: str) -> str:
    """A reason without the numbers of one member."""
    return re.sub(r"\.\d+(?=[./ ])", ".N", re.sub(r"\d+x\d+(x\d+)*", "NxN", reason))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default="*", help="pattern of names; if given, nothing is written")
    parser.add_argument(
        "--facts", type=Path, default=ROOT / "results/cache/timm_families.jsonl", help="kept between runs"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="look at no more names after so many minutes")
    parser.add_argument("--no-runs", action="store_true", help="trace only")
    options = parser.parse_args()
    with contextlib.closing(Answers(options.facts, options.minutes)) as answers:
        found, failed = found_out(answers, options.names, not options.no_runs)
    if options.names == "*":
        found = kept({family.family: family for family in stored()}, found)
    text = written(found, failed)
    if options.names == "*":
        FILE.write_text(text, encoding="utf-8")
        stored.cache_clear()
        DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(text)


class Answers:
    """What is known of names, kept in a file; questions are answered until so many minutes are over."""

    def __init__(self, file: Path, minutes: float) -> None:
        self._file, self._workers, self._end = file, Workers(), time.monotonic() + 60 * minutes
        self.known: dict[tuple[str, str], dict[str, Any]] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            for line in file.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry.pop("asked"), entry.pop("of")] = entry

    def __call__(self, function: str, name: str) -> dict[str, Any] | None:
        """The answer, or None if there is none and time is up."""
        if (function, name) not in self.known:
            if time.monotonic() > self._end:
                return None
            started = time.monotonic()
            answer = self._workers.ask(function, name)
            answer["seconds"] = round(time.monotonic() - started, 2)
            self.known[function, name] = answer
            with self._file.open("a") as file:
                file.write(json.dumps(answer | {"asked": function, "of": name}) + "\n")
        return self.known[function, name]

    def close(self) -> None:
        """Stop the process that answers."""
        self._workers.close()


def found_out(answers: Answers, pattern: str, run_too: bool) -> tuple[dict[str, Family], dict[str, str]]:
    """Families by name, and why names could not be looked at."""
    import timm

    names = ordered(name for name in timm.list_models() if fnmatch.fnmatch(name, pattern))
    structures: dict[str, dict[str, Any]] = {}
    seen = set()
    for name in names:  # of every structure one
        structures[name] = answers("structure", name) or {}
        key = structures[name].get("structure", name)
        if ("look", name) in answers.known or key not in seen:
            answers("look", name)
        seen.add(key)
    looked = {name: fact for name in names if (fact := answers("look", name)) is not None}  # then all that time allows
    failed = {name: fact["error"] for name, fact in looked.items() if "error" in fact}
    facts = [fact for fact in looked.values() if "error" not in fact]
    facts += alike(facts, structures)
    ran = {name for function, name in answers.known if function == "run"}
    found = {}
    for family in families(facts, Counter(map(family_of, timm.list_models())), ran):
        known = family.example in ran or (run_too and any(family.works.values()))
        results = (answers("run", family.example) if known else None) or {}
        runs = {method: result for method, result in results.items() if method in {*RUNS, "noise", "error"}}
        found[family.family] = family.model_copy(update={"runs": runs})
    return found, failed


def kept(earlier: Mapping[str, Family], found: Mapping[str, Family]) -> dict[str, Family]:
    """What was found, and of what there was no time for what was known: families, and runs of the same example."""
    together = {**earlier, **found}
    for name in earlier.keys() & found.keys():
        if not found[name].runs and found[name].example == earlier[name].example:
            together[name] = found[name].model_copy(update={"runs": earlier[name].runs})
    return together


def written(found: Mapping[str, Family], failed: Mapping[str, str]) -> str:
    """The text of the data file."""
    import timm
    import torch

    content = {
        "timm": timm.__version__,
        "torch": torch.__version__.partition("+")[0],
        "failed": failed,
        "families": [found[name].model_dump() for name in sorted(found)],
    }
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    main()
