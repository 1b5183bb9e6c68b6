"""What every command of the project shares: one-line errors, exit codes and quiet imports.

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

from trainer.errors import UserError

WRONG_USE = 2
SOME_REJECTED = 3


def code_version() -> str:
    """Version of this project, kept with everything it writes."""
    return importlib.metadata.version("pconv")


def duration(seconds: float) -> str:
    """``seconds`` as hours, minutes and seconds: ``1:02:03``, ``2:03``; a negative number as ``0:00``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ArgumentParser(argparse.ArgumentParser):
    """argparse that knows only whole option names and complains in one line."""

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise UserError(f"{message} ({self.prog} --help lists the options)")


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """``type`` of an option of argparse that takes integers from ``low`` to ``high``, both included."""
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


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs ``main(argv)`` and ends the process with its exit code, or with one line for a `UserError`."""
    # Google's clients announce the end of Python 3.10's life whenever they are imported.
    warnings.filterwarnings("ignore", "You are using a (non-supported )?Python version", FutureWarning)
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr)
        code = WRONG_USE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Holds back what TensorFlow's libraries write to the terminal while they load, unless loading fails.

    TensorFlow 2.21 does so below Python and before it reads ``TF_CPP_MIN_LOG_LEVEL``; that level
    (set here for the time after loading, where the user has not) hides its log, in which a machine
    without a GPU is an error; what goes wrong is raised as an exception besides.
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
