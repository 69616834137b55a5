"""What the commands end with; README lists them all. 2 is a usage error, 74 an output that could not be written."""

from __future__ import annotations

OK, REGRESSION, CONTRADICTION = 0, 1, 1
SOME_FAILED = LEFT_OUT = 3
NOTHING_MEASURED = 4
