"""What the command lines share: absl flags, and one line on stderr with exit code 2 for a user's mistake."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from lma_jax.errors import UserError, nearest


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; a UserError or a bad flag ends the program with one line and exit code 2."""

    def guarded(argv: list[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}: options are given as --name=value (see --help)")
            main()
        except UserError as error:
            _fail(error)

    app.run(guarded, flags_parser=_parse_flags)


def define_config_flag() -> flags.FlagHolder[Any]:
    """Adds --config, a Python file with get_config(), and --config.<key> for each of its keys."""
    return config_flags.DEFINE_config_file("config", None, "Recipe to train, such as configs/resnet50_lma.py.")


def load_config(flag: flags.FlagHolder[Any]) -> tuple[ConfigDict, str]:
    """The config that was asked for, and the name of its file without ending.

    Raises:
        UserError: no --config, or a file that is no config.
    """
    if flag.value is None:
        raise UserError("no recipe given: add --config=configs/<name>.py")
    if not isinstance(flag.value, ConfigDict):
        raise _config_file_error()
    return flag.value, _config_path().stem


def _parse_flags(argv: list[str]) -> list[str]:
    logging.set_verbosity(logging.WARNING)
    try:
        return app.parse_flags_with_usage(argv) if _asks_for_help(argv) else flags.FLAGS(argv)
    except (UserError, flags.Error) as error:
        _fail(error)
    except (AttributeError, KeyError, OSError):
        # ml_collections leaves the mistakes in overrides and in the file's path to Python.
        mistake = _config_mistake(argv)
        if mistake is None:
            raise
        _fail(mistake)


def _asks_for_help(argv: list[str]) -> bool:
    return any(re.fullmatch(r"--?help(short|full|xml)?", argument) for argument in argv)


def _config_path() -> Path:
    return Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])


def _config_file_error() -> UserError:
    path = _config_path()
    if path.is_file():
        return UserError(f"{path} is no config: it must be a Python file with a function get_config()")
    recipes = sorted(str(recipe) for recipe in path.parent.glob("*.py"))
    hint = f", did you mean {nearest(str(path), recipes)}?" if recipes else ""
    return UserError(f"config file {path} does not exist{hint}")


def _config_mistake(argv: list[str]) -> UserError | None:
    config = flags.FLAGS["config"].value
    if not isinstance(config, ConfigDict):
        return _config_file_error()
    for argument in argv:
        match = re.match(r"--config\.([^=]+)", argument)
        if match and match[1] not in config:
            return UserError(f"the config has no key {match[1]!r}, did you mean {nearest(match[1], config)!r}?")
    return None


def _fail(error: Exception) -> NoReturn:
    sys.stdout.flush()
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
