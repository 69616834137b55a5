"""What many records have in common is held once, and what it is changes in nothing."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from harness.io.shared import Pairs, Pool
from harness.report.frame import Right
from harness.results.record import Layer, Quantization

RANGES = {"b": (-1.5, 2.0), "a": (0.1, math.inf), "c": (-0.0, 1e-310)}


def test_pairs_are_the_mapping_that_they_were_made_of():
    pairs = Pairs(RANGES)
    assert pairs == RANGES
    assert list(pairs) == list(RANGES)
    assert list(pairs.values()) == list(RANGES.values())
    assert math.copysign(1.0, pairs["c"][0]) == -1.0
    assert "d" not in pairs
    with pytest.raises(KeyError):
        pairs["d"]
    assert pickle.loads(pickle.dumps(pairs)) == RANGES
    assert Pairs({}) == {}
    assert pairs != Pairs({**RANGES, "a": (0.1, 1.0)})


def test_a_pool_gives_what_it_knows_and_forgets_all_when_it_is_full():
    pool: Pool[list[int]] = Pool(tuple, most=2)
    first = pool([1])
    assert pool([1]) is first
    assert pool([2]) is not first
    again = pool([1])  # it was full
    assert again == first
    assert again is not first


def test_records_share_what_is_equal_and_are_written_as_before():
    def quantization(bits: int) -> Quantization:
        layers = [{"name": "a", "size": 4, "bits": bits}, {"name": "b", "size": 2, "bits": 8}]
        return Quantization(
            **{"weight_sites": 2, "activation_sites": 1, "weight_mib": 0.5, "float_values": 1},
            **{"layers": layers, "activation_ranges": RANGES, "activation_bits": {"a": bits}},
        )

    first, second, other = quantization(4), quantization(4), quantization(3)
    assert first == second != other
    assert first.layers[0] is second.layers[0]
    assert first.layers[0] == Layer(name="a", size=4, bits=4)
    assert first.activation_bits is second.activation_bits
    written = json.loads(first.model_dump_json())
    assert written["activation_ranges"] == {"b": [-1.5, 2.0], "a": [0.1, "Infinity"], "c": [-0.0, 1e-310]}
    assert list(written["layers"][0]) == ["name", "size", "bits", "format", "scale_bits"]
    assert Quantization.model_validate(written) == first


def test_outcomes_are_what_was_added():
    right = Right()
    for images in (0, 1, 7, 8, 9, 2000):
        outcome = np.random.default_rng(images).random(images) < 0.5
        right.add(str(images), outcome)
        assert right[str(images)].dtype == np.bool_
        assert np.array_equal(right[str(images)], outcome)
    assert len(right) == 6
    assert right.get("x") is None
