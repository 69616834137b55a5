"""Settings of all tests."""

import pytest
from hypothesis import settings

# The same examples in every run: a test must not fail, or pass, by the luck of a draw. New ones are looked for with
# `nox -s tests -- --hypothesis-profile=default`.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark `slow` what a `fast` mark leaves out, and `exhaustive` what the `usual` marks leave out.

    `@pytest.mark.fast(network="vit", bits=["W8A8", "W4A4"])` on a parametrized test says that the cases with these
    values are enough while one works on the code; the others run with all tests. `@pytest.mark.usual(...)`, once or
    more, says in the same way which cases are enough for all tests: those that one of the marks describes.
    """
    if any(not _described(item, mark) for mark in item.iter_markers("fast")):
        item.add_marker("slow")
    usual = list(item.iter_markers("usual"))
    if usual and not any(_described(item, mark) for mark in usual):
        item.add_marker("slow")
        item.add_marker("exhaustive")


def _described(item: pytest.Item, mark: pytest.Mark) -> bool:
    """Whether a case has the values that a mark names: one each, or one of a list."""
    found = item.callspec.params
    return all(found[k] in v if isinstance(v, list) else found[k] == v for k, v in mark.kwargs.items())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out exhaustive cases, unless `-m` speaks of them or a single test is named."""
    if "exhaustive" in config.option.markexpr or any("::" in name for name in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep tests out of the user's cache folder, which what they start would use, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DFQBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
