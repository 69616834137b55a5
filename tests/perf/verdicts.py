"""How often a report's verdicts are right: python tests/perf/verdicts.py, about three minutes on one core.

Prints the table of docs/report.md: how often two methods of a known true difference are told apart; and how often equal
ones are where the effects of seeds are such that few of them do not show their spread.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness_report.simulation import World, verdicts

RUNS = 2000
DIFFERENCES = (0, 1, 2, 5, 10)
SPREADS = ((0, 0), (0.5, 0.5), (2, 2), (5, 5), (0, 10))
HARD = ("normal", "laplace", "t3", "skewed", "two-point", "rare")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Print both tables as Markdown."""
    _say(f"| spread | seeds | {' | '.join(f'{d} point' + 's' * (d != 1) for d in DIFFERENCES)} |")
    _say(f"| --- | ---: |{' ---: |' * len(DIFFERENCES)}")
    for spreads in SPREADS:
        for seeds in (2, 3, 5):
            rates = [verdicts(World(seeds, spreads=spreads, difference=d), RUNS) for d in DIFFERENCES]
            shown = f"{spreads[0]:g}" if spreads[0] == spreads[1] else f"{spreads[0]:g} and {spreads[1]:g}"
            _say(f"| {shown} | {seeds} | {' | '.join(f'{100 * rate:.1f} %' for rate in rates)} |")
    _say("\n| effects of a seed | methods with a spread of 5 | 2 seeds | 3 seeds | 5 seeds |")
    _say("| --- | --- | ---: | ---: | ---: |")
    for effects in HARD:
        for spreads in ((5, 5), (0, 5)):
            rates = [verdicts(World(seeds, spreads=spreads, effects=effects), RUNS) for seeds in (2, 3, 5)]
            shown = "both" if spreads[0] else "one"
            _say(f"| {effects} | {shown} | {' | '.join(f'{100 * rate:.1f} %' for rate in rates)} |")


if __name__ == "__main__":
    main()
