"""Settings of all tests."""

import pytest
from hypothesis import settings

# The same examples in every run: a test must not fail, or pass, by the luck of a draw. New ones are looked for with
# `nox -s tests -- --hypothesis-profile=default`.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep tests out of the user's cache folder, which what they start would use, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFQBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
