"""The command line on the embedded suite, and the examples of README and guides as they stand there."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from commands import Done, harness

from harness.results.store import Store
from methods.core.graph.intercept import Interceptor
from tasks.classification.suite import open_suite

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "add-a-method.md").read_text()
TINY = [
    f"--option={name}.{field}={value}"
    for name, fields in {
        "psaq": {"steps": 1, "rounds": 1, "images": 4},
        "clamp": {"steps": 1, "rounds": 1, "images": 4, "population": 2, "cycles": 1, "passes": 1, "held_out_steps": 1},
    }.items()
    for field, value in fields.items()
]


def bench(folder: Path, *args: str, path: Path | None = None) -> Done:
    once = ("--seeds", "1", "--preset", "default", "--in-process", "--threads", "1")
    where = ("--out", str(folder / "out"), "--cache", str(folder / "cache"))
    return harness("bench", *args, *once, *where, cwd=folder, path=path)


def block(language: str, text: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[0]


def test_readme_opens_with_the_two_commands():
    assert block("", README).splitlines() == [
        "python -m pip install nox && nox -s bench -- --methods clamp,psaq",
        "python -m pip install nox && nox -s tests",
    ]


@pytest.mark.slow
def test_bench_on_the_embedded_suite(tmp_path):
    args = ("--methods", "clamp,psaq", "--bits", "W4A8", "--limit", "40", *TINY)
    first = bench(tmp_path, *args)
    assert first.returncode == 0, first.stdout + first.stderr
    records = {(r.cell.model, r.cell.method): r for r in Store(tmp_path / "out").records()}
    assert set(records) == {(m, n) for m in ("vit", "swin") for n in ("float", "noise", "real", "clamp", "psaq")}
    for record in records.values():
        assert record.status == "ok"
        assert record.metrics["top1"] > 30  # trained models, not chance
    assert records["vit", "clamp"].origin == "reconstruction"
    assert records["vit", "psaq"].quantization.activation_sites == 67
    report = tmp_path / "out" / "report"
    for name in ("comparison.md", "comparison.tex", "cells.csv", "accuracy.png", "gallery_vit.png", "gallery_swin.png"):
        assert (report / name).stat().st_size > 0

    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.json")}
    tables = {p.name: p.read_bytes() for p in report.iterdir()}
    second = bench(tmp_path, *args)
    assert second.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.json")} == written  # nothing measured again
    assert {p.name: p.read_bytes() for p in report.iterdir()} == tables


@pytest.mark.slow
def test_the_same_cell_gives_the_same_number_in_a_fresh_folder(tmp_path):
    metrics = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        args = (
            "--methods",
            "clamp",
            "--models",
            "swin",
            "--bits",
            "W3A3",
            "--limit",
            "40",
            "--no-references",
            *TINY[3:],
        )
        done = bench(tmp_path / name, *args)
        assert done.returncode == 0, done.stderr
        metrics.append({r.key: r.metrics for r in Store(tmp_path / name / "out").records()})
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_the_guides_plugin_runs(tmp_path):
    code = block("python", GUIDE)
    assert len(code.splitlines()) <= 50
    package = tmp_path / "site"
    info = package / "smooth-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "smooth.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smooth\nVersion: 1.0\n")
    group, entry = block("toml", GUIDE).strip().splitlines()
    assert group == '[project.entry-points."dfqbench.sources"]'
    (info / "entry_points.txt").write_text(f"[dfqbench.sources]\n{entry.replace(chr(34), '')}\n")
    args = ("--methods", "smooth,smooth+omse", "--models", "vit", "--bits", "W8A8", "--limit", "40", "--no-references")
    done = bench(tmp_path, *args, path=package)
    assert done.returncode == 0, done.stdout + done.stderr
    records = Store(tmp_path / "out").records()
    assert {r.cell.method for r in records} == {"float", "smooth", "smooth+omse"}
    assert all(r.status == "ok" for r in records)


@pytest.mark.fast(name="swin")
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_instrumented_zoo_model_without_quantizers_is_bit_identical(name):
    suite = open_suite("embedded", data_root=None)
    model = suite.load(name, torch.device("cpu"))

    def intercepted(images: torch.Tensor) -> torch.Tensor:
        with Interceptor(model.net, {}):
            return model.net(images)

    images = torch.randn(8, *model.input_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(intercepted(images), model.net(images))
    plain, watched = (suite.evaluate(model, forward, 100) for forward in (model.net, intercepted))
    assert plain.metrics == watched.metrics
    assert plain.outcomes.equals(watched.outcomes)


class _Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bomb", "truncated", "shape"])
def test_a_bad_checkpoint_ends_with_one_sentence_and_exit_2(tmp_path, kind):
    from safetensors.torch import save_file

    marker = tmp_path / "executed"
    file = tmp_path / ("weights.pth" if kind == "bomb" else "weights.safetensors")
    if kind == "bomb":
        file.write_bytes(pickle.dumps({"state_dict": _Bomb(str(marker))}))
    else:
        save_file({"head.weight": torch.zeros(3, 3)}, file)
        if kind == "truncated":
            file.write_bytes(file.read_bytes()[:-10])
    done = bench(tmp_path, "--models", f"timm:vit_tiny_patch16_224@{file}", "--limit", "10")
    assert done.returncode == 2, done.stdout + done.stderr
    assert not marker.exists()
    message = done.stderr.strip()
    assert message.startswith("Error: ")
    assert file.name in message
    assert "Traceback" not in message
    assert "\n" not in message
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.slow
def test_records_hold_what_a_reader_needs(tmp_path):
    done = bench(
        tmp_path,
        "--methods",
        "psaq",
        "--models",
        "vit",
        "--bits",
        "W4A4",
        "--limit",
        "20",
        "--no-references",
        *TINY[:3],
    )
    assert done.returncode == 0, done.stderr
    (path,) = (p for p in (tmp_path / "out").glob("*.json") if json.loads(p.read_text())["cell"]["method"] == "psaq")
    record = json.loads(path.read_text())
    assert record["cell"]["bits"] == "W4A4"
    assert record["cell"]["limit"] == 20
    assert record["quantization"]["weight_sites"] == 26
    assert record["stages"]["synthesize"]["seconds"] > 0
    assert record["counters"]["synthesis_steps"] == 1
    assert record["provenance"]
