"""Shared by all commands: option parsing, one-line errors, exit codes, quiet imports.

Exit codes: 0 done, 1 failure, 2 wrong use, 3 done but some inputs were rejected, 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import io
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from trainer import stopping
from trainer.errors import Outage, UserError, is_outage

FAILURE = 1
WRONG_USE = 2
SOME_REJECTED = 3
BILLING_PROJECT = "PCONV_BILLING_PROJECT"  # environment variable, read by the store of gs:// addresses
_EXTRAS = {"apache_beam": "beam", "ray": "ray", "aiohttp": "try"}  # of the package, with what need not be installed
_NAMES: dict[str, str] = {}  # what a help page calls a command, by `python -m MODULE`: `pconv` renames all


def code_version() -> str:
    """Version of this project, recorded in everything it writes: with the commit, where ``PCONV_COMMIT`` names it.

    Images have that variable, and the scripts that submit to a cluster set it.
    """
    commit = os.environ.get("PCONV_COMMIT")
    return importlib.metadata.version("pconv") + (f"+{commit}" if commit else "")


def duration(seconds: float) -> str:
    """``seconds`` as hours, minutes and seconds: ``1:02:03``, ``2:03``; a negative number as ``0:00``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rename_commands(names: Mapping[str, str]) -> None:
    """Makes help pages and messages say ``names[module]`` in place of ``python -m module``."""
    _NAMES.update({f"python -m {module}": name for module, name in names.items()})


def _renamed(text: str | None) -> str | None:
    return text and re.sub(r"python -m [\w.]+", lambda found: _NAMES.get(found[0], found[0]), text)


class _Export(argparse.Action):
    """Puts an option's value into the environment variable ``const``: processes that this one starts get it, too."""

    def __call__(self, parser: object, namespace: object, values: Any, option_string: str | None = None) -> None:
        os.environ[self.const] = values


class ArgumentParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` without abbreviated options, raising `UserError` where that prints usage and exits.

    With the option that all commands have, of addresses in buckets.
    """

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs |= {name: _renamed(kwargs.get(name)) for name in ("prog", "description")}
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument(
            "--billing-project",
            metavar="PROJECT",
            action=_Export,
            const=BILLING_PROJECT,
            default=argparse.SUPPRESS,
            help="Google Cloud project that pays for requests to gs:// buckets, where the one who asks pays",
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's; raises `UserError` for arguments that are left over: see `explain_surplus`."""
        argv = sys.argv[1:] if args is None else args
        found, rest = self.parse_known_args(argv, namespace)
        if rest:
            self.error(explain_surplus(argv, rest[0], [self]) or f"unrecognized arguments: {' '.join(rest)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`: ``message``, and where the options are listed."""
        raise UserError(f"{message} ({self.prog} --help lists the options)")


def explain_surplus(argv: Sequence[str], extra: str, parsers: Sequence[argparse.ArgumentParser]) -> str | None:
    """What is wrong with an argument that no option takes, in one sentence or two; None if it is an option itself.

    Mostly the shell has made several arguments of one: of a pattern, or of a name with blanks.

    Args:
        argv: all arguments.
        extra: the first that is left over.
        parsers: those that know options.
    """
    if extra.startswith("-"):
        return None
    actions = {name: action for parser in parsers for action in parser._actions for name in action.option_strings}
    option, values = "", []
    for argument in argv:
        if argument.startswith("-") and len(argument) > 1:
            if extra in values:
                break
            option, _, value = argument.partition("=")
            values = [value] if value else []
        else:
            values.append(argument)
    action = actions.get(option)
    if action is None or action.nargs == 0 or len(values) < 2:
        return f"unexpected argument {extra!r}" + (f" after {option}" if option else "")
    shown = ", ".join(values[:3]) + (" ..." if len(values) > 3 else "")
    expected = f"{option}: expected one value. Received {len(values)}: {shown}."
    if isinstance(action, argparse._AppendAction):
        return f"{expected} Give the option once for each: {option} {values[0]} {option} {values[1]}"
    if os.path.exists(" ".join(values)):
        return f"{expected} A name with blanks needs quotes: {option} '{' '.join(values)}'"
    if all(map(os.path.exists, values)):
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(value)) for value in values])
        folder = folder if os.path.isabs(values[0]) else os.path.relpath(folder)
        return (
            f"{expected} Without quotes, the shell replaces a pattern by the names that match it: "
            f"{option} '{_pattern_of(folder, values)}', or name the folder, {option} {folder}"
        )
    return f"{expected} A value with blanks, and a pattern such as '*.jpg', need quotes."


def _pattern_of(folder: str, names: Sequence[str]) -> str:
    """A glob that matches ``names``, files in or below ``folder``."""
    extensions = {os.path.splitext(name)[1] for name in names}
    last = "*" + (extensions.pop() if len(extensions) == 1 else "")
    same = all(os.path.dirname(os.path.abspath(name)) == os.path.abspath(folder) for name in names)
    return os.path.normpath(os.path.join(folder, "" if same else "**", last))


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse ``type`` for integers from ``low`` to ``high``, both included."""
    expected = f"{low} or more" if high is None else f"{low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {expected}. Received {text!r}.") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected {expected}. Received {value}.")
        return value

    return parse


def fraction(text: str) -> float:
    """An argparse ``type`` for numbers above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 1. Received {text!r}.")
    return value


def printable(text: str) -> str:
    """``text`` with escapes in place of what a terminal might obey: control characters but for line breaks, and marks
    that turn the direction of writing. A name of a file may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class _Output(io.TextIOWrapper):
    """stdout or stderr that may be lost (``| head`` has read enough, the disk of the log is full): the work goes on."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)
            super().flush()

    def _lose(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # what native code and other processes write is lost with it
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError) and self.fileno() == 1:
            print(f"stdout: {error.strerror}; going on without", file=sys.stderr)


@functools.cache
def prepare() -> None:
    """Makes this process stop as `stopping` says, and its work independent of stdin, stdout and stderr.

    A descriptor that is closed is opened on the null device: the next file to be opened would get its number, and
    with it what native code writes to stderr.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name) or open(descriptor, "w", closefd=False, errors="backslashreplace")
        new = _Output(open(descriptor, "wb", closefd=False), old.encoding, old.errors)
        new.reconfigure(line_buffering=old.line_buffering, write_through=old.write_through)
        setattr(sys, name, new)
    stopping.watch()


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs ``main(argv)`` and exits with its exit code; what the user must know of an error is one line on stderr."""
    prepare()
    # Google's clients warn about Python 3.10's end of life on every import.
    warnings.filterwarnings("ignore", "You are using a (non-supported )?Python version", FutureWarning)
    try:
        with stopping.tidying():
            code = main(sys.argv[1:])
    except BaseException as error:
        code = _exit_code(error)
    stopping.leave(code or 0)


def _exit_code(error: BaseException) -> int:
    """The exit code for what ``main`` has raised, which is printed; raises it again if that is no line for a user."""
    number = stopping.asked()
    if isinstance(error, SystemExit):
        raise error  # of --help, or of who has told the user
    if isinstance(error, KeyboardInterrupt) or number is not None:  # whatever an interrupt has become on its way
        number = number or signal.SIGINT
        stopping.say(number)
        return 128 + number
    if isinstance(error, ModuleNotFoundError) and (extra := _EXTRAS.get(error.name or "")):
        print(f"error: {error.name} is not installed: pip install 'pconv[{extra}]'", file=sys.stderr)
        return WRONG_USE
    if not isinstance(error, UserError | Outage) and not (isinstance(error, OSError) and is_outage(error)):
        raise error
    print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return WRONG_USE if isinstance(error, UserError) else FAILURE


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Discards what native libraries print to stderr while they load; shows it if an import fails.

    TensorFlow 2.21 prints before it reads ``TF_CPP_MIN_LOG_LEVEL``, so file descriptor 2 itself is redirected. The
    variable is set too, unless the user has set it: TensorFlow's later log calls a machine without a GPU an error, and
    real failures are raised as exceptions anyway. A signal ends the process: libraries catch what is raised meanwhile.

    Raises:
        UserError: an import failed for want of docstrings.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            with stopping.tidying(needed=False, stderr=terminal), _modules_uncollected():
                yield
        except Exception as error:
            if sys.flags.optimize > 1:
                raise UserError(
                    "PYTHONOPTIMIZE=2 (python -OO): expected 0 or 1. It removes docstrings, and Apache Beam reads some "
                    f"while it is imported ({error})"
                ) from None
            sys.stderr.flush()
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


@contextlib.contextmanager
def _modules_uncollected() -> Iterator[None]:
    """Collects no garbage while modules are imported, nor ever looks for it in them.

    TensorFlow and Beam are a million objects that live as long as the process. Looking through them again and again
    took a fifth of their import, and a quarter of a command that inpaints one photograph (25.5 s of CPU, 18.9 without).
    """
    enabled, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # else what would be kept is the garbage of whoever calls
            gc.freeze()
        if enabled:
            gc.enable()
