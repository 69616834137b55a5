"""Configs that users name: data are read as data, programs run only if trusted, and neither breaks the reader."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from commands import later
from miniature_data import CLASS_NAMES, detection_config, make_coco
from typer.testing import CliRunner

from harness.api.errors import UsageError
from harness.api.plugins import TaskInfo
from harness.catalog.catalog import Catalog
from harness.cli.main import app
from harness.regress import suite as regress
from harness.report import diagnose
from harness.results.store import Store
from harness.run.runner import CellRunner, Settings
from tasks.models.openmmlab import references, trusted_config
from tasks.models.openmmlab.run_config import plain, restored

for package in ("mmdet", "mmseg", "mmcv"):
    pytest.importorskip(package, exc_type=ImportError)

from tasks.models.openmmlab.user_config import read_user_config  # noqa: E402

BASE = str(Path(__file__).parents[2] / "tasks/suites/embedded/dense_configs/mask_rcnn_swin.py")
read = partial(read_user_config, library="mmdet", trusted=False)
trusting = partial(read_user_config, library="mmdet", trusted=True)


def written(path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    return str(path)


@pytest.fixture
def mark(tmp_path):
    """A file that exists once code has run."""
    return tmp_path / "ran"


# --- read as data -------------------------------------------------------------------------------------------------


def test_data_formats_say_the_same(tmp_path):
    content = {"_base_": BASE, "model": {"roi_head": {"bbox_head": {"fc_out_channels": 128}}, "test_cfg": {"x": 1}}}
    toml = f"_base_ = {BASE!r}\n[model.roi_head.bbox_head]\nfc_out_channels = 128\n[model.test_cfg]\nx = 1\n"
    found = [
        read(written(tmp_path / "a.json", content)),
        read(written(tmp_path / "a.yaml", yaml.safe_dump(content))),
        read(written(tmp_path / "a.toml", toml)),
        trusting(written(tmp_path / "a.py", "\n".join(f"{key} = {value!r}" for key, value in content.items()))),
    ]
    for config in found:
        assert config.model.to_dict() == found[0].model.to_dict()
        assert config.model.roi_head.bbox_head.fc_out_channels == 128
        assert config.model.backbone.depths == (2, 2, 4)
        assert config.filename.startswith(str(tmp_path))


def test_packaged_configs_are_based_on_and_named(tmp_path):
    name = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"
    packaged = read(name)
    assert packaged.model.backbone.embed_dims == 96
    inner = written(tmp_path / "inner.yaml", yaml.safe_dump({"_base_": [name]}))
    outer = {"_base_": Path(inner).name, "model": {"backbone": {"_delete_": True, "type": "ResNet", "depth": 18}}}
    config = read(written(tmp_path / "outer.json", outer))
    assert config.model.backbone.to_dict() == {"type": "ResNet", "depth": 18}
    assert config.model.neck.to_dict() == packaged.model.neck.to_dict()
    assert config.test_dataloader.to_dict() == packaged.test_dataloader.to_dict()


def test_models_of_packaged_configs_are_named(monkeypatch):
    monkeypatch.setattr(references, "build_random", lambda library, config: (library, config.model.backbone.depths))
    models, name = references.Models("mmdet", {}), "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py@random"
    assert models.load(name)[1] == ("mmdet", [2, 2, 6, 2])
    assert models.canonical_name(name, "") == "mmdet:mask-rcnn_swin-t-p4-w7_fpn_1x_coco@random"


def test_files_of_data_sets_may_be_named(tmp_path):
    """They are not used; COCO's own names of classes have brackets in other data sets."""
    dataset = {"type": "CocoDataset", "ann_file": "annotations/x.json", "metainfo": {"classes": ["alcohol (beverage)"]}}
    dataset["pipeline"] = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": [96, 64], "keep_ratio": True}]
    content = {"_base_": BASE, "test_dataloader": {"sampler": {"type": "DefaultSampler"}, "dataset": dataset}}
    assert read(written(tmp_path / "a.json", content)).test_dataloader.dataset.ann_file == "annotations/x.json"


def model(**changes):
    return {"_base_": BASE, "model": changes}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # FAULTS K5 "mmseg:CONFIG where CONFIG is Python, YAML with object tags or JSON with `custom_imports`"
        ("a.py", "{touch}", "is a program, which is run only if .* --trust-configs"),
        ("a.yaml", "x: !!python/object/apply:os.system ['touch {mark}']", "YAML tag that may run code .*os.system"),
        ("a.yml", "x: !!python/name:os.system", "YAML tag that may run code"),
        ("a.json", {"custom_imports": {"imports": ["evil"]}}, "has 'custom_imports', which run code"),
        # the same kind, in data that mmengine and mmcv take for names of code
        ("a.json", model(type="os.system", command="touch {mark}"), "model.type is 'os.system', which mmdet does not"),
        ("a.json", model(type="evil"), "model.type is 'evil', which mmdet does not know"),
        ("a.json", model(type="mmengine.load", file="{mark}.pkl"), "model.type is 'mmengine.load'"),
        ("a.json", model(backbone={"type": "mmdet.os"}), "model.backbone.type is 'mmdet.os'"),
        ("a.json", model(test_cfg={"rcnn": {"nms": {"type": "__import__('os').abort"}}}), "nms.type is '__import__"),
        ("a.json", model(cmc={"warp_mode": "open('{mark}', 'w')"}), "warp_mode is 'open.*might be run"),
        (
            "a.json",
            model(loss={"class_weight": "weights.pkl"}),
            "class_weight is 'weights.pkl', .*might be run",
        ),
        ("a.json", model(loss={"class_weight": "pkl"}), "class_weight is 'pkl', .*might be run"),
        ("a.json", model(backbone={"_scope_": "evil"}), "_scope_ is 'evil', a package that would be imported"),
        (
            "a.json",
            {"_base_": BASE, "test_dataloader": {"dataset": {"pipeline": [{"type": "os.system"}]}}},
            r"test_dataloader.dataset.pipeline\[0\].type is 'os.system'",
        ),
        ("a.json", {"_base_": BASE, "val_dataloader": {"dataset": {"type": "evil"}}}, "dataset.type is 'evil'"),
        ("a.json", {"_base_": "other.py"}, "is based on other.py, which may run code"),
        ("a.json", {"_base_": "mmdet::../../../../x.py"}, "is not among those of mmdet"),
        ("a.json", {"_base_": "os::path.py"}, "is in package 'os'; only mmdet, mmseg"),
    ],
)
def test_k5_what_could_run_code_is_refused_unless_trusted(name, content, expected, mark, monkeypatch):
    tmp_path = mark.parent
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    text = content if isinstance(content, str) else json.dumps(content)
    text = text.replace("{touch}", f"open({str(mark)!r}, 'w')").replace("{mark}", str(mark))
    (tmp_path / "other.py").write_text(text)
    with pytest.raises(UsageError, match=expected):
        read(written(tmp_path / name, text))
    assert not mark.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", {"_base_": "a.json"}, "is based on itself"),
        ("a.json", {"_base_": {"a": 1}}, "neither a file nor a list of files"),
        ("a.json", {"_base_": [BASE, "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"]}, "several files .* 'model'"),
        ("a.json", {"_base_": BASE, "model": {"backbone": {"depths": {"a": 1}}}}, "does not fit what it is based on"),
        ("a.json", {"_base_": "none.json"}, "none.json cannot be read"),
        ("a.json", {"x": "{{ fileDirname }}"}, "placeholder in braces"),
        ("a.json", "[1, 2]", "is not a mapping of names to values"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", "9" * 5000, "cannot be read"),
        ("a.json", " " * 5_000_000, "5,000,000 bytes, but 4,194,304 is the most"),
        ("a.yaml", "{1: 2}", "has a key that is not text"),
        ("a.yaml", "a: 2024-01-01", "a is a date, which JSON does not have"),
        ("a.yaml", "a: &a [*a]", "cannot be read"),
        ("a.yaml", "a: [\n", "cannot be read .ParserError"),
        (
            "a.yaml",
            "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
            "more than 100,000 values",
        ),
        ("a.toml", "a = ", "cannot be read .TOMLDecodeError"),
        ("a.txt", "a = 1", r"must end in \.json"),
    ],
)
def test_malformed_configs_get_a_sentence(name, content, expected, tmp_path):
    with pytest.raises(UsageError, match=expected) as caught:
        read(written(tmp_path / name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("suffix", ["py", "json"])
def test_k5_only_regular_files_are_read(suffix, tmp_path):
    """FAULTS K5 "a FIFO, a device or a link to one as record, images, config or cache file"."""
    os.mkfifo(tmp_path / f"a.{suffix}")
    with pytest.raises(UsageError, match="it is a FIFO"):
        trusting(str(tmp_path / f"a.{suffix}"))
    (tmp_path / f"b.{suffix}").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="it is a device"):
        read(str(tmp_path / f"b.{suffix}"))
    (tmp_path / f"c.{suffix}").mkdir()
    with pytest.raises(UsageError, match="it is a folder"):
        read(str(tmp_path / f"c.{suffix}"))
    with pytest.raises(UsageError, match=r"cannot be read \(File name too long"):
        read(str(tmp_path / f"{'x' * 300}.{suffix}"))


# --- run because it is trusted ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import sys\nsys.exit(0)", "ends the program that reads it"),
        ("__import__('os')._exit(0)", "the process that ran it ended with exit code 0 before it was read"),
        ("__import__('os').abort()", "ended with exit code -6"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("model = dict(", "SyntaxError"),
        ("model = dict(type=object())", "model.type is a object, not plain data"),
    ],
)
def test_k5_programs_that_go_wrong_are_one_sentence(text, expected, tmp_path):
    """FAULTS K5 "`sys.exit(0)` in it ends `plan` with 0 and no output"."""
    with pytest.raises(UsageError, match=expected) as caught:
        trusting(written(tmp_path / "a.py", text))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_k5_an_endless_program_is_stopped_with_all_that_it_started(tmp_path, monkeypatch):
    """FAULTS K5 "an endless one hangs"."""
    monkeypatch.setattr(trusted_config, "SECONDS", 4.0)
    text = (
        "import sys\n"
        "child = __import__('subprocess').Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "while True: pass\n"
    )
    with pytest.raises(UsageError, match="still running after 4 seconds"):
        trusting(written(tmp_path / "a.py", text))
    pid = Path((tmp_path / "pid").read_text())
    for _ in range(100):  # until the system has buried it
        state = Path("/proc", pid, "stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")


def test_trusted_configs_have_what_mmengine_gives_them(tmp_path):
    name = written(tmp_path / "a.py", f"_base_ = [{BASE!r}]\nprint('x')\nlevels = {{1: (2, [3.5, None])}}\nn = 2 * 3\n")
    found = trusting(name)
    assert (found.levels, found.n) == ({1: (2, [3.5, None])}, 6)
    from tasks.models.openmmlab.models import read_config

    assert found.to_dict() == read_config(Path(name)).to_dict()
    tagged = written(tmp_path / "a.yaml", "n: !!python/object/apply:math.gcd [12, 18]")
    assert trusting(tagged).n == 6


def test_custom_modules_that_cannot_be_imported_get_a_sentence(tmp_path, monkeypatch):
    """They are imported in the process that ran the config, too; here only in this one."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trusted_config, "_content", lambda path: {"custom_imports": {"imports": [path.stem]}})
    (tmp_path / "ends_when_imported.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UsageError, match=r"custom modules of config .*ends_when_imported.py cannot be imported"):
        trusting(str(tmp_path / "ends_when_imported.py"))
    monkeypatch.setattr(trusted_config, "_content", lambda path: {"custom_imports": {"imports": ["no_such_module"]}})
    with pytest.raises(UsageError, match=r"custom modules of config .*cannot be imported .*no_such_module"):
        trusting(str(tmp_path / "ends_when_imported.py"))


@pytest.mark.slow
def test_custom_modules_are_imported_where_models_are_built(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_backbone_for_a_test.py").write_text(
        "from mmdet.registry import MODELS\nfrom mmengine.model import BaseModule\n\n\n"
        "@MODELS.register_module()\nclass MyBackboneForATest(BaseModule):\n    pass\n"
    )
    text = "custom_imports = dict(imports=['my_backbone_for_a_test'])\nmodel = dict(type='MyBackboneForATest')\n"
    config = trusting(written(tmp_path / "a.py", text))
    from tasks.models.openmmlab.models import build_random

    assert type(build_random("mmdet", config)).__name__ == "MyBackboneForATest"


@pytest.mark.parametrize("value", [{"a": (1, [2.5, None, {"b": ()}]), 3: True}, {"dict": [["list", 1]]}, float("inf")])
def test_plain_data_goes_to_json_and_back(value):
    assert restored(json.loads(json.dumps(plain(value)))) == value


# --- the command line ---------------------------------------------------------------------------------------------


def plan(*arguments):
    return CliRunner().invoke(app, ["plan", *later([*map(str, arguments)])])


def test_the_command_line_runs_configs_only_when_told(tmp_path, mark):
    root = make_coco(tmp_path / "coco")
    config = detection_config(tmp_path / "small.py", classes=CLASS_NAMES)
    config.write_text(config.read_text() + f"open({str(mark)!r}, 'w')\n")
    common = ("--tasks", "detection", "--suite", "coco", "--data-root", root, "--models", f"mmdet:{config}@random")
    common += ("--out", tmp_path / "out", "--methods", "minmax")
    result = plan(*common)
    assert result.exit_code == 2, result.output
    assert "run only if you say that you trust it, with --trust-configs" in " ".join(result.output.split())
    assert not mark.exists()
    result = plan(*common, "--trust-configs")
    assert result.exit_code == 0, result.output
    assert mark.exists()
    config.write_text("import sys\nsys.exit(0)\n")
    result = plan(*common, "--trust-configs")
    assert result.exit_code == 2, result.output
    assert "ends the program that reads it" in " ".join(result.output.split())


def test_trust_reaches_gate_worker_and_diagnosis(tmp_path):
    """Each opens suites by itself; a config that ends the program shows whether it was run."""
    root = make_coco(tmp_path / "coco")
    name = f"mmdet:{written(tmp_path / 'a.py', 'import sys' + chr(10) + 'sys.exit(0)')}@random"
    group = {"models": (name,), "methods": ("float",), "bits": ("W8A8",), "tolerance": 0, "elsewhere": 0, "reason": "x"}
    float_models = {"elsewhere": 0, "reason": "x"}
    suite = regress.Suite(suite="coco", task="detection", float_models=float_models, cases=(group,))
    catalog, place = Catalog.default(), SimpleNamespace(task="detection", suite="coco", data="")
    for trust, expected in ((False, "is a program"), (True, "ends the program")):
        with pytest.raises(UsageError, match=expected):
            regress.plan_cases(
                suite, tmp_path / "s.toml", catalog, Store(tmp_path / "out"), data_root=root, trust_configs=trust
            )
        place.data = catalog.tasks.get("detection").open_suite("coco", root).data_identity()
        settings = Settings(catalog, "cpu", 1, tmp_path, root, trust_configs=trust)
        cells = pd.DataFrame([{"task": "detection", "suite": "coco"}])
        for opened in (
            CellRunner(settings)._suite(place),
            *diagnose._suites(cells, catalog, root, trust_configs=trust).values(),
        ):
            with pytest.raises(UsageError, match=expected):
                opened.model_identity(name)


def test_only_tasks_with_configs_are_told_of_trust(monkeypatch):
    given = []
    monkeypatch.setattr(TaskInfo, "load", lambda self: lambda suite, **more: given.append(more))
    for runs in (False, True):
        info = TaskInfo("t", "", {"s": ""}, "m:f", runs_configs=runs)
        info.open_suite("s", None, trust_configs=True)
    assert given == [{"data_root": None}, {"data_root": None, "trust_configs": True}]


def test_trust_without_configs_is_refused(tmp_path):
    result = plan("--trust-configs", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "no model of classification has a config" in " ".join(result.output.split())
