"""What continuous integration reads: GitHub's step summary and annotations, and JUnit XML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.console import Console

from harness.api.errors import UsageError
from harness.io.files import write_atomically
from harness.regress.judge import Verdict
from harness.regress.show import Report, explain, markdown


def publish(report: Report, environ: Mapping[str, str], console: Console, junit: Path | None) -> None:
    """Write what is asked for by the option `--junit` and by the variables that GitHub sets.

    Raises:
        UsageError: the JUnit file cannot be written.
    """
    if junit is not None:
        text = junit_xml(report)
        try:
            junit.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(junit, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))
        except OSError as error:
            raise UsageError(f"cannot write --junit {junit} ({error.strerror}); choose another file") from None
    if environ.get("GITHUB_ACTIONS") == "true":
        for line in commands(report):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if summary := environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(summary).open("a", encoding="utf-8") as file:  # other steps' summaries stand before it
                file.write(markdown(report) + "\n")
        except OSError as error:
            console.print(f"The step summary cannot be written: {error.strerror}", style="yellow")


def commands(report: Report) -> list[str]:
    """GitHub's workflow commands: an error for every case that fails the gate, a warning for one with notes."""
    lines = []
    for verdict in report.verdicts:
        first, *rest = explain(verdict)
        level = "error" if _bad(verdict) else "warning" if verdict.notes or verdict.status == "xfail" else ""
        if level:
            title = _escaped(verdict.change).replace(":", "%3A").replace(",", "%2C")
            lines.append(f"::{level} title={title}::{_escaped('; '.join(rest) or first)}")
    return lines


def _bad(verdict: Verdict) -> bool:
    return verdict.fails or verdict.status == "missing"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def junit_xml(report: Report) -> str:
    """A test case for every case of the gate; one that gave no number is an error, an expected failure is skipped."""
    suite = ET.Element(
        "testsuite",
        name=report.title,
        tests=str(len(report.verdicts)),
        failures=str(sum(verdict.fails for verdict in report.verdicts)),
        errors=str(sum(verdict.status == "missing" for verdict in report.verdicts)),
        skipped=str(sum(verdict.status == "xfail" for verdict in report.verdicts)),
    )
    for verdict in report.verdicts:
        case = ET.SubElement(suite, "testcase", classname="harness.regress", name=verdict.case.name)
        kind = "failure" if verdict.fails else {"missing": "error", "xfail": "skipped"}.get(verdict.status)
        lines = explain(verdict)
        if kind:
            ET.SubElement(case, kind, message=_printable(lines[0])).text = _printable("\n".join(lines[1:]))
        elif verdict.notes:
            ET.SubElement(case, "system-out").text = _printable("\n".join(verdict.notes))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _printable(text: str) -> str:
    """Without characters that XML does not allow, such as the colours in an error message."""
    return "".join(c for c in text if c in "\t\n" or c.isprintable())
