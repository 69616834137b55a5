"""The commands as a user types them; the last tests in real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.catalog.catalog import Catalog
from harness.cli import main as cli_module
from harness.results.store import Store

PLUGINS = Path(__file__).parent / "plugins"
ROOT = Path(__file__).parents[2]
WHERE = ["--suite", "toy", "--tasks", "toy", "--models", "tiny", "--threads", "1"]
TOY = [*WHERE, "--no-references", "--seeds", "1"]


@pytest.fixture
def bench(cli, monkeypatch):
    """`bench` in this process, without the seconds that figures take."""

    def write_report(store, out_dir, keys=None, console=None):
        (out_dir / "report").mkdir(exist_ok=True)
        (out_dir / "report" / "keys").write_text(str(keys and len(keys)))

    monkeypatch.setattr("harness.report.write_report", write_report)

    def run(methods: str, *arguments: str, code: int = 0):
        return cli("bench", *TOY, "--in-process", "--methods", methods, *arguments, code=code)

    return run


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    return {record.key: record.metrics for record in Store(folder).records()}


RUNS = Path("results/runs/toy")


def test_the_same_command_twice_runs_nothing_and_changes_nothing(bench):
    assert "7 cells to run" in bench("toynoise,toyreal").output.replace("of 7 ", "")
    first = {path: path.read_bytes() for path in RUNS.glob("*.json")}
    assert len(first) == 7
    assert (RUNS / "report").is_dir()
    again = bench("toynoise,toyreal")
    assert "nothing to run" in again.output
    assert {path: path.read_bytes() for path in RUNS.glob("*.json")} == first


@pytest.mark.slow
def test_measuring_again_gives_identical_metrics(bench):
    bench("toynoise,toyreal")
    first = metrics(RUNS)
    bench("toynoise,toyreal", "--rerun", "all")
    assert metrics(RUNS) == first
    bench("toynoise,toyreal", "--out", "other", "--cache", "other_cache")
    assert metrics(Path("other")) == first


def test_a_method_that_raises_leaves_the_rest(bench):
    result = bench("toyraise,toynoise", code=3)
    assert "FAILED ValueError: a toy error" in result.output
    records = {(r.cell.method, r.cell.bits): r for r in Store(RUNS).records()}
    assert len(records) == 7
    failed = [record for record in records.values() if record.status == "failed"]
    assert {record.cell.method for record in failed} == {"toyraise"}
    assert "Misbehaves" in failed[0].failure.traceback or "dfq_toy_impl" in failed[0].failure.traceback
    assert list((RUNS / "report").iterdir())
    again = bench("toyraise,toynoise", code=3)
    assert "3 of 7 cells to run" in again.output


def test_a_failure_does_not_cost_an_earlier_result(bench, monkeypatch):
    import dfq_toy_impl

    bench("toyreal", "--no-references")
    first = metrics(RUNS)

    def fail(*_, **__):
        raise ValueError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(dfq_toy_impl.Real, "images", fail)
        output = bench("toyreal", "--no-references", "--rerun", "all", code=3).output
    assert "3 of these cells failed when measured again; the tables have their earlier results." in output
    assert metrics(RUNS) == first
    bench("toyreal", "--no-references", "--rerun", "all")


def test_touching_data_fails_the_cell(bench):
    bench("toytouch", "--bits", "W4A8", code=3)
    (failed,) = [record for record in Store(RUNS).records() if record.status == "failed"]
    assert failed.failure.type == "DataFreeViolation"


def test_skipping_everything_measures_nothing(bench):
    assert "Nothing was measured" in bench("toyskip", code=4).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit must be at least 1"),
        (["--limit", "some"], "--limit must be a number of images or 'all', not 'some'"),
        (["--limit", ""], "--limit is empty; leave it out or give it a value"),
        (["--limit", "²"], "--limit must be a number of images or 'all', not '²'"),
        (["--limit", "41"], "there are 40 images"),
        (["--suite", "tyo"], "did you mean 'toy'"),
        (["--bits", "W44"], "try W4A8"),
        (["--bits", "W1A8"], "outside 2 to 8"),
        (["--schemes", "full:"], "names no part; write --schemes full"),
        (["--models", "tinny"], "unknown model 'tinny'"),
        (["--methods", "toynose"], "did you mean 'toynoise'?"),
        (["--methods", "toybroken"], "cannot be imported"),
        (["--methods", ","], "--methods is empty"),
        (["--methods", "toynoise[count=0]"], "option toynoise.count"),
        (["--methods", "toynoise[count=1,toyreal"], "the brackets of 'toynoise[count=1,toyreal' are malformed"),
        (["--methods", "{toynoise,toyreal+toyround"], "the braces of '{toynoise,toyreal+toyround' are malformed"),
        (["--methods", "{toynoise,toyreel}+toyround"], "did you mean 'toyreal'"),
        (["--ablation", "toyswitch"], "leave out --methods"),
        (["--option", "toynoise.count=0"], "option toynoise.count"),
        (["--option", "toynoise"], "NAME.FIELD=VALUE"),
        (["--option", "toynoise.count=3", "--option", "toynoise.count=3"], "toynoise.count is given twice"),
        (["--option", "toynoise.count=true"], "option toynoise.count: Input should be a number, not true"),
        (
            ["--methods", "toynoise[count=3],toyreal", "--option", "toynoise.count=4"],
            "--option toynoise.count has no effect, since every toynoise of this run has it in brackets",
        ),
        (["--option", "psaq.steps=3"], "--option names 'psaq', which no method of this run uses"),
        (["--device", "cude"], "did you mean 'cuda'?"),
        (["--preset", "quik"], "did you mean 'quick'?"),
        (["--rerun", "sale"], "did you mean 'stale'?"),
        (["--threads", "0"], "--threads"),
        (["--timeout", "3"], "leave it out or use --executor worker"),
        (["--jobs", "2"], "--jobs: executor 'in-process' has no use for it"),
        (["--jobs", "0"], "--jobs must be 1 to"),
        (["--gpus", "0"], "--gpus must be above 0"),
        (["--slurm", "gpu"], "--slurm 'gpu' is not of the form NAME=VALUE"),
        (["--detach"], "--detach: executor 'in-process' has no use for it"),
        (["--out", "file/below"], "cannot write to folder file/below"),
        (["--cache", "file/below"], "--cache"),
    ],
)
def test_bad_input_is_one_sentence(bench, tmp_path, arguments, message):
    (tmp_path / "file").touch()
    result = bench("toynoise", *arguments, code=2)
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name not in {"file", "results"}] == []
    if "--cache" not in arguments:
        assert not Path("results").exists()
    assert not list(RUNS.glob("*.json"))


def test_variants_in_brackets(bench):
    bench("toyswitch[count=1,text=a],toyswitch", "--bits", "W4A8")
    methods = {record.cell.method for record in Store(RUNS).records()}
    assert methods == {"float", "toyswitch", "toyswitch[count=1,text=a]"}
    assert "nothing to run" in bench("toyswitch[text=a,count=1.0]+toyround", "--bits", "W4A8").output


def test_braces_are_all_crosses(bench):
    bench("{toynoise[count=1],toyreal}+{toyround},toyswitch", "--bits", "W4A8")
    methods = {record.cell.method for record in Store(RUNS).records()}
    assert methods == {"float", "toynoise[count=1]", "toyreal", "toyswitch"}


def cells_of(folder: Path) -> list:
    return [record.cell for record in Store(folder).records() if not record.cell.is_float]


@pytest.mark.slow
def test_an_ablation_has_defaults_of_its_own(cli):
    run = ("bench", *WHERE, "--in-process", "--ablation", "toyswitch")
    shown = cli(*run).output
    assert re.search(r"^# Ablation$.*^\| toyswitch \* \(base\).*^\| not smooth", shown, re.MULTILINE | re.DOTALL)
    assert "# Comparison" not in shown
    folder = Path("results/runs/toy-ablation")
    assert (folder / "report" / "ablation.csv").exists()
    cells = cells_of(folder)
    assert len(cells) == 9
    assert {(cell.bits, cell.preset) for cell in cells} == {("W4A5", "quick")}
    assert {cell.method for cell in cells} == {"toyswitch", "toyswitch[smooth=false]", "toyswitch[count=1]"}
    cli(*run, "--bits", "W8A8", "--seeds", "1", "--preset", "default", "--out", "own")
    assert {(cell.bits, cell.preset, cell.seed) for cell in cells_of(Path("own"))} == {("W8A8", "default", 0)}
    assert not (RUNS / "report").exists()


def test_an_unexpected_error_is_no_regression(monkeypatch, capsys):
    def fail():
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli_module, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli_module.main()
    assert ended.value.code == 70
    assert "RuntimeError: a bug" in capsys.readouterr().err


def test_a_truncated_record_is_named_measured_again_and_kept(bench):
    bench("toynoise", "--bits", "W8A8")
    path = sorted(RUNS.glob("*.json"))[0]
    cut = path.read_bytes()[:100]
    path.write_bytes(cut)
    others = {each: each.read_bytes() for each in RUNS.glob("*.json") if each != path}
    result = bench("toynoise", "--bits", "W8A8")
    assert f"record {path} cannot be read" in result.stderr
    assert len(path.read_bytes()) > len(cut)
    assert (RUNS / "unusable" / "1" / path.name).read_bytes() == cut
    assert {each: each.read_bytes() for each in others} == others


def test_plan_runs_and_writes_nothing(cli, tmp_path):
    output = cli("plan", *TOY, "--methods", "toynoise").output
    assert "no time estimate" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tables(cli):
    assert "no results folder" in cli("tables", "--out", "nowhere", code=2).stderr
    RUNS.mkdir(parents=True)
    cli("tables", "--out", str(RUNS), code=4)
    cli("bench", *TOY, "--in-process", "--methods", "toynoise", "--bits", "W4A8")
    first = (RUNS / "report" / "comparison.csv").read_bytes()
    (RUNS / "report" / "comparison.csv").unlink()
    for images in RUNS.glob("*.images.npz"):
        os.truncate(images, images.stat().st_size // 2)
    cli("tables", "--out", str(RUNS))
    assert (RUNS / "report" / "comparison.csv").read_bytes() == first
    assert not (RUNS / "report" / "published.md").exists()
    shown = cli("tables", "--out", str(RUNS), "--published").output
    assert "No model measured here (tiny; suite toy) has a published number" in shown
    assert (RUNS / "report" / "published.md").read_text() in shown


@pytest.mark.slow
def test_report(cli, tmp_path):
    assert "no results folder" in cli("report", "--out", "nowhere", code=2).stderr
    RUNS.mkdir(parents=True)
    cli("report", "--out", str(RUNS), code=4)
    cli("bench", *TOY, "--in-process", "--methods", "toynoise", "--bits", "W4A8")
    assert cli("report", "--out", str(RUNS)).output.endswith(f"{RUNS / 'report' / 'report.html'}\n")
    page = (RUNS / "report" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "None of these records is stale." in page
    assert str(tmp_path) not in page
    assert "is a folder" in cli("report", "--out", str(RUNS), "--html", str(RUNS), code=2).stderr
    (tmp_path / "file").touch()
    assert "--html" in cli("report", "--out", str(RUNS), "--html", "file/page.html", code=2).stderr


def test_list(cli):
    methods = cli("list", "methods").output
    assert "toynoise" in methods
    assert "broken: toybroken" in methods
    assert "clamp" in methods
    assert "tiny2" in cli("list", "models").output
    assert "toy" in cli("list", "tasks").output
    executors = cli("list", "executors").output
    assert re.search(r"^worker +.*--timeout.* cells in processes of their own", executors, re.MULTILINE)
    assert "in-process" in executors
    assert "did you mean 'models'?" in cli("list", "model", code=2).stderr


def test_describe(cli):
    text = cli("describe", "toynoise").output
    for part in ("A toy paper", "it is a toy", "images to make", "count", "quick"):
        assert part in text
    switches = cli("describe", "toyswitch").output
    for part in ("ablation", "not smooth", "toyswitch[smooth=false]", "one image"):
        assert part in switches
    assert "ablation 'typo' of source 'toyodd' is broken" in cli("describe", "toyodd", code=2).stderr
    for name in ("clamp[steps=1]", "clamp", "psaq", "noise", "omse", "psaq+omse", "float"):
        cli("describe", name)
    assert "did you mean 'toynoise'" in cli("describe", "toynose", code=2).stderr
    assert "option toynoise.count" in cli("describe", "toynoise[count=some]", code=2).stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "3e6"])
def test_timeouts_that_cannot_be_waited_for_are_refused(cli, seconds):
    stderr = cli(
        "bench", "--methods", "toynoise", "--tasks", "toy", "--suite", "toy", "--timeout", seconds, code=2
    ).stderr
    assert "at most 1,000,000" in stderr


def process_environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join((str(ROOT), str(PLUGINS)))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def harness(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "harness", *arguments]


def imported(cwd: Path, *commands: list[str]) -> set[str]:
    """Packages that take long to import and are there after the commands, which are run in a process of their own."""
    script = (
        "import sys; from harness.cli.main import app\n"
        f"for words in {commands!r}:\n"
        "    app(words, standalone_mode=False)\n"
        "print(*{'torch', 'pandas', 'pyarrow', 'matplotlib', 'timm', 'scipy', 'numpy'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=cwd, env=process_environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_listing_imports_nothing_heavy(tmp_path):
    commands = ["list", "methods"], ["list", "models"], ["list", "tasks"], ["list", "executors"], ["describe", "psaq"]
    assert imported(tmp_path, *commands) == set()


def test_planning_a_suite_with_its_own_models_imports_no_torch(tmp_path):
    assert imported(tmp_path, ["plan", "--methods", "psaq,clamp,noise+repq"]) == {"numpy"}


def test_merging_imports_neither_torch_nor_matplotlib(cli, tmp_path):
    cli("bench", *TOY, "--in-process", "--methods", "toynoise", "--bits", "W4A8")
    assert imported(tmp_path, ["merge", str(RUNS), "--into", "all"]) <= {"numpy", "pandas", "pyarrow"}
    assert len(list((tmp_path / "all").glob("*.json"))) == 2


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("by", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_run_is_finished_by_the_same_command(cli, tmp_path, by, code):
    marker = tmp_path / "hangs"
    command = harness("bench", *TOY, "--methods", "toynoise,toyhang,toyreal", "--bits", "W4A8")
    environment = process_environment(TOY_HANG=str(marker))
    # A background shell job ignores SIGINT and its children inherit that; a terminal's Ctrl-C finds the default.
    process = subprocess.Popen(
        [*command, "--jobs", "1"],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - single-threaded child
    )
    wait_for(marker, process)
    if by == signal.SIGKILL:
        process.kill()  # the worker must notice on its own
    else:
        os.killpg(process.pid, by)  # as Ctrl-C does
    _, errors = process.communicate(timeout=60)  # returns when the worker, which holds stderr too, is gone
    assert process.returncode == code
    assert b"Traceback" not in errors
    folder = tmp_path / RUNS
    kept = {path: path.read_bytes() for path in folder.glob("*.json")}
    assert len(kept) == 2  # float and toynoise
    if by != signal.SIGKILL:
        return
    # The executor is not part of a cell's identity, so the rest can be run here.
    result = cli(*command[3:], "--in-process")
    assert "2 of 4 cells to run" in result.output
    assert len(list(folder.glob("*.json"))) == 4
    assert all(path.read_bytes() == old for path, old in kept.items())
    assert not list(folder.glob(".*"))


@pytest.mark.slow
def test_a_killed_worker_fails_its_cell_only(cli):
    result = cli("bench", *TOY, "--methods", "toydie,toynoise", "--bits", "W4A8", code=3)
    assert "worker died with signal 9" in result.output
    statuses = {record.cell.method: record.status for record in Store(RUNS).records()}
    assert statuses == {"float": "ok", "toydie": "failed", "toynoise": "ok"}
    assert list((RUNS / "report").iterdir())


@pytest.mark.parametrize(
    ("arguments", "said", "where"),
    [
        (["bench", "--prest", "quick"], "--prest", "bench "),
        (["bench", "--seeds", "x"], "--seeds", "bench "),
        (["bench", "--methods"], "--methods", "bench "),
        (["bench", "clamp"], "clamp", "bench "),
        (["describe"], "METHOD", "describe "),
        (["benhc"], "benhc", ""),
        (["--seeds"], "--seeds", ""),
        (["bench", "--a\nb", "c"], "--a", "bench "),
        (["list", "--zzz."], "--zzz.", "list "),
    ],
)
def test_a_command_line_that_is_not_understood_is_refused_in_one_line(cli, arguments, said, where):
    found = cli(*arguments, code=2)
    assert re.fullmatch(rf"Error: [^\n]*{re.escape(said)}[^\n]*(; s|\.? S)ee {where}--help\n", found.stderr)
    assert not found.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--models", "vit", "--models", "swin"], "--models is given twice"),
        (["plan", "--seeds", "2", "--seeds=2"], "--seeds is given twice"),
        (["export", "noise", "--out", "a", "--bits", "W8A8", "--out", "b"], "--out is given twice"),
        (["plan", "--models", ","], "--models is empty; leave it out"),
        (["plan", "--sink="], "--sink is empty"),
        (["plan", "--ablation", ""], "--ablation is empty"),
        (["report", "--out", ""], "--out is empty"),
        (["diagnose", "--bits", " "], "--bits is empty"),
        (["export", "noise", "--runtimes", ",", "--data-root", "x"], "--runtimes is empty"),
    ],
)
def test_no_option_is_dropped_for_another_or_for_being_empty(arguments, said):
    """Of an option given twice the first was ignored, and an empty one was as if it had been left out."""
    found = CliRunner().invoke(cli_module.app, arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    assert re.fullmatch(rf"Error: {re.escape(said)}[^\n]*\n", found.stderr)


def test_an_empty_text_may_say_none_and_options_of_methods_are_repeatable(cli):
    many = ["--option", "toynoise.count=3", "--option", "toyswitch.count=3"]
    found = cli("plan", *WHERE, "--methods", "toynoise,toyswitch", *many, "--fitted", "", "--bits", "W4A8")
    assert "to run" in found.output


def test_the_help_text_says_how_many_images_a_first_look_is_at():
    """It stands with the task, which help texts do not import."""
    (number,) = Catalog.default().tasks.get("classification").first_look.values()
    text = " ".join(CliRunner().invoke(cli_module.app, ["plan", "--help"]).output.split())
    assert f"{number} if left out" in text.replace(" │ │ ", " ")


def test_no_command_at_all_is_answered_by_the_help_text():
    assert "Data-free quantization, measured." in CliRunner().invoke(cli_module.app).output
