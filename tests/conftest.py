"""Settings of all tests."""

import pytest
from hypothesis import settings

# The same examples in every run: a test must not fail, or pass, by the luck of a draw. New ones are looked for with
# `nox -s tests -- --hypothesis-profile=default`.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark `slow` what a `fast` mark leaves out.

    `@pytest.mark.fast(network="vit", bits=["W8A8", "W4A4"])` on a parametrized test says that the cases with these
    values are enough while one works on the code; the others run with all tests.
    """
    for mark in item.iter_markers("fast"):
        for name, values in mark.kwargs.items():
            value = item.callspec.params[name]
            if value not in values if isinstance(values, list) else value != values:
                item.add_marker("slow")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep tests out of the user's cache folder, which what they start would use, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFQBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
