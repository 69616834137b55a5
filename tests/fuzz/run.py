"""Hostile files and command lines, by the hundred: `nox -s fuzz -- --cases 500 --seed 0`; with --kills 100 also kills.

Case number i of a seed is always the same: `--only KIND:NUMBER` runs one again. Ends with 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

LONGEST = 60  # seconds that a case may take, a hundred times what it needs


class Hang(BaseException):
    """A case took too long."""


def _alarm(*_: object) -> None:
    raise Hang


def main() -> int:
    """Run the cases; print one line per kind and all that went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="in total, all kinds in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="KIND or KIND:NUMBER")
    parser.add_argument(
        "--kills", type=int, default=0, help="kill a sweep so many times, at random moments (100 at most)"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _alarm)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if arguments.cases:
            wrong += _fuzz(Path(folder), arguments.cases, arguments.seed, arguments.only)
        if arguments.kills:
            from kills import kill_often

            wrong += kill_often(Path(folder) / "kills", arguments.kills, arguments.seed)
        os.chdir(HERE)
    return int(wrong > 0)


def _fuzz(folder: Path, cases: int, seed: int, only: str) -> int:
    from cases import Wrong, all_kinds

    kind_wanted, _, number_wanted = only.partition(":")
    kinds = {name: kind for name, kind in all_kinds(folder).items() if kind_wanted in ("", name)}
    ends: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    seconds: Counter[str] = Counter()
    for index in range(cases):
        name = list(kinds)[index % len(kinds)]
        number = int(number_wanted) if number_wanted else index // len(kinds)
        began = time.perf_counter()
        signal.alarm(LONGEST)
        try:
            end = kinds[name](Random(f"{seed}/{name}/{number}"))  # type: ignore[operator]
        except Wrong as error:
            end = "WRONG"
            print(f"{name}:{number}: {error}", flush=True)
        except Hang:
            end = "HANG"
            print(f"{name}:{number}: took more than {LONGEST} seconds", flush=True)
        except Exception:
            end = "TRACEBACK"
            print(f"{name}:{number}: {traceback.format_exc()[-2000:]}", flush=True)
        finally:
            signal.alarm(0)
        ends[name][end] += 1
        seconds[name] += time.perf_counter() - began
        if number_wanted:
            break
    for name, counts in ends.items():
        parts = ", ".join(f"{count} {end}" for end, count in sorted(counts.items()))
        print(f"{name}: {sum(counts.values())} cases in {seconds[name]:.0f} s: {parts}")
    return sum(counts[end] for counts in ends.values() for end in ("WRONG", "HANG", "TRACEBACK"))


if __name__ == "__main__":
    sys.exit(main())
