from __future__ import annotations

import pytest
from pydantic import ValidationError

from harness.api.written import Written


class Some(Written):
    count: int = 1
    share: float | None = None
    on: bool = False
    either: bool | int = 0
    text: str = ""


@pytest.mark.parametrize("name", ["count", "share"])
@pytest.mark.parametrize("value", [True, False])
def test_truth_is_no_number(name, value):
    with pytest.raises(ValidationError, match=rf"{name}\n  Input should be a number, not {str(value).lower()}"):
        Some.model_validate({name: value})


def test_numbers_are_numbers_and_truth_is_truth():
    found = Some.model_validate({"count": 2.0, "share": 1, "on": True, "either": True})
    assert (found.count, found.share, found.on, found.either) == (2, 1.0, True, True)
    with pytest.raises(ValidationError, match="valid string"):
        Some.model_validate({"text": True})
