"""What the harness offers a running method: seeds, timers, counters, the image cache. Implements `RunContext`."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api.spec import split_scheme
from harness.identity.cell import Cell
from harness.identity.code import Code
from harness.io.canonical import digest
from harness.io.claims import Claim, Owner
from harness.results.provenance import arithmetic_variables, processor_of
from harness.results.record import ImagesFrom, Stage
from harness.run.allocator import return_freed_memory
from harness.run.clock import Clock, Waiting
from harness.run.image_cache import Cached, ImageCache, LeftBehind
from harness.run.memory import MemoryMeter
from harness.run.seeds import derive_seed

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from harness.api.contracts import VisionModel
    from harness.api.plugins import PluginInfo

_WAIT = "wait"
KEPT_IMAGES = 16
SNAPSHOT_IMAGES = 4


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, for methods that draw from those."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - reference code of others uses the global generator
    torch.manual_seed(seed)


class Context:
    """Serves one cell.

    Images are reused only where the same code made them on the same kind of processor with as many threads: `code` is
    the cell's, which counts unless a method says which plugin makes the images; `code_of` gives that one's.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        cache: Path,
        code: Code,
        code_of: Callable[[PluginInfo], Code],
        device: torch.device,
        threads: int,
        report: Callable[[str, float], None],
        clock: Clock | None = None,
    ) -> None:
        self._cell = cell
        self._cache = ImageCache(cache)
        self._code = code
        self._code_of = code_of
        self._device = device
        self._threads = threads
        self._report = report
        self._clock = clock or Clock()
        self._fraction = 0.0  # how far the method said it is
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._from_cache: set[str] = set()
        self._open: list[tuple[str, float]] = []
        self.images_from: ImagesFrom | None = None  # what made the images, if they came from the cache
        self.counters: Counter[str] = Counter()
        self.kept_diagnostics: dict[str, dict[str, Any]] = {}
        self._kept: Tensor | None = None
        self._snapshots: dict[int, Tensor] = {}
        self.memory = MemoryMeter(device.type)

    def restart_memory(self) -> None:
        """Measure peak memory from here on."""
        return_freed_memory()
        self.memory = MemoryMeter(self._device.type)

    @property
    def scope(self) -> Mapping[str, Any]:
        """Coordinates that identify the model, its quantized part if that is not all of it, and repetition."""
        coordinates = self._cell.model_dump(include={"suite", "task", "model", "weights", "seed"})
        _, part = split_scheme(self._cell.scheme)
        return coordinates if part is None else coordinates | {"part": part}

    def seed(self, *names: str) -> int:
        """Seed from (suite, model, repetition, *names), the same for all methods."""
        cell = self._cell
        return derive_seed(suite=cell.suite, model=cell.model, repetition=cell.seed, names=names)

    def generator(self, *names: str) -> torch.Generator:
        """A fresh CPU generator, seeded with `seed(*names)`."""
        import torch

        return torch.Generator().manual_seed(self.seed(*names))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage. An inner stage stops the clock of the outer one, so that stages add up to the whole."""
        now = self._now()
        if self._open:
            outer, since = self._open[-1]
            self._seconds[outer] += now - since
        self._open.append((name, now))
        try:
            yield
        finally:
            now = self._now()
            name, since = self._open.pop()
            self._seconds[name] += now - since
            if self._open:
                self._open[-1] = (self._open[-1][0], now)

    def _now(self) -> float:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def stages(self) -> dict[str, Stage]:
        """Seconds of the stages that have ended."""
        return {n: Stage(seconds=s, cached=n in self._from_cache) for n, s in self._seconds.items()}

    def count(self, **amounts: int) -> None:
        """Add to the counters."""
        self.counters.update({name: int(amount) for name, amount in amounts.items()})

    def cached_images(
        self,
        identity: Mapping[str, Any],
        make: Callable[[], Tensor],
        by: PluginInfo | None = None,
        *,
        held_out: bool = False,
    ) -> Tensor:
        """Images from the cache, else from `make()`.

        Whatever else `make` leaves behind (counters, diagnostics, snapshots, stage times, memory) is cached with the
        images, and the global generators are seeded before and after, so that a hit and a miss differ in nothing but
        time. The one thing that cannot be restored is a generator that `make` shares with the code outside.
        """
        origin = self._origin(self._code if by is None else self._code_of(by))
        made_for: dict[str, Any] = {"identity": dict(identity), "scope": dict(self.scope)}
        if held_out:
            made_for["held_out"] = True
        # What made images does not choose their numbers.
        key, seed = digest(made_for | {"made_by": origin.model_dump(mode="json")}), digest(made_for)
        with self._cache.turn(key, self._wait) as found:
            if found is None:
                known: set[str | int] = {*self.kept_diagnostics, *self._snapshots}
                seed_everything(derive_seed(key=seed))
                with self.stage("held-out" if held_out else "synthesize"):
                    # Within the stage: the outer one's time until now is its own and none of the images'.
                    before = dict(self._seconds), Counter(self.counters), known
                    images = make().detach().contiguous()
                self._cache.write(key, self._made(images, *before))
            else:
                images = found.images
                self._take(found)
                if not held_out:
                    self.images_from = origin
        seed_everything(derive_seed(key=seed, after=True))
        return images.to(self._device)

    def _wait(self, claim: Claim) -> bool:
        """Wait for images that another process makes, which is time of no stage."""

        def tell(owner: Owner, seconds: float) -> None:
            text = f"waits for images that {owner} makes"
            self._report(Waiting(text, self._clock.waited + seconds), self._fraction)

        try:
            with self.stage(_WAIT):
                return claim.wait(tell)
        finally:
            self._clock.waited += self._seconds.pop(_WAIT)

    def _origin(self, code: Code) -> ImagesFrom:
        return ImagesFrom(
            code=code.fingerprint,
            versions=dict(code.versions),
            threads=self._threads,
            processor=processor_of(self._device),
            variables=arithmetic_variables(os.environ),
        )

    def _take(self, found: Cached) -> None:
        for name, amount in found.left.seconds.items():
            self._seconds[name] += amount
            self._from_cache.add(name)
        self.counters.update(found.left.counters)
        self.kept_diagnostics.update(found.left.diagnostics)
        self._snapshots = dict(found.snapshots) | self._snapshots
        self.memory.include(found.left.added_mib)

    def _made(
        self, images: Tensor, seconds: Mapping[str, float], counters: Counter[str], known: set[str | int]
    ) -> Cached:
        spent = {name: now - seconds.get(name, 0.0) for name, now in self._seconds.items()}
        left = LeftBehind(
            seconds={name: amount for name, amount in spent.items() if amount > 0},
            counters=dict(self.counters - counters),
            diagnostics={name: v for name, v in self.kept_diagnostics.items() if name not in known},
            added_mib=self.memory.added_mib,
        )
        return Cached(images, left, {step: kept for step, kept in self._snapshots.items() if step not in known})

    def keep_images(self, images: Tensor) -> None:
        """Keep the first images with the record."""
        self._kept = images[:KEPT_IMAGES].detach().cpu()

    @property
    def kept(self) -> Tensor | None:
        """The kept images as they are, normalised."""
        return self._kept

    def kept_images(self, model: VisionModel) -> np.ndarray | None:
        """The kept images as (n, height, width, channels) uint8, normalisation undone."""
        return None if self._kept is None else _pixels(self._kept, model)

    def snapshot(self, step: int, images: Tensor) -> None:
        """Keep a copy of the first images as they are after `step` steps."""
        if step not in self._snapshots:
            self._snapshots[step] = images[:SNAPSHOT_IMAGES].detach().to("cpu", copy=True).contiguous()

    def kept_snapshots(self, model: VisionModel) -> dict[int, np.ndarray]:
        """Step -> its snapshot, in the form of `kept_images`."""
        return {step: _pixels(images, model) for step, images in sorted(self._snapshots.items())}

    def diagnostics(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep a JSON-able diagnostic; tensors and arrays become lists.

        Raises:
            TypeError: a value that JSON does not know.
            ValueError: NaN or an infinity.
        """
        text = json.dumps(dict(values), default=_to_list, allow_nan=False)
        self.kept_diagnostics[name] = json.loads(text)

    def progress(self, text: str, fraction: float) -> None:
        """Show how far the method is."""
        self._fraction = min(max(float(fraction), 0.0), 1.0)
        self._report(text, self._fraction)


def _pixels(images: Tensor, model: VisionModel) -> np.ndarray:
    import torch

    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (model.mean, model.std))
    pixels = (images.float() * std + mean).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _to_list(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a diagnostic must be JSON-able, not {type(value).__name__}")
