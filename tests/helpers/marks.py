"""Parameters of tests."""

import pytest


def all_but_slow(fast, values) -> list:
    """Parameters of a test, those that are not in `fast` marked slow: they repeat what the others show."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def deep_ones_slow(names) -> list:
    """Names of networks as parameters of a test, the deep ones marked slow."""
    names = list(names)
    return all_but_slow([name for name in names if not name.startswith(("resnet34", "resnet101", "resnet152"))], names)
