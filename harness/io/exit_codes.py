"""What the commands end with; docs/quickstart.md lists them all. 2: a usage error, 74: an output that was lost."""

from __future__ import annotations

OK, REGRESSION, CONTRADICTION = 0, 1, 1
SOME_FAILED = LEFT_OUT = 3
NOTHING_MEASURED = 4
