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
}


# What the JSON file of most commands holds: see `results.write_json`.
SETTINGS = ('"settings": {', '"json": null')


class Parser(argparse.ArgumentParser):
    """A parser whose --help shows the docstring of the command.

    Args:
        description: the docstring.
        holds: what every --json file of the command holds; empty for a command without --json.
    """

    def __init__(self, description: str | None, *, holds: Sequence[str] = ()):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(usage="%(prog)s [options]", description=description, formatter_class=formatter)
        self._holds = tuple(holds)
        if holds:
            self.add_argument("--json", type=Path, help="file for all results")
            self.add_argument("--force", action="store_true", help="replace a file that this command did not write")

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        """Parses the options, and checks --json before anything is measured."""
        chosen = super().parse_args(*arguments, **options)
        if self._holds:
            self._check_json(chosen.json, force=chosen.force)
            del chosen.force
        return chosen

    def _check_json(self, json: Path | None, *, force: bool) -> None:
        if json is None:
            return
        from lma_jax.errors import UserError  # here, since a prediction needs no package
        from lma_jax.overwriting import Kind, require_outputs

        try:
            require_outputs({"json": (json, Kind(self._holds))}, force=force)
        except UserError as error:
            self.exit(2, f"error: {error}\n")


def plain_parser(description: str | None) -> Parser:
    """A parser without options."""
    return Parser(description)


def parser(
    description: str | None,
    *,
    dtypes: Sequence[str] = DTYPES,
    holds: Sequence[str] = SETTINGS,
    **defaults: str | int,
) -> Parser:
    """A parser of the shared options in `defaults`, of --json and of --force.

    Args:
        description: the docstring of the command.
        dtypes: choices of --dtype.
        holds: what every --json file of the command holds.
        **defaults: of the shared options.
    """
    made = Parser(description, holds=holds)
    for name, default in defaults.items():
        settings = SHARED[name] | ({"choices": dtypes} if name == "dtype" else {})
        settings["help"] += f" (default: {default})"
        made.add_argument(f"--{name}", default=default, **settings)
    return made
