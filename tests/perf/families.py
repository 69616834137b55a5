"""What can be done with each of timm's models: every name is traced as when a run is planned, without weights.

    nox -s families                     all names, then runs of the smallest member of each family; over an hour
    nox -s families -- --names 'beit*'  some names, printed and not kept

Writes tasks/timm_families.json, which `dfqbench list models` reads, and the table of docs/models.md. Names are looked
at in processes that are replaced when one dies, takes too long or too much memory, which is then said of the name.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import multiprocessing
import re
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the script is run by its path

from harness.catalog import Catalog  # noqa: E402
from harness.errors import UsageError, first_line  # noqa: E402
from harness.requirements import unmet  # noqa: E402
from tasks.families import DOCUMENT, FILE, SCHEMES, STAND_FOR, Family, documented  # noqa: E402
from tasks.families import families as stored  # noqa: E402

METHODS = tuple(STAND_FOR)
SECONDS, GIBIBYTES = 120, 8  # of one name
# Two images and one step of everything: whether it runs, not how well.
TINY_RUN = {
    "noise": {"images": 2},
    "psaq": {"images": 2, "rounds": 1, "steps": 1},
    "clamp": {"images": 2, "rounds": 1, "steps": 1, "passes": 1, "cycles": 1, "population": 2, "refresh_steps": 1},
    "qdrop": {"steps": 1, "batch": 2},
}
RUNS = ("noise+minmax", "psaq", "clamp", "noise+repq", "noise+qdrop")


def look(name: str) -> dict[str, Any]:
    """Facts of one name: its class, size, and what keeps methods from running on it."""
    import timm
    import torch

    from tasks.timm_cls import ClassificationSuite

    torch.set_num_threads(1)
    with torch.device("meta"):
        net = timm.create_model(name)
    facts: dict[str, Any] = {
        "name": name,
        "family": family_of(name),
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    if net.num_classes <= 0:
        return facts | {"refused": "it has no classes"}
    suite = ClassificationSuite("families", Classes(net.num_classes), ())
    methods = Catalog.default().resolve_all(METHODS, "quick", {})
    try:
        found = unmet(suite, f"timm:{name}", methods, SCHEMES)
    except UsageError as error:
        return facts | {"refused": re.sub(r"^.*?(cannot be quantized in scheme \w+: |model '[^']*' )", "", str(error))}
    return facts | {"lacks": {f"{method}/{scheme}": reason for (method, scheme), reason in found.items()}}


class Classes:
    """As much of a data set as planning wants to know."""

    def __init__(self, classes: int) -> None:
        self.classes = classes


def run(name: str) -> dict[str, str]:
    """What happens when methods really run on `name`, its weights random: method -> "ok" or why not."""
    import tempfile

    from harness.cell import Cell
    from harness.runner import CellRunner, Settings
    from tasks.timm_cls import open_suite

    catalog, model = Catalog.default(), f"timm:{name}@random"
    suite = open_suite("embedded")
    try:
        weights = suite.model_identity(model)
    except UsageError as error:
        return dict.fromkeys(RUNS, str(error))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        runner = CellRunner(Settings(catalog, "cpu", 1, Path(folder)))
        for method in catalog.resolve_all(RUNS, "quick", TINY_RUN):
            cell = Cell(
                suite="embedded",
                task="classification",
                model=model,
                weights=weights,
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


def worker(connection: Any) -> None:
    """Answer names with facts, in a process of its own."""
    limit = GIBIBYTES * 2**30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    warnings.simplefilter("ignore")
    while True:
        function, name = connection.recv()
        try:
            connection.send({"look": look, "run": run}[function](name))
        except Exception as error:  # a network's code may raise anything
            connection.send({"name": name, "error": f"{type(error).__name__}: {first_line(error)}"})


class Workers:
    """One process at a time, replaced when it does not answer."""

    def __init__(self) -> None:
        self._process: Any = None

    def ask(self, function: str, name: str) -> dict[str, Any]:
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


def families(facts: list[dict[str, Any]], every: Counter[str]) -> Iterator[Family]:
    """What is said of each family, from the facts of its members; `every` counts the names there are."""
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
        best = min(members, key=lambda fact: len(fact.get("lacks", METHODS * 9)))
        yield Family(
            family=name,
            models=every[name],
            traced=len(members),
            example=best["name"],
            works=dict(works),
            why={method: found.most_common(1)[0][0] for method, found in reasons.items()},
        )


def family_of(name: str) -> str:
    """The module of timm that defines a model: its family."""
    import timm

    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def fewer(names: list[str], each: int) -> list[str]:
    """The first `each` names of every family, those first that sound small."""
    small = re.compile(r"tiny|nano|pico|femto|atto|xx?s|small|_s\d|[bst]0|18|lite")
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (not small.search(name), name)):
        groups.setdefault(family_of(name), []).append(name)
    return [name for members in groups.values() for name in members[:each]]


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
    parser.add_argument("--each", type=int, metavar="N", help="at most N names of each family (all if left out)")
    parser.add_argument("--no-runs", action="store_true", help="trace only")
    options = parser.parse_args()
    import timm
    import torch

    options.facts.parent.mkdir(parents=True, exist_ok=True)
    known: dict[tuple[str, str], dict[str, Any]] = {}
    if options.facts.exists():
        for line in options.facts.read_text().splitlines():
            entry = json.loads(line)
            known[entry["asked"], entry["of"]] = entry
    workers = Workers()

    def ask(function: str, name: str) -> dict[str, Any]:
        if (function, name) not in known:
            started = time.monotonic()
            answer = workers.ask(function, name) | {"asked": function, "of": name}
            answer["seconds"] = round(time.monotonic() - started, 2)
            known[function, name] = answer
            with options.facts.open("a") as file:
                file.write(json.dumps(answer) + "\n")
        return {key: value for key, value in known[function, name].items() if key not in ("asked", "of", "seconds")}

    with contextlib.closing(workers):
        every = Counter(map(family_of, timm.list_models()))
        names = [name for name in timm.list_models() if fnmatch.fnmatch(name, options.names)]
        if options.each is not None:
            names = fewer(names, options.each)
        facts, failed = [], {}
        for name in names:
            fact = ask("look", name)
            facts += [fact] * ("error" not in fact)
            if "error" in fact:
                failed[name] = fact["error"]
        found = list(families(facts, every))
        if not options.no_runs:
            found = [
                family.model_copy(update={"runs": ask("run", family.example)}) if any(family.works.values()) else family
                for family in found
            ]
    content = {
        "timm": timm.__version__,
        "torch": torch.__version__.partition("+")[0],
        "failed": failed,
        "families": [family.model_dump() for family in found],
    }
    text = json.dumps(content, indent=1) + "\n"
    if options.names == "*":
        FILE.write_text(text, encoding="utf-8")
        stored.cache_clear()
        DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
