"""Values of flags that several commands check, with errors that name the flag."""

import re
from collections.abc import Iterable

from lma_jax.errors import UserError, nearest


def frameworks_of(framework: str) -> tuple[str, ...]:
    """The frameworks that --framework names: "jax", "torch", or "both"."""
    return ("jax", "torch") if framework == "both" else (framework,)


def choose(name: str, given: Iterable[str], allowed: Iterable[str]) -> tuple[str, ...]:
    """The values of the flag --`name` without repetitions.

    Raises:
        UserError: one of them is not in `allowed`, or there are none.
    """
    given, allowed = tuple(dict.fromkeys(given)), tuple(allowed)
    for value in given:
        if value not in allowed:
            raise UserError(f"--{name} has no {value!r}, did you mean {nearest(value, allowed)!r}?")
    if not given:
        raise UserError(f"--{name} is empty: give some of {', '.join(allowed)}")
    return given


def positive(name: str, given: Iterable[str]) -> tuple[int, ...]:
    """The values of the flag --`name` as numbers, without repetitions.

    Raises:
        UserError: there are none, or one of them is not a positive integer.
    """
    given = tuple(dict.fromkeys(given))
    if not given or not all(text.isdecimal() and int(text) for text in given):
        raise UserError(f"--{name} takes numbers above 0, not {','.join(given)!r}")
    return tuple(map(int, given))


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels, from "224" or "224x320".

    Raises:
        UserError: `text` is anything else.
    """
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise UserError(f"--input_size is a number of pixels or <height>x<width>, not {text!r}")
    return int(match[1]), int(match[2] or match[1])
