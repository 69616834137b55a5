from __future__ import annotations

import pytest

from harness.api.errors import UsageError
from harness.catalog.catalog import Catalog
from harness.catalog.code import code_for
from harness.plan.outcome import exit_code
from harness.plan.plan import Request, make_plan
from harness.results.record import Provenance, Record
from harness.results.store import Store

TOY = {"suite": "toy", "tasks": ("toy",), "references": False}


def record(cell, catalog, status="ok", *, seconds=2.0, code=None, versions=None) -> Record:
    from harness.results.provenance import versions as present

    found = code_for(catalog, cell)
    provenance = Provenance(
        code=code or found.fingerprint,
        versions=versions or {**dict(found.versions), **present()},
        hardware={},
        device="cpu",
        threads=1,
        git=None,
    )
    numbers = {"primary_metric": "top1", "metrics": {"top1": 100.0}} if status == "ok" else {}
    return Record(
        **{"key": cell.key, "cell": cell, "status": status, "seconds": seconds, **numbers},
        **{"provenance": provenance, "started": "s", "finished": "f"},
    )


def save(store, made) -> None:
    import pandas as pd

    store.save(made, pd.DataFrame({"correct": [True]}))


def test_order_and_deduplication(catalog, store):
    request = Request(
        methods=("toynoise", "toyround", "toynoise+toyround", "float"), bits=("W4A8", "w4a8"), seeds=2, **TOY
    )
    cells = [planned.cell for planned in make_plan(request, catalog, store).cells]
    expected = [("float", 0), ("toynoise", 0), ("toynoise", 1)]
    assert [(c.model, c.method, c.seed) for c in cells] == [(m, *rest) for m in ("tiny", "tiny2") for rest in expected]
    assert {cell.bits for cell in cells} == {"FP32", "W4A8"}


def test_the_place_of_a_model_is_no_part_of_its_cell(catalog, store):
    def plan(model):
        return make_plan(Request(methods=("toynoise",), models=(model,), **TOY), catalog, store)

    assert plan("./here/tiny").keys == plan("tiny").keys
    assert plan("./here/tiny").requested == {"tiny": "./here/tiny"}


def test_references_are_added(catalog, store):
    request = Request(methods=("toynoise",), **{**TOY, "references": True})
    methods = {planned.cell.method for planned in make_plan(request, catalog, store).cells}
    assert methods == {"float", "noise", "real", "toynoise"}


def test_an_ablation_is_the_method_and_its_variants_without_references(catalog, store):
    request = Request(methods=(), ablation="toyswitch", preset="quick", **{**TOY, "references": True})
    cells = [planned.cell for planned in make_plan(request, catalog, store).cells]
    names = list(dict.fromkeys(cell.method for cell in cells))
    assert names == ["float", "toyswitch", "toyswitch[smooth=false]", "toyswitch[count=1]"]
    base, variant, _ = (cell.options["parts"]["source:toyswitch"] for cell in cells[1:10:3])
    assert variant == {**base, "smooth": False}
    assert all(catalog.restore(cell.method, cell.options).name == cell.method for cell in cells)


def test_options_hold_for_a_whole_ablation(catalog, store):
    request = Request(methods=(), ablation="toyswitch", overrides={"toyswitch": {"count": 9}}, **TOY)
    counts = {
        planned.cell.method: planned.cell.options["parts"]["source:toyswitch"]["count"]
        for planned in make_plan(request, catalog, store).cells
        if not planned.cell.is_float
    }
    assert counts == {"toyswitch": 9, "toyswitch[smooth=false]": 9, "toyswitch[count=1]": 1}


def test_a_variant_is_taken_to_last_as_long_as_its_base(catalog, store):
    request = Request(methods=("toynoise", "toynoise[count=2]"), models=("tiny",), bits=("W4A8",), **TOY)
    save(store, record(make_plan(request, catalog, store).cells[1].cell, catalog, seconds=3.0))
    assert [planned.estimate for planned in make_plan(request, catalog, store).cells] == [None, 3.0, 3.0]


def test_states_and_what_is_run(catalog, store):
    request = Request(methods=("toynoise",), models=("tiny",), **TOY)
    first, second, third, fourth = (planned.cell for planned in make_plan(request, catalog, store).cells)
    save(store, record(first, catalog))
    save(store, record(second, catalog, code="other"))
    save(store, record(third, catalog, status="failed"))

    def plan(rerun):
        return make_plan(Request(methods=("toynoise",), models=("tiny",), rerun=rerun, **TOY), catalog, store)

    assert [planned.state for planned in plan("failed").cells] == ["done", "stale", "failed", "new"]
    assert [planned.cell for planned in plan("failed").todo] == [third, fourth]
    assert [planned.cell for planned in plan("stale").todo] == [second, third, fourth]
    assert len(plan("all").todo) == 4
    assert plan("failed").reused_stale == 1
    assert plan("stale").reused_stale == 0


def test_other_torch_is_stale(catalog, store):
    request = Request(methods=("toynoise",), models=("tiny",), **TOY)
    cell = make_plan(request, catalog, store).cells[0].cell
    save(store, record(cell, catalog, versions={"torch": "0.1"}))
    assert make_plan(request, catalog, store).cells[0].state == "stale"


def test_a_record_without_its_outcomes_is_measured_again(catalog, store):
    request = Request(methods=("toynoise",), models=("tiny",), **TOY)
    store.save(record(make_plan(request, catalog, store).cells[0].cell, catalog))
    assert make_plan(request, catalog, store).cells[0].state == "new"


def test_estimates_come_from_the_model_then_the_method(catalog, store):
    request = Request(methods=("toynoise",), bits=("W8A8", "W4A8"), **TOY)
    cells = [planned.cell for planned in make_plan(request, catalog, store).cells]
    save(store, record(cells[1], catalog, seconds=3.0))

    def estimates():
        return [planned.estimate for planned in make_plan(request, catalog, store).cells]

    assert estimates() == [None, 3.0, 3.0, None, 3.0, 3.0]
    save(store, record(cells[4], catalog, seconds=5.0))
    assert estimates() == [None, 3.0, 3.0, None, 5.0, 5.0]


def test_a_task_without_a_model_is_refused(catalog, store):
    """Its cells were left out without a word, where another task knew the models that were named."""
    tasks = {"tasks": ("classification", "segmentation"), "references": False}
    with pytest.raises(
        UsageError, match=r"task 'segmentation' has none of the models named \(vit\); name one of it with"
    ):
        make_plan(Request(methods=("noise",), models=("vit",), **tasks), catalog, store)


def test_what_a_fitted_method_leaves_out_is_said(catalog, store):
    """Of `psaq[bits]+minmax` only the images are run at the precision of `fitted`: options of the rest go."""
    known = {
        "methods": ("clamp[passes=1,steps=3]", "noise"),
        "models": ("vit",),
        "bits": ("W8A8",),
        "fitted": ("W4A4",),
    }
    (notice,) = make_plan(Request(**known, references=False), catalog, store).notices
    assert (
        notice
        == "clamp[passes=1,steps=3] at W4A4 is clamp[steps=3]+repq, where passes of its own calibrator has no part"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "--limit must be at least 1"),
        ({"limit": 41}, "limit 41, but there are 40 images"),
        ({"seeds": 0}, "--seeds must be 1 to 1,000"),
        ({"bits": ()}, "--bits is empty"),
        ({"bits": ("W4",)}, "try W4A8"),
        ({"schemes": ("ful",)}, "did you mean 'full'"),
        ({"tasks": ("tpy",)}, "did you mean 'toy'"),
        ({"suite": "tyo"}, "unknown toy suite 'tyo'; did you mean 'toy'"),
        ({"models": ("tinny",)}, "unknown model 'tinny'"),
        ({"rerun": "some"}, "known: all, failed, stale"),
        ({"methods": ("toynose",)}, "did you mean 'toynoise'"),
        ({"ablation": "toyswitch"}, "--ablation says which methods are run; leave out --methods"),
        ({"methods": (), "ablation": "toynoise"}, "'toynoise' has no ablations; with ablations: .*toyswitch"),
        ({"methods": (), "ablation": "toyodd"}, "ablation 'typo' of source 'toyodd' is broken"),
        ({"methods": (), "ablation": "toyswtch"}, "did you mean 'toyswitch'"),
    ],
)
def test_bad_requests(catalog, store, changes, message):
    with pytest.raises(UsageError, match=message):
        make_plan(Request(**({"methods": ("toynoise",), **TOY} | changes)), catalog, store)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (("ok", "ok", "ok"), 0),
        (("ok", "ok", "skipped"), 0),
        (("ok", "ok", "failed"), 3),
        (("ok", "failed", "failed"), 3),
        (("failed", "failed", "failed"), 4),
        (("ok", "skipped", "skipped"), 4),
        (("skipped", "skipped", "skipped"), 4),
    ],
)
def test_exit_codes(catalog, store, states, code):
    request = Request(methods=("toynoise",), models=("tiny",), bits=("W8A8", "W4A8"), **TOY)
    plan = make_plan(request, catalog, store)
    records = [record(planned.cell, catalog, status) for planned, status in zip(plan.cells, states, strict=True)]
    assert exit_code(plan, records) == code


def test_float_alone_is_a_measurement(catalog, store):
    plan = make_plan(Request(methods=("float",), models=("tiny",), **TOY), catalog, store)
    assert exit_code(plan, [record(plan.cells[0].cell, catalog)]) == 0


def test_k2_a_cell_is_found_however_it_was_asked_for(catalog, store):
    """FAULTS K2 "`psaq[steps=10]` and `--option psaq.steps=10`": measured under one, there under the other."""
    with_option = Request(
        methods=("toynoise",), overrides={"toynoise": {"count": 2}}, models=("tiny",), bits=("W4A8",), **TOY
    )
    cell = make_plan(with_option, catalog, store).cells[1].cell
    save(store, record(cell, catalog))
    in_brackets = Request(methods=("toynoise[count=2]",), models=("tiny",), bits=("W4A8",), **TOY)
    plan = make_plan(in_brackets, catalog, store)
    assert [planned.state for planned in plan.cells] == ["new", "done"]
    assert cell.key in plan.keys


def test_a_record_of_a_key_with_brackets_is_found(catalog, store):
    request = Request(methods=("toynoise[count=2]",), models=("tiny",), bits=("W4A8",), **TOY)
    made = record(make_plan(request, catalog, store).cells[1].cell, catalog)
    save(store, made.model_copy(update={"key": made.cell.labelled_key}))
    assert make_plan(request, catalog, store).cells[1].state == "done"


def test_only_methods_that_are_given_images_have_them_in_their_key(catalog, store, monkeypatch):
    import dfq_toy_suite

    plain = Request(methods=("toynoise", "toyreal"), models=("tiny",), bits=("W4A8",), **TOY)
    before = {p.cell.method: p.cell for p in make_plan(plain, catalog, store).cells}
    assert {cell.calibration for cell in before.values()} == {""}
    monkeypatch.setattr(dfq_toy_suite.Suite, "calibration_identity", lambda self: "pool", raising=False)
    after = {p.cell.method: p.cell for p in make_plan(plain, catalog, store).cells}
    assert {name: cell.calibration for name, cell in after.items()} == {"float": "", "toynoise": "", "toyreal": "pool"}
    assert [name for name in before if before[name].key != after[name].key] == ["toyreal"]


def test_k3_a_suite_without_training_images_is_refused_only_if_a_method_needs_them(catalog, store, monkeypatch):
    """FAULTS K3 "`--suite imagenet` without `train/`, data-free methods, `--no-references`"."""
    import dfq_toy_suite

    def none(self):
        raise UsageError("there are no training images")

    monkeypatch.setattr(dfq_toy_suite.Suite, "calibration_identity", none, raising=False)
    assert make_plan(Request(methods=("toynoise",), **TOY), catalog, store).cells
    with pytest.raises(UsageError, match="no training images"):
        make_plan(Request(methods=("toynoise", "toyreal"), **TOY), catalog, store)


def test_what_a_suite_says_of_its_models_is_in_the_plan_once(catalog, store, monkeypatch):
    import dfq_toy_suite
    from rich.console import Console

    from harness.run.display import show_plan

    monkeypatch.setattr(dfq_toy_suite.Suite, "notices", lambda self, m: [f"of [bold]{m}", "of all"], raising=False)
    plan = make_plan(Request(methods=("toynoise",), **TOY), catalog, store)
    assert plan.notices == ("of [bold]tiny", "of all", "of [bold]tiny2")
    console = Console(width=140, record=True, quiet=True)
    with console.capture() as shown:
        console.quiet = False
        show_plan(plan, console)
    assert "Note: of [bold]tiny." in shown.get()


def test_the_usual_precisions_are_those_that_each_method_can_and_low_ones_fit(tmp_path):
    store = Store(tmp_path)

    def cells(**more):
        made = make_plan(Request(("clamp", "psaq"), ("vit",), seeds=2, **more), Catalog.default(), store)
        return {(p.cell.method, p.cell.bits) for p in made.cells if p.cell.seed == 1}

    usual = {"bits": ("W8A8", "MP4.5"), "bits_typed": False, "fitted": ("W4A4",)}
    four = {"clamp", "psaq", "noise", "real"}
    assert cells(**usual) == {*((m, "W8A8") for m in four), ("clamp", "MP4.5"), *((f"{m}+repq", "W4A4") for m in four)}
    made = make_plan(Request(("psaq",), ("vit",), **usual), Catalog.default(), store)
    quantized = {(p.cell.bits, p.cell.scheme) for p in made.cells if not p.cell.is_float}
    assert quantized == {("W8A8", "full"), ("W4A4", "matmul")}
    # What was typed is run as it was typed, and skipped with a reason where it cannot be.
    assert cells(bits=("W8A8", "MP4.5")) == {(m, bits) for m in four for bits in ("W8A8", "MP4.5")}


def test_a_first_look_is_at_as_many_images_as_the_task_says_and_only_where_nothing_is_said(tmp_path, monkeypatch):
    catalog, store = Catalog.default(), Store(tmp_path)
    task = catalog.tasks.get("classification")

    def planned(**more):
        plan = make_plan(Request(("psaq",), **{"models": ("vit",), "bits": ("W8A8",), **more}), catalog, store)
        return {each.cell.limit for each in plan.cells}, plan.notices

    limits, notices = planned(first_look=True)
    assert limits == {1000}
    assert [text for text in notices if "1,000" in text and "--limit" in text]
    assert planned(first_look=True, limit=7) == ({7}, ())
    assert planned() == ({None}, ())
    tiny = {"suite": "tiny", "models": (), "first_look": True}
    assert planned(**tiny)[0] == {None}
    monkeypatch.setitem(vars(task), "first_look", {"embedded": 3000})  # of 2,000
    assert planned(first_look=True) == ({None}, ())


def test_an_option_of_a_method_alone_does_not_hinder_its_images(tmp_path):
    request = Request(("clamp",), ("vit",), ("W8A8",), fitted=("W4A4",), overrides={"clamp": {"held_out": "none"}})
    methods = {planned.cell.method for planned in make_plan(request, Catalog.default(), Store(tmp_path)).cells}
    assert {"clamp", "clamp+repq"} < methods


def test_an_ablation_has_no_fitted_precisions(catalog, store):
    with pytest.raises(UsageError, match="leave out --fitted"):
        make_plan(Request((), ablation="toyswitch", fitted=("W4A4",), **TOY), catalog, store)
