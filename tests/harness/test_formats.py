"""Number formats, and how they get into a record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.api.contracts import LayerSummary, QuantSummary
from harness.api.errors import UsageError
from harness.api.formats import Format
from harness.api.spec import BitSpec
from harness.results.record import Layer, Quantization
from harness.run.checks import summarise

INT4, MXFP4 = Format(4, granularity="channel"), Format(4, "float", "group", 32, "e8m0", exponent=2)


@st.composite
def formats(draw):
    kind = draw(st.sampled_from(["int", "log", "float"]))
    bits = draw(st.integers(1, 16))
    granularity = draw(st.sampled_from(["tensor", "channel", "head", "group"]))
    group = draw(st.integers(1, 256)) if granularity == "group" else None
    scale = draw(st.sampled_from(["float32", "float16", "bfloat16", "e8m0"]))
    exponent = draw(st.integers(0, bits - 1)) if kind == "float" else None
    return Format(bits, kind, granularity, group, scale, exponent)


@given(formats())
def test_a_format_is_read_as_it_is_written(number_format):
    assert Format.parse(str(number_format)) == number_format


def test_what_formats_are_called():
    assert str(INT4) == "int4/channel/float32"
    assert str(MXFP4) == "e2m1/group32/e8m0"
    assert MXFP4.scale_bits(10) == 80


NOT_ONE = ("int4", "int4/channel", "uint4/channel/float32", "int4/channel/int8", "int4/group/float32")


@pytest.mark.parametrize("text", [*NOT_ONE, "int4/tensor32/float32", "int0/tensor/e8m0"])
def test_what_is_no_format_is_refused(text):
    with pytest.raises(UsageError, match="format"):
        Format.parse(text)


def test_bits_are_a_name_for_two_formats():
    assert BitSpec.parse("W4A8").formats == (INT4, Format(8))
    assert BitSpec.parse("MP4.5").formats is None
    assert BitSpec.parse("MP4.5A8").formats is None


def test_a_record_has_the_formats_of_which_the_method_told():
    layers = (LayerSummary("a", 64, 4, MXFP4, MXFP4.scale_bits(2)), LayerSummary("b", 64, 4))
    told = {"activation_formats": {"x": Format(8)}, "activation_scale_bits": {"x": 32}}
    found = summarise("mine", QuantSummary(2, 2, layers, 0, **told))
    assert found.layers[0] == Layer(name="a", size=64, bits=4, format="e2m1/group32/e8m0", scale_bits=16)
    assert (found.layers[1].format, found.layers[1].scale_bits) == (None, None)
    assert found.activation_formats == {"x": "int8/tensor/float32"}
    assert Quantization.model_validate_json(found.model_dump_json()) == found


def test_records_without_formats_are_read():
    layer = Layer(name="a", size=64, bits=4)
    assert (layer.format, layer.scale_bits) == (None, None)
