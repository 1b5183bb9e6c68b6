"""Shared by all commands: option parsing, one-line errors, exit codes, quiet imports.

Exit codes: 0 done, 1 failure, 2 wrong use, 3 done but some inputs were rejected, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from trainer.errors import Outage, UserError, is_outage

FAILURE = 1
WRONG_USE = 2
SOME_REJECTED = 3
INTERRUPTED = 130  # as shells report it: 128 + SIGINT


def code_version() -> str:
    """Version of this project, recorded in everything it writes."""
    return importlib.metadata.version("pconv")


def duration(seconds: float) -> str:
    """``seconds`` as hours, minutes and seconds: ``1:02:03``, ``2:03``; a negative number as ``0:00``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ArgumentParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` without abbreviated options, raising `UserError` where that prints usage and exits."""

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`: ``message``, and where the options are listed."""
        raise UserError(f"{message} ({self.prog} --help lists the options)")


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


def printable(text: str) -> str:
    """``text`` with escapes in place of what a terminal might obey: control characters but for line breaks, and marks
    that turn the direction of writing. A name of a file may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs ``main(argv)`` and exits with its exit code; a `UserError` or an outage is printed as one line on stderr."""
    # Google's clients warn about Python 3.10's end of life on every import.
    warnings.filterwarnings("ignore", "You are using a (non-supported )?Python version", FutureWarning)
    try:
        code = main(sys.argv[1:])
    except (UserError, Outage, OSError) as error:
        if not isinstance(error, UserError) and not is_outage(error):
            raise
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        code = WRONG_USE if isinstance(error, UserError) else FAILURE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code or 0)


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Discards what native libraries print to stderr while they load; shows it if an import fails.

    TensorFlow 2.21 prints before it reads ``TF_CPP_MIN_LOG_LEVEL``, so file descriptor 2 itself is redirected. The
    variable is set too, unless the user has set it: TensorFlow's later log calls a machine without a GPU an error, and
    real failures are raised as exceptions anyway.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
