"""What methods lack in a network is known when a run is planned: nothing is downloaded, loaded or made for it."""

from __future__ import annotations

import pytest

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.catalog.requirements import Requirements, unmet
from harness.plan.plan import Request, make_plan
from harness.results.record import Failure, Provenance, Record
from harness.results.store import Store

METHODS = ("real", "psaq", "clamp", "qdrop", "mimiq")
QUICK = ("--seeds", "1", "--preset", "quick", "--limit", "10", "--threads", "1", "--in-process", "--bits", "W8A8")
HYBRID = "timm:vit_tiny_r_s16_p8_224@random"


def plan(tmp_path, *models, methods=METHODS, **more):
    request = Request(methods=methods, models=models, bits=("W8A8", "W4A4"), references=False, **more)
    return make_plan(request, Catalog.default(), Store(tmp_path))


@pytest.mark.parametrize(
    ("model", "skipped"),
    [
        ("vit_base_patch16_clip_quickgelu_224", set()),
        ("vit_base_patch16_rpn_224", set()),
        ("beit_base_patch16_224", set()),
        ("mixer_s32_224", {"psaq", "clamp", "real+qdrop", "mimiq"}),
        ("convnext_atto", {"psaq", "clamp", "real+qdrop", "mimiq"}),
        ("mobilevit_xxs", {"clamp", "real+qdrop"}),
    ],
)
def test_k1_admitted_by_evidence_and_skipped_when_planned(model, skipped):
    """FAULTS K1 "swinv2, eva02, beit ... refused by class" and "admitted, then psaq, clamp, qdrop fail with no
    transformer block".
    """
    from tasks.classification.suite import open_suite

    methods = Catalog.default().resolve_all(METHODS, "default", {})
    found = unmet(open_suite("embedded"), f"timm:{model}@random", methods, ["full", "matmul"])
    assert set(found) == {(method, scheme) for method in skipped for scheme in ("full", "matmul")}


def test_planned_states_keys_and_estimates(tmp_path):
    made = plan(tmp_path, "timm:resnet18@random", "vit")
    states = {(planned.cell.model, planned.cell.method): planned.state for planned in made.cells}
    assert {key for key, state in states.items() if state == "skip"} == {
        ("timm:resnet18@random", method) for method in ("psaq", "clamp", "real+qdrop", "mimiq")
    }
    skipped = [planned for planned in made.cells if planned.state == "skip"]
    assert made.skips == {planned.cell.key: planned.reason for planned in skipped}
    assert all(planned.run and planned.estimate == 0 for planned in skipped)


def test_k1_hybrids_are_refused_when_planned(cli):
    """FAULTS K1 "vit_tiny_r_s16_p8_224: admitted, every quantized cell fails": one sentence, exit code 2."""
    done = cli("bench", "--models", HYBRID, "--methods", "psaq", *QUICK, code=2)
    assert HYBRID in done.stderr
    assert "patch_embed.backbone.conv/conv.0" in done.stderr
    assert "standardized convolution" in done.stderr


def test_a_refused_model_is_refused_beside_others(tmp_path):
    with pytest.raises(UsageError, match="vit_tiny_r_s16_p8_224@random' cannot be quantized in scheme full"):
        plan(tmp_path, "vit", HYBRID, methods=("psaq",))


def test_only_float_needs_no_arithmetic_to_be_seen(tmp_path):
    assert [p.cell.method for p in plan(tmp_path, HYBRID, methods=("float",)).cells] == ["float"]


def test_nothing_is_downloaded_before_a_model_is_known_to_fit(tmp_path, monkeypatch):
    """Pretrained weights are not touched by the look at the architecture, and not at all if that is refused."""
    import timm

    from tasks.classification.suite import open_suite

    (tmp_path / "val" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a").mkdir(parents=True)
    from PIL import Image

    for part in ("train", "val"):
        Image.new("RGB", (8, 8)).save(tmp_path / part / "a" / "x.png")
    real, asked = timm.create_model, []

    def create(name, pretrained=False, **options):
        asked.append((name, pretrained))
        assert not pretrained
        return real(name, **{"num_classes": 1, **options})

    monkeypatch.setattr(timm, "create_model", create)
    suite = open_suite("imagenet", tmp_path)
    methods = Catalog.default().resolve_all(["psaq"], "default", {})
    assert unmet(suite, "timm:vit_tiny_patch16_224", methods, ["full"]) == {}
    assert set(unmet(suite, "timm:convnext_atto", methods, ["full"])) == {("psaq", "full")}
    with pytest.raises(UsageError, match="standardized convolution"):
        unmet(suite, "timm:vit_tiny_r_s16_p8_224", methods, ["full", "matmul"])
    assert {name for name, _ in asked} == {"vit_tiny_patch16_224", "convnext_atto", "vit_tiny_r_s16_p8_224"}


def test_what_scheme_and_precision_do_not_allow_is_known_when_it_is_planned(cli):
    """Without a model's weights: a scheme, a mixed precision, and microscaling."""
    options = ("--models", "vit", "--no-references", "--seeds", "1")
    planned = cli("plan", "--methods", "adalog,noisyquant,psaq", "--bits", "W4A8", *options).stdout
    assert "vit: real+adalog skipped: adalog is for scheme matmul, not full" in planned
    assert "vit: real+noisyquant skipped: noisyquant is for scheme matmul, not full" in planned
    assert "2 of 4 cells to run" in planned
    planned = cli(
        "plan", "--methods", "psaq+omse,clamp", "--bits", "MP4.5", "--models", "vit,swin", *options[2:]
    ).stdout
    assert "vit, swin: psaq+omse skipped: all layers get one width, and MP4.5 needs" in planned
    planned = cli("plan", "--methods", "psaq+repq", "--bits", "MXFP4A8", *options).stdout
    assert "psaq+repq skipped: weights' scales are searched in a way of its own" in planned


@pytest.mark.slow
def test_skipped_cells_are_recorded_without_loading_or_synthesis(cli, tmp_path):
    """A network without blocks: the float reference and a calibrator are measured, psaq is skipped with its reason."""
    options = ("--models", "timm:resnet18@random", "--methods", "psaq,noise", "--no-references", *QUICK)
    planned = cli("plan", *options).stdout
    assert "timm:resnet18@random: psaq skipped: no transformer block" in planned
    assert "2 of 3 cells to run" in planned
    cli("bench", *options)
    records = {record.cell.method: record for record in Store(tmp_path / "results/runs/embedded").records()}
    assert {method: record.status for method, record in records.items()} == {
        "float": "ok",
        "psaq": "skipped",
        "noise": "ok",
    }
    assert records["psaq"].reason.startswith("no transformer block")
    assert not records["psaq"].stages
    assert len(list((tmp_path / "results/cache").rglob("*.safetensors"))) <= 1  # of noise alone
    assert "all of them done" in cli("plan", *options).stdout


def test_a_failure_of_earlier_code_becomes_a_skip(tmp_path):
    """A cell that failed before it was known that the method cannot run there is not tried again."""
    first = plan(tmp_path, "timm:resnet18@random", methods=("psaq",))
    (cell,) = {p.cell.key: p.cell for p in first.cells if p.cell.method == "psaq" and p.cell.bits == "W8A8"}.values()
    provenance = Provenance(code="c", versions={}, hardware={}, device="cpu", threads=1, git=None)
    failure = Failure(type="NotATransformerError", message="no transformer block")
    record = {"key": cell.key, "cell": cell, "status": "failed", "failure": failure, "provenance": provenance}
    Store(tmp_path).save(Record(**record, started="s", finished="f"))
    again = plan(tmp_path, "timm:resnet18@random", methods=("psaq",))
    assert {p.state for p in again.cells if p.cell.method == "psaq"} == {"skip"}


def test_the_suites_own_models_are_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(Requirements, "unmet", lambda *_: pytest.fail("looked at a model of the suite"))
    assert len(plan(tmp_path, methods=("psaq",)).cells) == 6


def test_each_requirement_is_looked_into_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "harness.catalog.requirements.import_target",
        lambda target: lambda model, scheme: asked.append((target, scheme)),
    )

    class Model:
        def restricted(self, part):
            asked.append(part)
            return self

    requirements = Requirements(Model())
    for _ in range(3):
        assert requirements.unmet(("a", "b"), "full:backbone") is None
    assert [entry for entry in asked if entry != "backbone"] == [("a", "full"), ("b", "full")]
    assert "backbone" in asked


def test_one_scheme_that_cannot_be_is_skipped_and_the_other_runs(monkeypatch):
    def requirement(_model, scheme):
        if scheme == "full":
            raise UsageError("model 'm' cannot be quantized in scheme full: why")

    class Suite:
        def untrained(self, model):
            class Model:
                def restricted(self, part):
                    assert part is None
                    return self

            return Model()

    monkeypatch.setattr("harness.catalog.requirements.import_target", lambda _target: requirement)
    methods = Catalog.default().resolve_all(["real", "psaq"], "default", {})
    found = unmet(Suite(), "m", methods, ["full", "matmul"])
    assert set(found) == {("real", "full"), ("psaq", "full")}
    with pytest.raises(UsageError, match="scheme full: why"):
        unmet(Suite(), "m", methods, ["full"])


@pytest.mark.parametrize("target", ["no_such_module:there", "math:sqrt", "math:no_such_name"])
def test_a_plugin_whose_requirement_is_broken_costs_its_own_cells(target):
    class Model:
        def restricted(self, _part):
            return self

    assert Requirements(Model()).unmet((target,), "full").startswith(f"{target} does not say what is required (")


def test_every_calibrator_and_method_of_the_project_says_what_it_requires():
    catalog = Catalog.default()
    from methods.catalog import CALIBRATORS, METHODS, SOURCES, TRANSFORMS

    registries = (catalog.methods, METHODS), (catalog.transforms, TRANSFORMS), (catalog.calibrators, CALIBRATORS)
    for registry, names in registries:
        for name in names:
            assert registry.get(name).requires.startswith("methods.core.graph.requirements:"), name
    assert {name for name in SOURCES if not catalog.sources.get(name).requires} == {"noise", "real"}
