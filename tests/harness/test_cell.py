from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cell import Cell, canonical_json
from harness.seeds import derive_seed

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
}
cells = st.fixed_dictionaries(FIELDS).map(lambda fields: Cell(**fields))


def test_properties_cover_every_field():
    assert set(FIELDS) == set(Cell.model_fields)


@given(cells, st.sampled_from(sorted(FIELDS)), st.data())
def test_any_field_changes_the_key(cell, name, data):
    old = getattr(cell, name)
    new = data.draw(FIELDS[name].filter(lambda value: canonical_json(value) != canonical_json(old)))
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
