"""Bit-widths as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.api.errors import UsageError
from harness.api.formats import MICROSCALING
from harness.api.spec import BitSpec, split_scheme

WIDTHS = st.integers(2, 8)
MEANS = st.floats(2, 8)
BLOCKS = st.sampled_from(list(MICROSCALING.values()))


@given(
    st.one_of(
        st.builds(BitSpec, WIDTHS, WIDTHS),
        st.builds(BitSpec, MEANS, st.none() | WIDTHS, st.just(True)),
        st.builds(lambda w, a: BitSpec(w.bits, a.bits, weights=w, activations=a), BLOCKS, BLOCKS),
        st.builds(lambda w, a: BitSpec(w.bits, a, weights=w), BLOCKS, WIDTHS),
        st.builds(lambda w, a: BitSpec(w, a.bits, activations=a), WIDTHS, BLOCKS),
    )
)
def test_text_and_back(spec):
    assert BitSpec.parse(str(spec)) == spec
    assert BitSpec.parse(f" {str(spec).lower()} ") == spec


def test_forms():
    assert BitSpec.parse("W4A8") == BitSpec(4, 8)
    assert BitSpec.parse("MP4.5") == BitSpec(4.5, None, mixed=True)
    assert BitSpec.parse("mp4.50a8") == BitSpec(4.5, 8, mixed=True)
    assert str(BitSpec.parse("MP4.0")) == "MP4"


def test_microscaling_formats_stand_for_either_part_or_for_both():
    fp4, int8 = MICROSCALING["MXFP4"], MICROSCALING["MXINT8"]
    assert BitSpec.parse("MXFP4A8") == BitSpec(4, 8, weights=fp4)
    assert BitSpec.parse("W4AMXINT8") == BitSpec(4, 8, activations=int8)
    assert BitSpec.parse("MXINT8") == BitSpec.parse("MXINT8AMXINT8") == BitSpec(8, 8, weights=int8, activations=int8)
    assert str(BitSpec.parse("mxfp4e2m1amxint8")) == "MXFP4AMXINT8"
    assert [str(BitSpec.parse(f"MXFP6{layout}")) for layout in ("E2M3", "E3M2")] == ["MXFP6", "MXFP6E3M2"]
    assert list(map(str, BitSpec.parse("MXFP8A8").formats or ())) == ["e4m3/group32/e8m0", "int8/tensor/float32"]
    assert [BitSpec.parse(bits).in_blocks for bits in ("W4A8", "MP4", "MXINT4A8", "W4AMXFP8")] == [False] * 2 + [
        True
    ] * 2


@pytest.mark.parametrize("text", ["MXFP5", "MXINT9A8", "W4AMXFP4E3M0", "MXINT8E4M3"])
def test_other_microscaling_formats_are_refused(text):
    with pytest.raises(UsageError, match=r"no microscaling format; there are MXFP8, .* MXINT2"):
        BitSpec.parse(text)


@pytest.mark.parametrize(
    "text", ["W4", "A8", "MX4", "MXFP4A", "AMXFP4", "4/8", "MP", "MP4.5.1", "W4.5A8", "MP4A", "", "W4A8A8"]
)
def test_other_forms_are_refused(text):
    with pytest.raises(UsageError, match="not of the form"):
        BitSpec.parse(text)


@pytest.mark.parametrize("text", ["W1A8", "W4A9", "MP1.9", "MP8.1", "MP4A1"])
def test_widths_out_of_range_are_refused(text):
    with pytest.raises(UsageError, match="outside 2 to 8"):
        BitSpec.parse(text)


def test_a_scheme_may_name_a_part():
    assert split_scheme("full") == ("full", None)
    assert split_scheme("matmul:backbone") == ("matmul", "backbone")


@pytest.mark.parametrize("text", ["MP4.1234567", "MP4.999999999", "MP2.00000012A8", "MP7.9999999", "MP4.5"])
def test_k2_a_mixed_precision_keeps_all_its_digits(text):
    """FAULTS K2 "`MP4.1234567` runs at a budget of 4.12346": above what was asked."""
    spec = BitSpec.parse(text)
    assert str(spec) == text
    assert BitSpec.parse(str(spec)).weight == spec.weight == float(text[2:].partition("A")[0])


def test_more_digits_than_a_float_has_are_refused():
    with pytest.raises(UsageError, match=r"more digits than can be kept; write MP4\.1\d+, or fewer"):
        BitSpec.parse("MP4.12345678901234567890")


def test_integers_and_zeros_around_a_number_are_no_other_precision():
    assert {str(BitSpec.parse(text)) for text in ("MP4.5", "mp4.500", "MP04.5")} == {"MP4.5"}
    assert str(BitSpec.parse("W04A08")) == str(BitSpec(4.0, 8)) == "W4A8"
