"""What code a number depends on: found in sources, without running them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.catalog.catalog import Catalog
from harness.catalog.code import code_for
from harness.identity import code as code_module
from harness.identity import imports
from harness.identity.code import NO_NUMBERS, OWN, Code, code_of
from harness.identity.imports import closure
from harness.results.provenance import is_stale
from harness.results.record import Provenance

ROOT = Path(code_module.__file__).resolve().parents[2]


def forget() -> None:
    """As in a new process: code that was read stays as it was read."""
    inner = (imports._taken, imports._targets, imports._tree)
    for function in (code_of, imports.is_installed, imports.file_of, imports.imports, *inner):
        function.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package `dfq_package`; the files' names are relative to it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()

    def write(**files: str) -> None:
        for name, text in {"__init__": "", **files}.items():
            path = tmp_path / "dfq_package" / f"{name.replace('__DIR__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        forget()

    yield write
    forget()


def modules(root: str, own: frozenset[str] = frozenset(("dfq_package",))) -> set[str]:
    return {name.removeprefix("dfq_package.") for name, _ in closure([f"dfq_package.{root}"], own).files}


@pytest.mark.parametrize(
    "text",
    [
        "import dfq_package.other",
        "import dfq_package.other as o",
        "from dfq_package import other",
        "from dfq_package.other import x",
        "from . import other",
        "from .other import x as y",
        "def late():\n    from dfq_package.other import x",
        "class A:\n    def late(self):\n        import dfq_package.other",
        "try:\n    import dfq_package.other\nexcept ImportError:\n    pass",
        "if 1:\n    from . import other",
        "from importlib import import_module\nm = import_module('dfq_package.other')",
        "import importlib\nm = importlib.import_module('.other', __package__)",
        "m = __import__('dfq_package.other')",
        "from harness.api.plugins import import_target\nx = import_target('dfq_package.other:x')",
        "from dfq_package import *",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    from . import other",
        "async def late():\n    from .other import x",
        "late = lambda: __import__('dfq_package.other')",
    ],
)
def test_imports_of_every_form_are_followed(package, text):
    package(main=text, other="", third="")
    assert modules("main") >= {"dfq_package", "main", "other"}
    assert "third" not in modules("main") or "*" in text


@pytest.mark.parametrize(
    "text",
    [
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import other",
        "import typing\nif typing.TYPE_CHECKING:\n    from .other import x",
        "x = 'import dfq_package.other'",
        "# import dfq_package.other",
    ],
)
def test_what_is_not_imported_does_not_count(package, text):
    package(main=text, other="")
    assert modules("main") == {"dfq_package", "main"}


def test_packages_and_relative_imports_at_any_depth(package):
    package(
        sub__DIR____init__="from ..base import b",
        sub__DIR__deep____DIR____init__="",
        base="from .sub.leaf import c",
        sub__DIR__leaf="from .. import top",
        top="",
        unused="",
    )
    assert modules("sub") == {"dfq_package", "sub", "base", "sub.leaf", "top"}


def test_an_imported_info_brings_the_class_behind_it(package):
    info = "from harness.api.plugins import PluginInfo\nONE = PluginInfo(name='a', kind='source', summary='', "
    info += "target='dfq_package.one:A')\nTWO: PluginInfo = PluginInfo(name='b', kind='source', summary='', "
    info += "target='dfq_package.two:A')\n"
    package(main="from .infos import TWO\nTWO.load()", infos=info, one="", two="from . import three", three="")
    found = {name for name in modules("main") if not name.startswith("harness")}
    assert found == {"dfq_package", "main", "infos", "two", "three"}


def test_a_file_beside_is_followed_and_an_installed_package_named(package, tmp_path):
    (tmp_path / "dfq_beside.py").write_text("import numpy.linalg, json\n")
    package(main="import dfq_beside\nfrom torch.nn import functional\nimport dfq_not_there")
    found = closure(["dfq_package.main"], frozenset(("dfq_package",)))
    assert {"dfq_beside", "dfq_package.main"} <= {name for name, _ in found.files}
    assert found.packages == {"numpy", "torch", "dfq_not_there"}


def test_a_file_that_is_no_python_ends_the_search_but_counts(package, tmp_path):
    package(main="from . import bad", bad="def (")
    assert modules("main") == {"dfq_package", "main", "bad"}


def fingerprint(*targets: str) -> str:
    forget()
    return code_of(frozenset(targets)).fingerprint


def test_a_change_counts_where_it_is_imported_and_nowhere_else(package, monkeypatch):
    """CODE_REVIEW G: a comment in one method outdated the cells and the images of all others."""
    monkeypatch.setattr(code_module, "_ROOTS", frozenset())  # the harness's own part is always the same
    package(one="from . import shared", two="from . import shared", alone="x = 1", shared="x = 1")
    names = ("one", "two", "alone")

    def all_of() -> list[str]:
        return [fingerprint(f"dfq_package.{name}:A") for name in names]

    before = all_of()
    package(alone="x = 1  # a comment")
    after = all_of()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False]
    package(shared="x = 2")
    assert [a == b for a, b in zip(after, all_of(), strict=True)] == [False, False, True]
    assert len(set(before)) == len(names)


def test_built_in_plugins_depend_on_their_own_code():
    def names(target: str) -> set[str]:
        return {name for name, _ in closure([target.partition(":")[0]], OWN, NO_NUMBERS).files}

    catalog = Catalog.default()
    source = names(catalog.sources.get("psaq").target)
    assert {
        "methods.sources.psaq.source",
        "methods.core.synthesis.descent",
        "methods.core.graph.intercept",
        "harness.api.contracts",
    } <= source
    # Images do not depend on how ranges are found, nor on other methods.
    assert not {name for name in source if name.split(".")[1:2] in (["calibrators"], ["end_to_end"])}
    assert "methods.core.numerics.observers" not in source
    assert "methods.sources.noise.source" not in source
    assert {"methods.calibrators.clamp_search.search", "methods.sources.clamp.source"} <= names(
        catalog.methods.get("clamp").target
    )
    assert "methods.sources.psaq.source" in names(catalog.methods.get("psaq2").target)
    assert "methods.core.reparameterization.fold" in names(catalog.calibrators.get("erq").target)
    tasks = names(catalog.tasks.get("classification").target)
    assert {
        "tasks.classification.suite",
        "tasks.models.timm_models",
        "tasks.suites.embedded.fashion",
        "tasks.suites.cifar10.dataset",
    } <= tasks
    assert not tasks & {"tasks.training.cli", "tasks.detection.suite", "tasks.dense.drawing", "tasks.metrics.mean_iou"}


def test_what_the_harness_adds_to_a_number_is_complete():
    """A module that the runner needs counts, unless it is said to find, name, check or keep only."""
    needed = {name for name, _ in closure(["harness.run.runner"], OWN).files if name.startswith("harness.")}
    counted = {name for name, _ in closure(code_module._ROOTS, OWN, NO_NUMBERS).files if name.startswith("harness.")}
    folders = {name for name in needed if ".".join(name.split(".")[:2]) in NO_NUMBERS}
    assert needed == counted | folders
    assert {".".join(name.split(".")[:2]) for name in folders} == NO_NUMBERS, "a folder that is not there any more"
    assert {
        "harness.run.runner",
        "harness.run.context",
        "harness.api.compose",
        "harness.api.contracts",
        "harness.run.seeds",
    } <= counted


@pytest.mark.slow  # processes that import torch
@pytest.mark.parametrize("target", ["methods.end_to_end.clamp.method", "tasks.classification.suite"])
def test_the_closure_holds_what_python_itself_imports(target):
    """Against the truth: modules of the project that are there once a plugin is imported."""
    text = f"import sys, {target}\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=ROOT)
    own = {name for name in out.stdout.split() if name.split(".")[0] in OWN}
    assert own <= {name for name, _ in closure([target], OWN).files}
    assert target in own


# --- versions -------------------------------------------------------------------------------------------------------


def test_versions_that_count_follow_from_the_imports(catalog, toy_cell):
    """CODE_REVIEW A9: torchvision, numpy and OpenMMLab's packages did not count."""

    def names(*targets: str) -> set[str]:
        return {name for name, _ in code_of(frozenset(targets), frozenset(("mmcv-lite", "mmcv"))).versions}

    classification = {name for name, _ in code_for(catalog, toy_cell("noise", task="classification")).versions}
    assert {"python", "torch", "torchvision", "timm", "numpy", "pillow"} == classification
    pytest.importorskip("mmdet")
    dense = names(catalog.tasks.get("detection").target)
    assert {"mmdet", "mmengine", "mmcv-lite", "torchvision", "scipy", "numpy", "timm"} <= dense
    assert "mmcv" not in dense  # not installed
    assert "mmsegmentation" in names(catalog.tasks.get("segmentation").target)
    assert not dense & {"pydantic", "pydantic-core", "pandas", "safetensors"}


def test_openmmlab_s_base_is_declared(catalog):
    for task in ("detection", "segmentation"):
        assert {"mmcv", "mmcv-lite"} <= set(catalog.tasks.get(task).packages)


@pytest.mark.parametrize(
    ("versions", "stale"),
    [
        ({}, False),
        ({"torchvision": "0.1"}, True),
        ({"mmdet": "3.2"}, True),
        ({"python": "3.11.12"}, False),
        ({"python": "3.12.1"}, True),
        ({"pyarrow": "1"}, False),
    ],
)
def test_other_versions_of_what_counts_are_stale(versions, stale):
    """CODE_REVIEW A9: only torch and timm made a record stale."""
    present = {"python": "3.11.7", "torchvision": "0.29", "mmdet": "3.3", "pyarrow": "2"}
    code = Code("c", (("mmdet", "3.3"), ("python", "3.11"), ("torchvision", "0.29")))
    record = Provenance(code="c", versions=present | versions, hardware={}, device="cpu", threads=1, git=None)
    assert is_stale(record, code) == stale


def test_a_package_that_is_not_told_is_stale():
    record = Provenance(code="c", versions={"torch": "2"}, hardware={}, device="cpu", threads=1, git=None)
    assert is_stale(record, Code("c", (("torch", "2"), ("torchvision", "0.29"))))


def test_2000_cells_are_told_in_a_second(catalog, toy_cell):
    """CODE_REVIEW A11, 22 s: counted in the process's own time, and generously."""
    cells = [
        toy_cell(method, seed=seed) for seed in range(500) for method in ("toynoise", "noise", "toyround", "float")
    ]
    forget()
    before = time.process_time()
    assert len({code_for(catalog, cell) for cell in cells}) == 3
    assert time.process_time() - before < 5
