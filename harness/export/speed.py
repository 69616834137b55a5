"""How long a file takes beside the float one, measured in turns so that both meet the same load, and its memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from harness.results.exported import Timing

if TYPE_CHECKING:
    import numpy as np

    from harness.export.runtimes.base import Runtime

BATCHES, THREADS = (1, 8), (1, 2)
_TURNS, _WARM_UP = 20, 2
_SECONDS = 20.0  # after which a measurement ends with fewer turns
_LEAST = 5
_SHARE = 1.15  # wall by CPU time of one thread, above which others had the processor
Run = Callable[["np.ndarray"], object]

# Run by a Python of its own, which has not imported torch.
_PEAK = """
import sys
import numpy as np
{load}
for _ in range(3):
    run(np.zeros({shape}, np.float32))
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) / 1024)
"""


def timings(runtime: Runtime, exported: Path, plain: Path, image: np.ndarray, cores: int) -> list[Timing]:
    """Of batches of 1 and 8 images with 1 and 2 threads, as far as there are `cores`.

    Args:
        runtime: what runs the files.
        exported: the quantized model.
        plain: the float model.
        image: one, normalised, (1, channels, height, width).
        cores: that this process may use.
    """
    import numpy as np

    found: list[Timing] = []
    for threads in [each for each in THREADS if each <= cores]:
        runs = [runtime.open(path, threads) for path in (plain, exported)]
        for batch in BATCHES:
            images = np.ascontiguousarray(np.repeat(image, batch, 0))
            walls, processors = in_turns(runs, images)
            busy = walls[0] > _SHARE * processors[0] if threads == 1 else found[0].busy
            found.append(
                Timing(
                    batch=batch,
                    threads=threads,
                    float_ms=walls[0],
                    exported_ms=walls[1],
                    float_cpu_ms=processors[0],
                    exported_cpu_ms=processors[1],
                    busy=busy,
                )
            )
    return found


def in_turns(runs: Sequence[Run], images: np.ndarray) -> tuple[list[float], list[float]]:
    """Medians of wall and of CPU time in milliseconds of each of `runs`, called one after the other many times."""
    for run in runs:
        for _ in range(_WARM_UP):
            run(images)
    walls: list[list[float]] = [[] for _ in runs]
    processors: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + _SECONDS
    for turn in range(_TURNS):
        if turn >= _LEAST and time.perf_counter() > end:
            break
        for i, run in enumerate(runs):
            wall, processor = time.perf_counter(), time.process_time()
            run(images)
            walls[i].append(1e3 * (time.perf_counter() - wall))
            processors[i].append(1e3 * (time.process_time() - processor))
    return [median(each) for each in walls], [median(each) for each in processors]


def peak_mib(runtime: Runtime, path: Path, shape: Sequence[int]) -> float | None:
    """Highest memory in MiB of a process that does nothing but run the file; None where that cannot be found out."""
    script = _PEAK.format(load=runtime.script(path), shape=tuple(shape))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    return float(lines[-1]) if done.returncode == 0 and lines else None


def processor_features() -> list[str]:
    """Which of the instructions that integer arithmetic takes this processor has, as Linux tells."""
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16", "asimddp", "i8mm")
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    line = next((each for each in text.splitlines() if each.startswith(("flags", "Features"))), "")
    there = set(line.partition(":")[2].split())
    return [name for name in wanted if name in there]
