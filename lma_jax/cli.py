"""What the commands share: absl flags, and one line on stderr with exit code 2 for a user's mistake."""

import importlib
import inspect
import io
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags, logging

from lma_jax import output, recipes
from lma_jax.errors import DISTRIBUTIONS, InterruptedRun, UserError, nearest, one_line
from lma_jax.signals import INTERRUPTED

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# --help lists the flags of the command, also those that are defined here.
flags.disclaim_key_flags()

# What shells report of a program that Ctrl-C ended.
KILLED_BY_SIGINT = 130
# What Python says about the value of a flag, and what users are told.
SAID = {
    "invalid literal for int() with base 10:": "a whole number is needed, not",
    "could not convert string to float:": "a number is needed, not",
}


def run(
    main: Callable[..., None],
    define_flags: Callable[[], None],
    *,
    prints_progress: bool = False,
    takes_arguments: bool = False,
) -> None:
    """Defines and parses the flags, and calls `main`.

    A UserError, a bad flag, a file that cannot be used or a missing package ends the program with one line on stderr
    and exit code 2, an InterruptedRun with 75, and Ctrl-C with 130.

    Args:
        main: the command.
        define_flags: defines its flags.
        prints_progress: what it prints is progress, not a result. If it cannot be written, a command that prints a
            result ends, silently and with exit code 141 if the reader of a pipe is gone.
        takes_arguments: whether `main` takes the arguments that are no flags, such as files.
    """

    def guarded(argv: list[str]) -> None:
        try:
            if len(argv) > 1 and not takes_arguments:
                raise UserError(f"unexpected argument {argv[1]!r}: options are given as --name=value (see --help)")
            if "import" in flags.FLAGS:
                import_modules(flags.FLAGS["import"].value or [])
            main(*argv[1:])
            sys.stdout.flush()
        except UserError as error:
            _fail(error)
        except ModuleNotFoundError as error:
            _fail_on_missing_package(error)
            raise
        except OSError as error:
            if error.filename is None:
                raise
            _fail(UserError(f"cannot use {os.fsdecode(error.filename)}: {error.strerror}"))
        except InterruptedRun as interruption:
            sys.stdout.flush()
            print(one_line(interruption), file=sys.stderr)
            sys.exit(INTERRUPTED)

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the encoding of a terminal need not hold every name
    output.open_streams()
    try:
        with output.unimportant() if prints_progress else output.required():
            try:
                define_flags()
                flags.FLAGS.set_gnu_getopt(takes_arguments)  # flags may follow arguments
                app.run(guarded, flags_parser=_parse_flags)
            except ModuleNotFoundError as error:
                _fail_on_missing_package(error)
                raise
            except flags.Error as error:  # a --flagfile that cannot be opened
                _fail(error)
            except KeyboardInterrupt:
                print("stopped by SIGINT", file=sys.stderr)
                sys.exit(KILLED_BY_SIGINT)
    finally:
        output.drop_unwritten()


def define_checkpoint() -> None:
    """Adds --checkpoint and --step, and --import, which its network may need."""
    define_import()
    flags.DEFINE_string("checkpoint", None, "Workdir of a training run.", required=True)
    define_step()


def define_step() -> None:
    """Adds --step."""
    flags.DEFINE_string("step", "newest", "Which checkpoint: newest, best (by validation top-1), or its step.")


def define_import() -> None:
    """Adds --import, which `run` obeys before the command, for commands that build networks."""
    flags.DEFINE_multi_string(
        "import", [], "Module of yours to import first, by its name or .py file: it registers an attention."
    )


def import_modules(names: Iterable[str]) -> None:
    """Imports modules of the user by their names or files.

    Raises:
        UserError: one cannot be imported.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                runpy.run_path(name)
            else:
                importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise UserError(f"--import={name} cannot be imported: {type(error).__name__}: {error}") from error


def define_force() -> None:
    """Adds --force, for `overwriting.require_outputs`."""
    flags.DEFINE_bool("force", False, "Replace existing files, even those that this program did not write.")


def define_config() -> None:
    """Adds --config, a recipe's name or a Python file with get_config(), and --config.<key> for each of its keys."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, f"Recipe to train, a file such as folder/mine.py or one of {', '.join(recipes.list_recipes())}."
    )
    flags.declare_key_flag("config")
    flags.FLAGS["config"].parser = _ConfigParser()


def load_config() -> "tuple[ConfigDict, str]":
    """The value of --config, and the name of its file without the suffix.

    Raises:
        UserError: no --config.
    """
    from ml_collections import config_flags

    config = flags.FLAGS.config
    if config is None:
        raise UserError("no recipe given: add --config=<name or file> (see --help)")
    path = Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])
    return config, path.stem


def replaced_values() -> dict[str, Any]:
    """The values in the recipe of those keys that --config.<key> sets."""
    from ml_collections import config_flags

    flag = flags.FLAGS["config"]
    given = config_flags.get_override_values(flag)
    recipe = recipes.load(config_flags.get_config_filename(flag)) if given else {}
    return {key: recipe[key] for key in given}


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
        return flags.FLAGS(argv)
    except (UserError, flags.Error) as error:
        missing = re.match(r"flag (--\w+)=None: Flag --\w+ must have a value other than None", str(error))
        said = re.sub("|".join(map(re.escape, SAID)), lambda found: SAID[found[0]], str(error))
        _fail(UserError(f"{missing[1]} is required (see --help)" if missing else said))
    except OSError as error:  # a --config or --flagfile
        _fail(UserError(f"cannot use {os.fsdecode(error.filename or '')}: {error.strerror}"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections raises these for an override of a key that the config lacks.
        _fail_on_unknown_key(argv)
        _fail(UserError(f"a --config.<key> cannot be applied: {error}"))


class _ConfigParser(flags.ArgumentParser):
    """Loads a recipe, by name or file, or <recipe>:<argument of get_config>, once.

    It keeps the config of an unsuccessful parse.
    """

    config: Any = None

    def parse(self, argument: str) -> "ConfigDict":
        name, colon, argument = recipes.find(argument).partition(":")
        try:
            get_config = runpy.run_path(name).get("get_config")
            fixed = callable(get_config) and not inspect.signature(get_config).parameters
            self.config = get_config(*([argument] if colon and not fixed else [])) if callable(get_config) else None
        except (Exception, SystemExit) as error:
            reason = error.msg if isinstance(error, SyntaxError) else error
            raise UserError(f"config {_place(error, name)}: {type(error).__name__}: {reason}") from error
        if colon and fixed:
            raise UserError(f"config {name} takes nothing after its name: leave out :{argument}, set --config.<key>")
        _require_config_dict(self.config, name)
        self.config.lock()
        return self.config


def _place(error: BaseException, path: str) -> str:
    """The file, and the line if it is known, where a config failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno}" if error.lineno else path
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}, line {lines[-1]}" if lines else path


def _require_config_dict(config: Any, path: str) -> None:
    from ml_collections import ConfigDict, FrozenConfigDict

    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise UserError(f"{path} is no config: its function get_config() must return a ConfigDict")


def _fail_on_unknown_key(argv: list[str]) -> None:
    parser = flags.FLAGS["config"].parser if "config" in flags.FLAGS else None
    config = parser.config if isinstance(parser, _ConfigParser) else None
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if config is not None and match and match[1] not in config:
            _fail(UserError(f"the config has no key {match[1]!r}, did you mean {nearest(match[1], config)!r}?"))


def _fail_on_missing_package(error: ModuleNotFoundError) -> None:
    """Not if the module is one of this project, which would be a bug."""
    package = (error.name or "").partition(".")[0]
    if package not in ("", "lma_jax", "lma_torch", "convert", "configs"):
        name = DISTRIBUTIONS.get(package, package)
        _fail(UserError(f"the package {name} is missing: pip install {name}"))


def _fail(error: Exception) -> NoReturn:
    sys.stdout.flush()
    print("error:", one_line(error), file=sys.stderr)
    sys.exit(2)
