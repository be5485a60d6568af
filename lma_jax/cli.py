"""What the commands share: absl flags, and one line on stderr with exit code 2 for a user's mistake."""

import io
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags, logging

from lma_jax.errors import InterruptedRun, UserError, nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# --help lists the flags of the command, also those that are defined here.
flags.disclaim_key_flags()

# "Try again" in sysexits.h: the run is saved, and the same command resumes it.
INTERRUPTED = 75


def run(main: Callable[[], None], define_flags: Callable[[], None]) -> None:
    """Defines and parses the flags, and calls `main`.

    A UserError or a bad flag ends the program with one line on stderr and exit code 2, an InterruptedRun with 75.
    """

    def guarded(argv: list[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}: options are given as --name=value (see --help)")
            main()
        except UserError as error:
            _fail(error)
        except InterruptedRun as interruption:
            sys.stdout.flush()
            print(interruption, file=sys.stderr)
            sys.exit(INTERRUPTED)

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the encoding of a terminal need not hold every name
    define_flags()
    app.run(guarded, flags_parser=_parse_flags)


def define_checkpoint() -> None:
    """Adds --checkpoint and --step."""
    flags.DEFINE_string("checkpoint", None, "Workdir of a training run.", required=True)
    define_step()


def define_step() -> None:
    """Adds --step."""
    flags.DEFINE_string("step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.")


def define_config() -> None:
    """Adds --config, a Python file with get_config(), and --config.<key> for each of its keys."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "Recipe to train, such as configs/resnet50_lma.py.")
    flags.declare_key_flag("config")


def load_config() -> "tuple[ConfigDict, str]":
    """The value of --config, and the name of its file without the suffix.

    Raises:
        UserError: no --config, or a file without a config.
    """
    from ml_collections import ConfigDict, config_flags

    config = flags.FLAGS.config
    if config is None:
        raise UserError("no recipe given: add --config=configs/<name>.py")
    path = Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} is no config: get_config() must return a ConfigDict")
    return config, path.stem


def models_named(pattern: str) -> list[str]:
    """The networks whose names match a pattern.

    Raises:
        UserError: there are none.
    """
    from lma_jax.registry import list_models

    names = list_models(pattern)
    if not names:
        raise UserError(f"no model is called {pattern!r}, did you mean {nearest(pattern, list_models())!r}?")
    return names


def _parse_flags(argv: list[str]) -> list[str]:
    logging.set_verbosity(logging.WARNING)
    if any(re.fullmatch(r"--?help(short|full|xml)?", argument) for argument in argv):
        return app.parse_flags_with_usage(argv)
    try:
        if "config" in flags.FLAGS:
            _require_config_file(_config_path(argv))
        return flags.FLAGS(argv)
    except (UserError, flags.Error) as error:
        missing = re.match(r"flag (--\w+)=None: Flag --\w+ must have a value other than None", str(error))
        _fail(UserError(f"{missing[1]} is required (see --help)") if missing else error)
    except (AttributeError, KeyError, TypeError):
        # ml_collections raises these for an override of a key that the config lacks.
        _fail_on_unknown_key(argv)
        raise


def _config_path(argv: list[str]) -> Path:
    """The file given as --config=<file> or --config <file>, without its argument after a colon."""
    given = [re.match(r"--?config(?:=|$)(.*)", argument) for argument in argv]
    values = [match[1] or "".join(argv[index + 1 : index + 2]) for index, match in enumerate(given) if match]
    return Path(values[-1].partition(":")[0] if values else "")


def _require_config_file(path: Path) -> None:
    if path.is_file() and path.suffix != ".py":
        raise UserError(f"{path} is no config: it must be a Python file with a function get_config()")
    if path.name and not path.is_file():
        recipes = [str(recipe) for recipe in path.parent.glob("*.py")]
        hint = f", did you mean {nearest(str(path), recipes)}?" if recipes else ""
        raise UserError(f"config file {path} does not exist{hint}")


def _fail_on_unknown_key(argv: list[str]) -> None:
    config = runpy.run_path(str(_config_path(argv)))["get_config"]()
    for argument in argv:
        match = re.match(r"--?config\.([^=]+)", argument)
        if match and match[1] not in config:
            _fail(UserError(f"the config has no key {match[1]!r}, did you mean {nearest(match[1], config)!r}?"))


def _fail(error: Exception) -> NoReturn:
    sys.stdout.flush()
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)
