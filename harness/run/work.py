"""The cells of a sweep, and which of them a host measures best next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from operator import attrgetter

from harness.identity.cell import Cell

_Model = tuple[str, str, str]  # task, suite and name
_Place = tuple[_Model, int, str]  # model, repetition and shared images: cells that are alike but for their length

# What takes this share of the time that is left is begun at once: estimates are means, and cells differ from them.
_EARLY = 3.0
_LONG = 4.0  # times the mean: what is not longer than others ends when they do


class Work:
    """Hands out cells to hosts, each cell to one host; knows nothing of processes, machines and clocks.

    A host stays with the model that it has loaded. Otherwise it gets the one with the most work for each host that has
    it. First repetitions come first, so that a sweep that is cut short has one of everything; within a repetition the
    float reference, then what was never measured, then the longest cells, so that no long one is left for the end. What
    would make the end later if it began later comes before all that, whatever its model and repetition: where images
    and the cell that makes them, or on hosts that see images apart all cells that share them, take as long as all hosts
    together need for the rest.
    Cells that share images which another host is making come last, since they could only wait. What is alike comes in
    the order of the plan.

    Args:
        cells: Cells in the order of the plan.
        expected: Seconds that a cell may take, as far as is known now; None: nothing is known.
        images: Key of a cell -> name of the synthetic images that it shares with others of the same name.
        making: Seconds that making a cell's images may take, 0 if it has none; None: nothing is known.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        expected: Callable[[Cell], float | None] = lambda _: None,
        images: Mapping[str, str] | None = None,
        making: Callable[[Cell], float | None] = lambda _: None,
    ) -> None:
        self.cells = tuple(cells)
        self.expected = expected
        self._making = making
        self._images = dict(images or {})
        self._position = {cell.key: number for number, cell in enumerate(self.cells)}
        self._waiting: dict[_Model, dict[int, dict[str, list[Cell]]]] = {}  # model, repetition, images: next cell last
        self._seconds: defaultdict[_Model, float] = defaultdict(float)  # of a model's cells that wait
        self._together: defaultdict[_Place, float] = defaultdict(float)  # the same of a place's cells
        # Places that wait, the longest way to the end first, and how long it is: as it was when last sorted.
        self._longest: list[_Place] = []
        self._ways: dict[_Place, float] = {}
        self._seen: set[str] = set()  # domains of hosts
        self._counted: dict[str, float] = {}  # key -> seconds by which a waiting cell counts there
        self._models: dict[str, _Model] = {}  # host -> the model that it had last
        self._running: dict[str, tuple[Cell, str]] = {}  # key -> the cell, and its host
        self._made: set[_Place] = set()  # images that are there
        self._makers: dict[_Place, str] = {}  # images that are being made -> key of the cell that makes them
        self._domains: dict[_Place, str] = {}  # images -> the hosts that can see them
        self._unfinished = len(self.cells)
        self._done = 0
        self._sort_at = 1
        for cell in self.cells:
            self._put(cell)
        self._sort()

    @property
    def left(self) -> int:
        """How many cells are not finished."""
        return self._unfinished

    @property
    def images(self) -> Mapping[str, str]:
        """Key of a cell -> name of the synthetic images that it shares; empty or missing if it shares none."""
        return self._images

    @property
    def waiting(self) -> int:
        """How many cells no host has."""
        return len(self._counted)

    def take(self, host: str, domain: str = "") -> Cell | None:
        """The next cell for `host`, or None if there is none for it now; one may be given back later.

        Hosts of one `domain` see each other's images; cells that share images stay in the domain of the first of them.
        """
        self._seen.add(domain)
        urgent = self._urgent(host, domain)
        if urgent is not None:
            return self._hand_out(self._next(urgent), host, domain)
        hosts = self._hosts()
        mine = self._models.get(host)
        others = sorted(
            (model for model in self._waiting if model != mine), key=lambda m: -self._seconds[m] / (hosts[m] + 1)
        )
        models = [*([mine] if mine in self._waiting else []), *others]
        # Only where nothing else is left does a host wait for images; they may turn out to be others than its own.
        for may_wait in (False, True):
            for model in models:
                place = self._best(model, domain, may_wait=may_wait)
                if place is not None:
                    return self._hand_out(self._next(place), host, domain)
        return None

    def took(self, cell: Cell, host: str, domain: str = "") -> None:
        """`host` has taken `cell`, which waits here, by itself: from a queue that others take from as well."""
        self._hand_out(cell, host, domain)

    def made(self, cell: Cell) -> None:
        """The images that `cell` shares are there; the cell itself need not be one of these."""
        self._made.add(self._place(cell))

    def finished(self, cell: Cell) -> None:
        """A cell has its result."""
        self._leave(cell, made=True)
        self._unfinished -= 1
        self._done += 1
        if self._done >= self._sort_at:  # what was learned since may say more of what waits
            self._sort_at = 1 + 3 * self._done // 2
            self._sort()

    def give_back(self, cell: Cell) -> None:
        """The host of a cell was lost; another may take it."""
        self._leave(cell, made=False)
        self._put(cell)
        self._order(self._place(cell))
        self._rank_places()

    def forget(self, domain: str) -> None:
        """The images of a domain are lost; cells that share them may go anywhere."""
        for place, held in list(self._domains.items()):
            if held == domain:
                del self._domains[place]
                self._made.discard(place)

    def __iter__(self) -> Iterator[Cell]:
        """All cells, for a single host: each counts as finished when the next one is asked for."""
        while (cell := self.take("")) is not None:
            yield cell
            self.finished(cell)

    def _hosts(self) -> defaultdict[_Model, int]:
        hosts: defaultdict[_Model, int] = defaultdict(int)
        for cell, _ in self._running.values():
            hosts[_model(cell)] += 1
        return hosts

    @property
    def _apart(self) -> bool:
        """Whether there are hosts that do not see each other's images."""
        return len(self._seen) > 1

    def _urgent(self, host: str, domain: str) -> _Place | None:
        """Where the longest way begins that decides when everything ends, if one does; not one that has to wait."""
        hosts = len({other for _, other in self._running.values()} | {host})
        if hosts == 1 or not self._counted:  # one host ends when it ends
            return None
        rest = sum(self._seconds.values())
        enough = max(rest / hosts / _EARLY, rest / len(self._counted) * _LONG)
        gone = 0
        found = None
        for place in self._longest:
            if self._ways[place] < enough:
                break
            if not self._waits(place):
                gone += 1
            elif self._fits(place, domain, may_wait=False) and self._way(place) >= enough:
                found = found or place
                # Where others do not see its images a host ends what it began before it begins more.
                if not self._apart or self._domains.get(place) == domain:
                    found = place
                    break
        if gone > len(self._longest) // 2:
            self._longest = [place for place in self._longest if self._waits(place)]
        return found

    def _next(self, place: _Place) -> Cell:
        model, repetition, images = place
        return self._waiting[model][repetition][images][-1]

    def _waits(self, place: _Place) -> bool:
        model, repetition, images = place
        return images in self._waiting.get(model, {}).get(repetition, {})

    def _way(self, place: _Place) -> float:
        """Seconds that a place needs however many hosts there are, as far as known."""
        model, repetition, images = place
        cells = self._waiting[model][repetition][images]
        longest = self._counted[cells[-1].key]
        if not images or place in self._made:
            return self._together[place] if images and self._apart else longest
        # Others of the place wait until one of its cells is finished, since nobody says when its images are there.
        make = 0.0 if place in self._makers else self._making(cells[-1]) or 0.0
        return make + (self._together[place] if self._apart else longest + self._counted[cells[-2:][0].key])

    def _best(self, model: _Model, domain: str, *, may_wait: bool) -> _Place | None:
        """Where the best cell of a model is that a host of `domain` may have."""
        for repetition, shared in self._waiting[model].items():
            places = [(model, repetition, images) for images in shared]
            fitting = [place for place in places if self._fits(place, domain, may_wait=may_wait)]
            if fitting:
                return min(fitting, key=lambda place: self._rank(self._waiting[model][repetition][place[2]][-1]))
        return None

    def _fits(self, place: _Place, domain: str, *, may_wait: bool) -> bool:
        if not place[2]:
            return True
        return self._domains.get(place, domain) == domain and (may_wait or place not in self._makers)

    def _hand_out(self, cell: Cell, host: str, domain: str) -> Cell:
        place = model, repetition, images = self._place(cell)
        cells = self._waiting[model][repetition][images]
        del cells[next(number for number in range(len(cells) - 1, -1, -1) if cells[number].key == cell.key)]
        if not cells:
            del self._waiting[model][repetition][images]
            if not self._waiting[model][repetition]:
                del self._waiting[model][repetition]
            if not self._waiting[model]:
                del self._waiting[model]
        seconds = self._counted.pop(cell.key)
        self._seconds[model] -= seconds
        self._together[place] -= seconds
        self._models[host] = model
        self._running[cell.key] = cell, host
        if images:
            self._domains.setdefault(place, domain)
            if place not in self._made:
                self._makers.setdefault(place, cell.key)
        return cell

    def _leave(self, cell: Cell, *, made: bool) -> None:
        del self._running[cell.key]
        place = self._place(cell)
        if made and place[2]:
            self._made.add(place)
        if self._makers.get(place) == cell.key:
            del self._makers[place]

    def _place(self, cell: Cell) -> _Place:
        return _model(cell), cell.seed, self._images.get(cell.key, "")

    def _put(self, cell: Cell) -> None:
        model, repetition, images = self._place(cell)
        repetitions = self._waiting.setdefault(model, {})
        repetitions.setdefault(repetition, {}).setdefault(images, []).append(cell)
        self._counted[cell.key] = 0.0

    def _sort(self) -> None:
        """Order everything by what is known now."""
        self._seconds.clear()
        self._together.clear()
        self._counted = dict.fromkeys(self._counted, 0.0)
        for model, repetitions in self._waiting.items():
            self._waiting[model] = dict(sorted(repetitions.items()))
            for repetition, shared in repetitions.items():
                for images in shared:
                    self._order((model, repetition, images))
        self._rank_places()

    def _rank_places(self) -> None:
        self._ways = {
            (model, repetition, images): self._way((model, repetition, images))
            for model, repetitions in self._waiting.items()
            for repetition, shared in repetitions.items()
            for images in shared
        }
        self._longest = sorted(self._ways, key=lambda place: -self._ways[place])

    def _order(self, place: _Place) -> None:
        model, repetition, images = place
        cells = self._waiting[model][repetition][images]
        cells.sort(key=self._rank, reverse=True)
        self._waiting[model] = dict(sorted(self._waiting[model].items()))
        for cell in cells:
            # Where nothing is known, the number of cells decides.
            seconds = self.expected(cell) or 1.0
            self._seconds[model] += seconds - self._counted[cell.key]
            self._together[place] += seconds - self._counted[cell.key]
            self._counted[cell.key] = seconds

    def _rank(self, cell: Cell) -> tuple[bool, float, int]:
        """Lower comes first. What is not known may be long, and one learns from it."""
        seconds = self.expected(cell)
        return not cell.is_float, -inf if seconds is None else -seconds, self._position[cell.key]


_model: Callable[[Cell], _Model] = attrgetter("task", "suite", "model")
