import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Of the tests that run on each tiny network, those on the Swin are slow: the ViT is enough while one works."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "swin" in (parameters.get("network"), parameters.get("name")):
        item.add_marker("slow")
