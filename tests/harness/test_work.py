"""Which cell a host gets next."""

from __future__ import annotations

import pytest

from harness.run.work import Work


@pytest.fixture
def cells(toy_cell):
    """Cells by a short name: model, then method or `float`, then repetition."""

    def make(*names: str):
        found = {}
        for name in names:
            model, method, seed = name.split()
            found[name] = toy_cell("float", model=model, seed=int(seed)).model_copy(update={"method": method})
        return found

    return make


def names(work: Work, known: dict, *hosts: str) -> list[str | None]:
    name_of = {cell.key: name for name, cell in known.items()}
    taken = [work.take(host) for host in hosts]
    return [cell and name_of[cell.key] for cell in taken]


def test_without_lengths_one_host_gets_them_in_order(cells):
    known = cells("a float 0", "a x 0", "a y 0", "b float 0", "b x 0", "a x 1")
    work = Work(known.values())
    assert [cell.key for cell in work] == [
        known[n].key for n in ("a float 0", "a x 0", "a y 0", "a x 1", "b float 0", "b x 0")
    ]
    assert work.left == 0


def test_a_host_stays_with_its_model_and_the_next_takes_another(cells):
    known = cells("a float 0", "a x 0", "a y 0", "b float 0", "b x 0")
    work = Work(known.values())
    assert names(work, known, "one", "two", "one", "two", "two") == [
        "a float 0",
        "b float 0",
        "a x 0",
        "b x 0",
        "a y 0",
    ]
    assert names(work, known, "one") == [None]


def test_repetitions_come_first_then_what_is_not_known_then_the_longest(cells):
    known = cells("a short 0", "a long 0", "a new 0", "a float 0", "a longest 1")
    seconds = {"short": 1.0, "long": 5.0, "longest": 9.0, "float": 0.1}
    work = Work(known.values(), lambda cell: seconds.get(cell.method))
    assert names(work, known, *["one"] * 5) == ["a float 0", "a new 0", "a long 0", "a short 0", "a longest 1"]


def test_the_model_with_the_most_work_for_each_host_is_next(cells):
    known = cells("a x 0", "a x 1", "b x 0", "b x 1", "b x 2", "b x 3")
    work = Work(known.values(), lambda _: 10.0)
    assert [name and name[0] for name in names(work, known, "one", "two", "three", "four")] == ["b", "a", "b", "b"]


def test_what_is_learned_changes_the_order(cells):
    known = cells("a x 0", "a y 0", "a z 0", "a z 1", "a y 1")
    seconds = {}
    work = Work(known.values(), lambda cell: seconds.get(cell.method))
    assert names(work, known, "one") == ["a x 0"]
    seconds |= {"y": 1.0, "z": 2.0}
    work.finished(known["a x 0"])
    assert names(work, known, "one", "one", "one", "one") == ["a z 0", "a y 0", "a z 1", "a y 1"]


def test_those_that_could_only_wait_for_images_come_last(cells):
    known = cells("a p 0", "a q 0", "a r 0")
    work = Work(known.values(), images={known["a p 0"].key: "s", known["a q 0"].key: "s"})
    assert names(work, known, "one", "two", "three") == ["a p 0", "a r 0", "a q 0"]  # nothing else is left for three
    known = cells("a p 0", "a q 0", "a r 0")
    work = Work(known.values(), images={known["a p 0"].key: "s", known["a q 0"].key: "s"})
    assert names(work, known, "one") == ["a p 0"]
    work.finished(known["a p 0"])
    assert names(work, known, "two") == ["a q 0"]


def test_images_are_those_of_one_model_and_repetition(cells):
    known = cells("a p 0", "a q 1", "b p 0")
    work = Work(known.values(), images=dict.fromkeys((cell.key for cell in known.values()), "s"))
    assert work.take("one", "here") is not None
    assert work.take("two", "there") is not None
    assert work.take("three", "elsewhere") is not None


def test_shared_images_stay_where_they_are_seen(cells):
    known = cells("a p 0", "a q 0")
    work = Work(known.values(), images=dict.fromkeys((cell.key for cell in known.values()), "s"))
    first = work.take("one", "here")
    assert work.take("two", "there") is None
    work.give_back(first)
    assert work.take("two", "there") is None
    work.forget("here")
    assert work.take("two", "there").key == first.key
    assert work.take("one", "here") is None


def test_a_cell_given_back_is_taken_again(cells):
    known = cells("a p 0", "a q 0")
    work = Work(known.values())
    lost = work.take("one")
    assert (work.left, work.waiting) == (2, 1)
    work.give_back(lost)
    assert (work.left, work.waiting) == (2, 2)
    again = work.take("two")
    assert again.key == lost.key
    work.finished(again)
    assert [cell.key for cell in work] == [known["a q 0"].key]
    assert work.left == 0


def test_what_a_host_took_by_itself_is_handed_to_nobody_else(cells):
    known = cells("a float 0", "a x 0", "a y 0", "b x 0")
    work = Work(known.values())
    work.took(known["a x 0"], "one")
    assert names(work, known, "one", "two", "one") == ["a float 0", "b x 0", "a y 0"]
    work.finished(known["a x 0"])
    assert work.left == 3


def test_images_that_are_there_are_waited_for_by_nobody(cells):
    known = cells("a x 0", "a y 0")
    images = {cell.key: "shared" for cell in known.values()}
    work = Work([known["a y 0"]], images=images)
    work.made(known["a x 0"])
    assert names(work, known, "one", "two") == ["a y 0", None]
    together = Work(known.values(), images=images)
    together.made(known["a x 0"])
    assert names(together, known, "one", "two") == ["a x 0", "a y 0"]
