"""Foreign methods and sources: numbers that are not what they say are refused, and nothing reaches another's cell."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.api.contracts import VisionModel
from harness.api.errors import BadResult
from harness.report.frame import cells_frame
from harness.results.record import Record
from harness.run.checks import check_handed_over
from harness.run.executors.base import Executor
from harness.run.executors.in_process import InProcess
from harness.run.executors.worker import WorkerProcess
from harness.run.process import ProcessState
from harness.run.runner import CellRunner
from harness.run.unchanged import Snapshot
from harness.run.work import Work

GUESTS = Path(__file__).parent / "guests"


def quiet(text: str, fraction: float) -> None:
    pass


def run(executor: Executor, cell) -> Record:
    (measured,) = executor.map(Work([cell]), lambda *_: None)
    return measured.record


def measure(worker: WorkerProcess, cell) -> Record:
    return worker.measure(cell, lambda *_: None).record


@pytest.fixture(autouse=True)
def guests(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(GUESTS))


def failure(runner: CellRunner, cell) -> str:
    record = runner.measure(cell, quiet).record
    assert record.status == "failed", record.metrics
    assert record.unverified is None
    return f"{record.failure.type}: {record.failure.message}"


def test_what_is_as_asked_is_verified(runner, toy_cell):
    record = runner.measure(toy_cell("good"), quiet).record
    assert (record.status, record.unverified) == ("ok", None), record.failure
    assert list(cells_frame([record], {})["verified"]) == [True]


def test_k2_what_cannot_be_looked_into_is_marked(runner, toy_cell):
    """FAULTS K2: `model.net` behind a closure, with an invented summary."""
    record = runner.measure(toy_cell("hidden"), quiet).record
    assert record.status == "ok"
    assert record.unverified == "it has no attribute `net`, the network that it runs"
    assert list(cells_frame([record], {})["verified"]) == [False]


def test_k2_a_float_copy_for_the_batches_of_the_evaluation_is_marked(runner, toy_cell):
    """FAULTS K2, a further member: another model answers where nobody looks; the first batch is looked at."""
    record = runner.measure(toy_cell("largeraside"), quiet).record
    assert record.status == "ok"
    first = "the first is 1/linear.0"
    assert record.unverified == f"1 operations of the float model did not run in its `net`, {first}"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("weightsonly", "BadResult: method 'weightsonly' the values of site '1/linear.0:in0' hold "),
        ("invented", "BadResult: method 'invented' weight '1.weight' has values that in one output channel hold "),
        (
            "threelogits",
            "BadResult: method 'threelogits' gives (3, 3) for 3 images, where the float model gives (3, 5)",
        ),
        ("onebatch", "BadResult: method 'onebatch' gives (1, 5) for 3 images, where the float model gives (3, 5)"),
        (
            "largerbatch",
            "BadResult: method 'largerbatch' weight '1.weight' has values that in one output channel hold ",
        ),
        ("nanlater", "BadResult: method 'nanlater' gives NaN or infinite values"),
        ("firstbatch", "changed its quantized model while that was evaluated, so that it may learn from evaluation"),
        ("running", "changed its quantized model while that was evaluated, so that it may learn from evaluation"),
        ("secondcall", "changed its quantized model while that was evaluated, so that it may learn from evaluation"),
        ("globalcall", "BadResult: method 'globalcall' gives other outputs for the same images after the evaluation"),
        ("peeks", "DataFreeViolation: method 'peeks' touched toy calibration images while it was evaluated"),
        ("nanimages", "BadResult: image source 'nanimages' made images with NaN or infinite pixels"),
        ("infimages", "BadResult: image source 'infimages' made images with NaN or infinite pixels"),
        ("bytesimages", "made images with values from "),
        ("flatimages", "BadResult: image source 'flatimages' made (20, 16) in place of images (n, 1, height, width)"),
    ],
)
def test_k2_a_number_that_is_not_what_it_says_fails(runner, toy_cell, method, message):
    """FAULTS K2: weights only, invented summaries, ranges from evaluation batches, NaN and bytes as images, logits."""
    assert message in failure(runner, toy_cell(method))


def test_images_of_a_foreign_source_that_are_fine_are_used(runner, toy_cell):
    record = runner.measure(toy_cell("goodimages"), quiet).record
    assert (record.status, record.unverified) == ("ok", None), record.failure


def test_eight_bit_layers_at_four_bits_fail(runner, toy_cell, monkeypatch):
    """FAULTS K2: 8-bit layers at W4A4."""
    import dfq_guest_impl

    import methods.core.graph.sites as sites_module
    from harness.api.spec import BitSpec

    find = sites_module.find_sites
    monkeypatch.setattr(dfq_guest_impl, "find_sites", lambda graph, scheme, spec: find(graph, scheme, BitSpec(8, 8)))
    assert "gives activation site '1/linear.0:in0' 8 bits, where W4A4 gives 4 (and 4 more" in failure(
        runner, toy_cell("good", bits="W4A4")
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("swaprows", "changed the float model that it was given: the values of '1.weight' are others"),
        ("netforward", "changed the float model that it was given: 'forward' is new"),
        ("newmodule", "changed the float model that it was given: "),
        ("attribute", "changed the float model that it was given: '0.start_dim' was 1 and is 2"),
        ("classforward", "replaced torch.nn.modules.linear.Linear.forward, which other methods and models use"),
        ("functional", "replaced torch.nn.functional.linear, which other methods and models use"),
        ("body", "replaced torch.nn.modules.flatten.Flatten.forward, which other methods and models use"),
        ("corepatch", "replaced methods.core.numerics.observers.MinMax.range, which other methods and models use"),
        ("latepatch", "replaced torch.nn.modules.linear.Linear.forward, which other methods and models use"),
        ("exits", "SystemExit: the code of the cell asked for the end of the program"),
        ("calledexit", "SystemExit: the code of the cell asked for the end of the program: 0"),
        ("hardexit", "SystemExit: the code of the cell asked for the end of the program: os._exit(0)"),
        ("interrupts", "KeyboardInterrupt: the code of the cell asked for the end of the program"),
    ],
)
def test_k2_nothing_reaches_the_next_cell(settings, toy_cell, method, message):
    """FAULTS K2: float rows swapped, `forward` replaced, modules swapped, torch patched; K3: `sys.exit()`."""
    executor = InProcess(settings)
    before = run(executor, toy_cell("good")).metrics
    record = run(executor, toy_cell(method))
    assert record.status == "failed"
    assert message in f"{record.failure.type}: {record.failure.message}"
    after = run(executor, toy_cell("good"))
    assert after.failure is None
    assert after.metrics == before


def test_switches_of_the_process_are_put_back_and_named(runner, toy_cell):
    folder, threads = Path.cwd(), torch.get_num_threads()
    before = runner.measure(toy_cell("good"), quiet).record.metrics
    record = runner.measure(toy_cell("switches"), quiet).record
    assert record.status == "ok"
    assert record.metrics == before
    (notice,) = record.warnings
    assert notice.message == (
        "method 'switches' changed torch's default dtype, torch's number of threads, gradient mode, deterministic "
        "algorithms, the environment, the working directory for the whole process; put back"
    )
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert "GUEST" not in os.environ
    assert Path.cwd() == folder


def test_memory_that_nothing_was_written_to_is_no_number(runner, toy_cell):
    """Else the cell would have another metric in every run."""
    runner.measure(toy_cell("noise+minmax"), quiet)  # the project's own methods do without
    assert not torch.empty(10_000).isnan().all()
    assert "NaN" in failure(runner, toy_cell("leftovers"))


def test_the_users_interrupt_is_one(settings, toy_cell, monkeypatch):
    import dfq_toy_suite

    executor = InProcess(settings)
    monkeypatch.setattr(dfq_toy_suite.Suite, "evaluate", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(executor, toy_cell("float"))


def test_the_projects_own_methods_follow_each_other_on_one_model(runner, toy_cell):
    for method in ("noise+minmax", "noise+omse", "noise+minmax"):
        record = runner.measure(toy_cell(method), quiet).record
        assert (record.status, record.unverified) == ("ok", None), record.failure


@pytest.mark.slow
def test_the_worker_is_a_new_one_after_foreign_code_and_failures(settings, toy_cell):
    """Whatever a guest leaves behind, also where nothing is looked at, dies with its process."""
    worker = WorkerProcess(settings)
    try:
        assert measure(worker, toy_cell("float")).status == "ok"
        kept = worker._process
        assert kept is not None
        assert measure(worker, toy_cell("good")).status == "ok"
        assert kept is not None
        assert not kept.is_alive()
        assert worker._process is None
        assert measure(worker, toy_cell("exits")).failure.type == "SystemExit"
        assert measure(worker, toy_cell("hardexit")).failure.type == "SystemExit"
        assert measure(worker, toy_cell("good")).status == "ok"
    finally:
        worker.close()


def test_k4_a_model_in_train_mode_is_the_tasks_fault(runner, toy_cell, monkeypatch):
    """FAULTS K4: a model handed over in train mode makes the method guilty."""
    import dfq_toy_suite

    load = dfq_toy_suite.Suite.load

    def trained(self, model, device):
        loaded = load(self, model, device)
        loaded.net.train()
        return loaded

    monkeypatch.setattr(dfq_toy_suite.Suite, "load", trained)
    text = "BadResult: task 'toy' hands over model 'tiny' in train mode; it is to call eval()"
    assert failure(runner, toy_cell("good")) == text
    monkeypatch.setattr(dfq_toy_suite.Suite, "load", load)
    assert runner.measure(toy_cell("good"), quiet).record.status == "ok"


def test_other_faults_of_a_task(toy_cell):
    def handed(net: nn.Module) -> None:
        check_handed_over(VisionModel("m", "t", net.eval(), (1, 4, 4), (0.0,), (1.0,), 2, None, None, None), "t")

    handed(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(BadResult, match="task 't' hands over model 'm' with parameters that require gradients"):
        handed(nn.Linear(2, 2))
    with pytest.raises(BadResult, match="with parameters that are not float32"):
        handed(nn.Linear(2, 2).requires_grad_(False).half())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.scale = 0.25
        self.sizes = [1, 2]
        self.register_buffer("hidden", torch.ones(2), persistent=False)

        self.later = lambda x: x * self.scale


def swap(net: Net) -> None:
    net.linear.weight.data = net.linear.weight.data[[1, 0, 2]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap, "the values of 'linear.weight' are others"),
        (lambda net: net.linear.weight.data[0].mul_(-1.0), "the values of 'linear.weight' are others"),
        (lambda net: net.hidden.add_(1), "the values of 'hidden' are others"),
        (lambda net: setattr(net, "scale", 0.5), "'scale' was 0.25 and is 0.5"),
        (lambda net: net.sizes.append(3), "'sizes[2]' is new"),
        (lambda net: net.register_forward_hook(print), "'_forward_hooks["),
        (lambda net: setattr(net.linear, "forward", print), "'linear.forward' is new"),
        (lambda net: net.linear.requires_grad_(False), "the values of 'linear.weight' are others"),
        (lambda net: net.eval(), "'training' was True and is False"),
        (lambda net: setattr(net, "linear", nn.Identity()), "'linear' was Linear and is Identity"),
        (lambda net: delattr(net, "sizes"), "'sizes' is gone"),
        (lambda net: setattr(net, "later", lambda x: x), "'later' was function"),
    ],
)
def test_any_change_of_a_model_is_seen(change, said):
    torch.manual_seed(0)
    net = Net()
    before = Snapshot(net)
    assert before.change(Snapshot(net)) is None
    with torch.no_grad():
        change(net)
    assert said in str(before.change(Snapshot(net)))


def test_patched_torch_is_put_back():
    state, own = ProcessState([Net]), nn.GELU.forward
    nn.GELU.forward = lambda self, x: x
    torch.Tensor.softmax = print
    Net.forward = print
    _, replaced = ProcessState.restore(state)
    assert set(replaced) == {
        "torch.nn.modules.activation.GELU.forward",
        "torch.Tensor.softmax",
        "test_guests.Net.forward",
    }
    assert nn.GELU.forward is own
    assert torch.Tensor.softmax is not print
    assert "forward" not in vars(Net)
    assert ProcessState.restore(state) == ([], [])


def test_code_and_methods_that_hide_inherited_ones_are_put_back():
    state = ProcessState([Net])
    body = patched.__code__
    nn.GELU.__setattr__ = nn.Module.__setattr__
    Net.fresh = print  # hides nothing
    functional.softplus, own = print, functional.softplus
    torch.nn.init.calculate_gain.__code__, gain = body, torch.nn.init.calculate_gain.__code__
    _, replaced = ProcessState.restore(state)
    del Net.fresh
    assert set(replaced) == {
        "torch.nn.modules.activation.GELU.__setattr__",
        "torch.nn.functional.softplus",
        "torch.nn.init.calculate_gain",
    }
    assert functional.softplus is own
    assert torch.nn.init.calculate_gain.__code__ is gain
    assert ProcessState.restore(state) == ([], [])


def patched(nonlinearity, param=None):
    return 0.0


def test_slots_arrays_and_shared_objects_are_part_of_a_snapshot():
    class Slotted:
        __slots__ = ("array", "twin")

        def __init__(self) -> None:
            self.array, self.twin = np.arange(4.0), None

    x = Slotted()
    before = Snapshot(x)
    assert before.change(Snapshot(x)) is None
    x.array[1] = 7
    assert "'array' was array" in str(before.change(Snapshot(x)))
    x.array[1], x.twin = 1, x.array
    assert str(before.change(Snapshot(x))) == "'twin' was None and is the same as 'array'"
