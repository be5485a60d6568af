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
