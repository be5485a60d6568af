"""The options that commands share, so that one name means the same everywhere, as in `python -m convert.fps`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16")


def count(text: str) -> int:
    """Parses a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number above 0, not {text!r}")
    return int(text)


def counts(text: str, *, most: int) -> list[int]:
    """Parses whole numbers from 1 to `most`, separated by commas."""
    found = [count(number) for number in text.split(",")]
    if max(found) > most:
        raise argparse.ArgumentTypeError(f"takes whole numbers up to {most}, not {max(found)}")
    return found


def number(text: str) -> int:
    """Parses a whole number, which may be 0."""
    return 0 if text == "0" else count(text)


def assignments(text: str) -> dict[str, str | bool]:
    """Parses name=value,...; the values true and false become bools."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
        raise argparse.ArgumentTypeError(f"takes name=value,..., not {wrong[0]!r}")
    return {name: {"true": True, "false": False}.get(value.lower(), value) for name, _, value in pairs}


SHARED: dict[str, dict[str, Any]] = {
    "model": dict(help="a name of list_models()"),
    "batch_size": dict(type=count, help="images per batch"),
    "image_size": dict(type=count, help="height and width of the images in pixels"),
    "steps": dict(type=count, help="timed batches of each variant"),
    "dtype": dict(help="of the computation"),
    "device": dict(choices=("cpu", "gpu"), help="where to run"),
    "json": dict(type=Path, help="file for all results"),
}


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser without options, whose --help shows the docstring of the command."""
    return argparse.ArgumentParser(
        usage="%(prog)s [options]", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parser(
    description: str | None, *, dtypes: Sequence[str] = DTYPES, **defaults: str | int
) -> argparse.ArgumentParser:
    """A parser of the shared options in `defaults`, and of --json. `dtypes` are the choices of --dtype."""
    made = plain_parser(description)
    for name, default in {**defaults, "json": None}.items():
        settings = SHARED[name] | ({"choices": dtypes} if name == "dtype" else {})
        if default is not None:
            settings["help"] += f" (default: {default})"
        made.add_argument(f"--{name}", default=default, **settings)
    return made
