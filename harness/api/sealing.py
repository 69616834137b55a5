"""The data-free contract: while data is sealed, nobody gets any of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.api.errors import DataFreeViolation

# Who may see no data now, if anybody, and when. One for the whole process, since a worker runs one cell at a time: a
# thread that a method starts is sealed off too, which it would not be with a context variable.
_sealed: tuple[str, str] | None = None


@contextmanager
def sealed_data(method: str, when: str = "") -> Iterator[None]:
    """While open, any access to task data raises DataFreeViolation naming the data-free `method`; or whatever `method`
    is called, if it says `when` that is.
    """
    global _sealed  # noqa: PLW0603 - see above
    before, _sealed = _sealed, (method if when else f"data-free method '{method}'", when)
    try:
        yield
    finally:
        _sealed = before


def check_not_sealed(what: str) -> None:
    """Call before handing out task data (`what`).

    Raises:
        DataFreeViolation: a data-free method is running, or a model is being evaluated on what it is called with.
    """
    if _sealed is not None:
        who, when = _sealed
        raise DataFreeViolation(f"{who} touched {what}{when and ' ' + when}")
