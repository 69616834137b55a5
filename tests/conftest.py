"""Settings of all tests."""

from hypothesis import settings

# The same examples in every run: a test must not fail, or pass, by the luck of a draw. New ones are looked for with
# `nox -s tests -- --hypothesis-profile=default`.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")
