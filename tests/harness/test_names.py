"""The grammar of names, without any plugin."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.api.errors import UsageError
from harness.identity.names import Part, parse_name, split_names


def test_commas_in_brackets_do_not_split():
    text = ' a , b[x=1,y=[2,3]]+c[z="],"],,d '
    assert split_names(text) == ["a", 'b[x=1,y=[2,3]]+c[z="],"]', "", "d"]
    for wrong in ("a[x=1,b", "a],b"):
        with pytest.raises(UsageError, match="malformed"):
            split_names(wrong)


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.from_regex(r"[a-z][a-z_0-9-]*", fullmatch=True)
PARTS = st.lists(st.builds(Part, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=2)


@settings(deadline=None)  # the machine may be busy
@given(PARTS)
def test_a_name_is_read_as_it_was_written(parts):
    text = "+".join(map(str, parts))
    assert parse_name(text) == tuple(parts)
    assert "+".join(map(str, parse_name(text))) == text
    assert split_names(f"{text},x") == [text, "x"]


@settings(deadline=None)  # the machine may be busy
@given(st.text(alphabet='ab[]{}"=,+ \\1.', max_size=20))
def test_any_text_is_read_in_one_way_or_refused(text):
    try:
        name = "+".join(map(str, parse_name(text)))
    except UsageError:
        return
    assert "+".join(map(str, parse_name(name))) == name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{a,b}+{c,d}", ["a+c", "a+d", "b+c", "b+d"]),
        ("{a,b}+c", ["a+c", "b+c"]),
        ("a + { b , c }", ["a+b", "a+c"]),
        ("x,{a}+{b,c},y", ["x", "a+b", "a+c", "y"]),
        ("{a[n=10,m=2],b}+{c}", ["a[n=10,m=2]+c", "b+c"]),
        ('{a[v={"x":[1,2]}],b}+c[v="}"]', ['a[v={"x":[1,2]}]+c[v="}"]', 'b+c[v="}"]']),
        ("{a,b}", ["a", "b"]),
        ('a[v={"x":1}] + b', ['a[v={"x":1}] + b']),  # braces of a value: no product
    ],
)
def test_braces_stand_for_each_name_in_them(text, names):
    assert split_names(text) == names


@pytest.mark.parametrize(
    "text",
    [
        *("{a,b", "a,b}", "{a,b+{c,d}", "{a,b}}+c", "{a]+c", "{a[x=1},b"),
        *("{}+a", "{a,}+b", "a+{,b}", "{a,b}c", "a{b,c}", "{a}{b}", "{a,{b,c}}+d"),
    ],
)
def test_bad_braces(text):
    message = f"the braces of '{text}' are malformed; write {{SOURCE,...}}+{{CALIBRATOR,...}} with whole names"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        split_names(text)


@settings(deadline=None)  # the machine may be busy
@given(st.text(alphabet="ab[]{}=,+ 1", max_size=20))
def test_any_list_is_read_in_one_way_or_refused(text):
    try:
        names = split_names(text)
    except UsageError:
        return
    assert split_names(",".join(names)) == names
