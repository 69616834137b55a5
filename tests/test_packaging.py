"""What a user installs: the wheel runs without the repository, and the source distribution can be worked with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dfqbench", "harness", "methods", "tasks")
BESIDE = ("docs", "tests", "results/baselines", "results/published")  # folders of the source distribution
FILES = ("CONTRIBUTING.md", "LICENSE", "README.md", "constraints.txt", "noxfile.py", "pyproject.toml", ".ci/run")

pytestmark = pytest.mark.slow


def _sources(*folders: str, root: Path = ROOT) -> set[str]:
    """The files below some folders of the repository, but for what Python and tools leave there."""
    found = (path for folder in folders for path in (root / folder).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix() for path in found if path.suffix not in (".pyc", ".pyo")}


def _build(kind: str, source: Path, into: Path) -> tuple[Path, str]:
    """Build an sdist or wheel without network, as pip does; returns it and what was printed."""
    into.mkdir()
    build = f"import setuptools.build_meta as backend; backend.build_{kind}({str(into)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = into.iterdir()
    return made, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> tuple[Path, str]:
    """The source distribution, unpacked, and what its build printed; made of a copy, since builds leave files there."""
    folder = tmp_path_factory.mktemp("sdist")
    unwanted = shutil.ignore_patterns(".git", ".nox", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist")
    copy = folder / "copy"
    copy.mkdir()
    for name in (*PACKAGES, "docs", "tests", "results", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    # As it is after use: what was run there does not belong to the distribution.
    (copy / "results/runs/embedded").mkdir(parents=True, exist_ok=True)
    (copy / "results/runs/embedded/cell.json").write_text("{}")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy / path.name)
    archive, output = _build("sdist", copy, folder / "built")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked, output


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> tuple[Path, str]:
    """The wheel of the source distribution, unpacked, which for a pure one is an installation; and its build's output.

    The environment's own dfqbench stands behind it in `sys.path`.
    """
    folder = tmp_path_factory.mktemp("wheel")
    archive, output = _build("wheel", sdist[0], folder / "built")
    assert archive.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder / "site")
    return folder / "site", output


@pytest.fixture
def dfqbench(wheel, tmp_path):
    """The wheel's command line, in a folder that has nothing to do with the repository."""
    site, _ = wheel
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "harness", *arguments]
        environment = os.environ | {"PYTHONPATH": str(site)}
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_source_distribution_holds_what_one_works_with(sdist):
    unpacked, _ = sdist
    assert _sources(*PACKAGES, *BESIDE) | set(FILES) <= _sources(".", root=unpacked)
    assert not (unpacked / "results/runs").exists()
    assert not (unpacked / "results/cache").exists()


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel):
    site, _ = wheel
    (metadata,) = site.glob("*.dist-info")
    assert _sources(*PACKAGES) == _sources(".", root=site) - _sources(metadata.name, root=site)


def test_the_wheel_says_what_it_is(wheel):
    site, _ = wheel
    (folder,) = site.glob("*.dist-info")
    built, project = Distribution.at(folder), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert built.version == project["version"]
    assert {entry.name: entry.value for entry in built.entry_points} == project["scripts"]
    assert all((site / package / "py.typed").is_file() for package in PACKAGES)
    assert (folder / "licenses" / "LICENSE").is_file()


def test_builds_complain_about_no_package(sdist, wheel):
    for _, output in (sdist, wheel):
        assert "absent from the" not in output  # a folder of data that setuptools takes for a forgotten package
        assert "DeprecationWarning" not in output
        assert "no files found matching" not in output  # MANIFEST.in names what is not there


def test_the_wheel_lists_plans_and_measures_from_another_folder(wheel, dfqbench, tmp_path):
    site, _ = wheel
    assert "clamp" in dfqbench("list", "methods")
    choice = ("--methods", "noise", "--models", "vit", "--bits", "W8A8", "--no-references", "--limit", "20")
    assert "noise" in dfqbench("plan", *choice)
    dfqbench("bench", *choice, "--device", "cpu", "--out", "runs")
    records = [json.loads(path.read_text()) for path in (tmp_path / "elsewhere/runs").glob("*.json")]
    assert {record["cell"]["method"] for record in records} == {"float", "noise"}
    assert all(record["status"] == "ok" for record in records)
    assert (tmp_path / "elsewhere/runs/report").is_dir()
    assert _sources(".", root=site) >= _sources(*PACKAGES)  # nothing of it was moved or deleted
