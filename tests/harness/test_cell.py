from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.identity.cell import Cell
from harness.identity.names import plain_name
from harness.io.canonical import canonical_json, digest
from harness.run.seeds import derive_seed

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
FIELDS = {
    "suite": st.text(),
    "task": st.text(),
    "model": st.text(),
    "weights": st.text(),
    "data": st.text(),
    "limit": st.none() | st.integers(min_value=1),
    "method": st.text(),
    "options": st.dictionaries(st.text(), values, max_size=4),
    "bits": st.text(),
    "scheme": st.text(),
    "seed": st.integers(min_value=0),
    "calibration": st.text(),
    "corruption": st.text(),
}
cells = st.fixed_dictionaries(FIELDS).map(lambda fields: Cell(**fields))


def test_properties_cover_every_field():
    assert set(FIELDS) == set(Cell.model_fields)


def text(name: str, value) -> str:
    return canonical_json(plain_name(value) if name == "method" else value)


@given(cells, st.sampled_from(sorted(FIELDS)), st.data())
def test_any_field_changes_the_key(cell, name, data):
    old = getattr(cell, name)
    new = data.draw(FIELDS[name].filter(lambda value: text(name, value) != text(name, old)))
    assert cell.model_copy(update={name: new}).model_dump() != cell.model_dump()
    assert Cell(**{**cell.model_dump(), name: new}).key != cell.key


def reverse(value):
    if isinstance(value, dict):
        return {key: reverse(value[key]) for key in reversed(list(value))}
    return [reverse(each) for each in value] if isinstance(value, list) else value


@given(cells)
def test_no_order_changes_the_key(cell):
    assert Cell(**reverse(cell.model_dump())).key == cell.key


@given(cells)
def test_the_key_survives_json(cell):
    assert Cell.model_validate_json(cell.model_dump_json()).key == cell.key


COORDINATES = {
    **{"suite": "embedded", "task": "classification", "model": "vit", "weights": "w", "data": "d", "limit": 2000},
    **{"bits": "W4A8", "scheme": "full", "seed": 0},
}


def test_keys_of_names_without_brackets_are_those_of_all_fields():
    cell = Cell(**COORDINATES, method="psaq", options={"preset": "quick", "parts": {"source:psaq": {"lr": 1.0}}})
    assert cell.key == cell.labelled_key == digest(cell.model_dump(mode="json", exclude={"calibration", "corruption"}))
    # As the first versions computed it: records and baselines hold such keys.
    assert cell.key == "cf09110260731be584440941be8e8f2f7b947c0b374625a08272d7758f920425"


@pytest.mark.parametrize(
    ("labelled", "plain"),
    [("a[x=1]", "a"), ('a[x=1]+b[y="]+["]', "a+b"), ('a+b[z={"c":[1]}]', "a+b"), ("a[x", "a[x"), ("a", "a")],
)
def test_brackets_are_no_part_of_the_key(labelled, plain):
    one, other = (Cell(**COORDINATES, method=method, options={}) for method in (labelled, plain))
    assert one.key == other.key
    assert (one.labelled_key == other.labelled_key) == (labelled == plain)


def test_a_field_that_was_added_later_counts_where_it_says_something():
    class Later(Cell):
        crop: dict[str, float] = {}  # noqa: RUF012 - pydantic copies it

    old = Cell(**COORDINATES, method="psaq", options={})
    fields = old.model_dump()
    assert Later(**fields).key == Later(**fields, crop={}).key == old.key
    keys = {old.key, Cell(**{**fields, "calibration": "c"}).key, Later(**fields, crop={"share": 0.9}).key}
    assert len(keys) == 3


def test_nan_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": math.nan})


@given(st.dictionaries(st.text(min_size=1), values, min_size=1, max_size=4))
def test_seeds_depend_on_names_and_values_only(coordinates):
    seed = derive_seed(**coordinates)
    assert 0 <= seed < 2**63
    assert derive_seed(**reverse(coordinates)) == seed
    assert derive_seed(**coordinates, another=0) != seed or "another" in coordinates


def test_seeds_keep_names_apart():
    assert derive_seed(names=["a", "b"]) != derive_seed(names=["ab"])
