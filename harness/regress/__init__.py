"""The regression gate: a pinned suite, measured anew and compared image by image with a committed baseline.

Data flows one way: `suite` (which cases, how far they may move) -> `measure` -> `judge` by the `rule` against the
`baseline` -> `show` and `publish`; `gate` calls them in this order. docs/regression.md explains the rule.
"""
