"""How a process ends before its work does: on a signal, or with the process that started it.

SIGINT (Ctrl-C), SIGTERM and SIGHUP raise `Interrupted` in the main thread, which puts things in order; the command
then prints one line and exits with 128 + the signal's number. An exception may get lost (in a library's bare
``except``, in a call that never returns), so a thread ends the process itself where that takes too long, at a second
signal, and at once where there is nothing to put in order.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from trainer.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 30.0
# Two signals within this time are one, sent to a process and to its whole group.
_TWICE_S = 1.0
# Of the main thread, which may have begun to wait just after a signal: it is ignored where nobody handles it.
_NUDGE, _NUDGE_S = signal.SIGURG, 0.05
_LIFELINE = "PCONV_LIFELINE"


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class _State:
    """Of this process.

    Attributes:
        asked: number of the first signal.
        tidies: whether the main thread has to put things in order before the process may end.
        raised: whether `Interrupted` has been raised.
        said: whether the user has been told.
        abandoned: whether threads are left behind that never end.
        stderr: file descriptor of the user's terminal or log.
    """

    asked: int | None = None
    tidies = raised = said = abandoned = False
    stderr = 2


_state = _State()


@functools.cache
def watch() -> None:
    """Handles `SIGNALS` from now on, and ends with the process that used `start_bound`; for the main thread.

    A signal that is ignored, as under nohup, stays so.
    """
    if os.environ.pop(_LIFELINE, None):
        threading.Thread(target=_end_with_starter, name="lifeline", daemon=True).start()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(_NUDGE, lambda _number, _frame: None)
    install_handlers()
    sys.unraisablehook = _raise_again
    threading.Thread(target=_watch, args=[reader], name="signals", daemon=True).start()


def install_handlers() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


@contextlib.contextmanager
def own_handlers() -> Iterator[None]:
    """Undoes what a library does with `SIGNALS`: Ray's ``init`` makes SIGTERM exit with code 15."""
    try:
        yield
    except SystemExit as leaving:
        if leaving.code != signal.SIGTERM:
            raise
        raise Interrupted(signal.SIGTERM) from None
    finally:
        install_handlers()


def _on_signal(number: int, _frame: object) -> None:
    if _state.asked is not None:
        return
    _state.asked = number
    if _state.tidies:
        _state.raised = True
        raise Interrupted(number)


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """For `Interrupted` in a finalizer or a callback of the garbage collector, where Python drops what is raised."""
    if not isinstance(lost.exc_value, Interrupted):
        sys.__unraisablehook__(lost)
        return
    number = lost.exc_value.number
    _state.asked, _state.raised = None, False
    threading.Timer(0.02, os.kill, [os.getpid(), number]).start()  # when that is over


def _watch(reader: int) -> None:
    """Ends the process where `Interrupted` is not enough; reads the numbers of signals as they come.

    Python runs a handler in the main thread, between two of its steps. A signal that comes after the last step before
    a call that waits, or to another thread, does not end that call, so the main thread is nudged until it has run.
    """
    while (number := os.read(reader, 1)[0]) not in SIGNALS:
        pass
    if _state.tidies or _state.raised:
        begin = time.monotonic()
        while (left := begin + GRACE_S - time.monotonic()) > 0:
            handled = _state.asked is not None
            ready, _, _ = select.select([reader], [], [], left if handled else min(left, _NUDGE_S))
            if ready and os.read(reader, 1)[0] in SIGNALS and time.monotonic() - begin > _TWICE_S:
                break
            if not ready and not handled:
                signal.pthread_kill(threading.main_thread().ident or 0, _NUDGE)
    say(number)
    os._exit(128 + number)


def _end_with_starter() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def start_bound(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Starts a process that gets a SIGTERM when this process ends, however it ends: their pipe breaks.

    The command has to call `watch`.
    """
    environment = {**(os.environ if environment is None else environment), _LIFELINE: "stdin"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **options)


def asked() -> int | None:
    """Number of the signal that asked this process to end, if one has."""
    return _state.asked


@contextlib.contextmanager
def tidying(needed: bool = True, stderr: int | None = None) -> Iterator[None]:
    """Signals raise `Interrupted` within; unless ``needed``, they end the process, with a line to ``stderr``."""
    before = _state.tidies, _state.stderr
    _state.tidies, _state.stderr = needed, _state.stderr if stderr is None else stderr
    try:
        _raise_missed()
        yield
    finally:
        _state.tidies, _state.stderr = before
    _raise_missed()


def _raise_missed() -> None:
    """Raises `Interrupted` for a signal that came while that was about to be allowed."""
    if _state.tidies and _state.asked is not None and not _state.raised:
        _state.raised = True
        raise Interrupted(_state.asked)


def say(number: int) -> None:
    """Tells the user, once."""
    if not _state.said:
        _state.said = True
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        with contextlib.suppress(OSError):
            os.write(_state.stderr, f"interrupted{by}\n".encode())


def abandon_threads() -> None:
    """From now on `leave` waits for no thread: some hold on to work that nobody needs any more, or never end."""
    _state.abandoned = True


def leave(code: int) -> NoReturn:
    """Ends the process."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if _state.abandoned:
        if scratch_folder.cache_info().currsize:
            _remove(scratch_folder(), os.getpid())
        os._exit(code)
    sys.exit(code)


@functools.cache
def scratch_folder() -> str:
    """A folder for temporary files of this process and those it starts, removed when this process ends.

    Raises:
        UserError: there is no place for one.
    """
    try:
        folder = tempfile.mkdtemp(prefix="pconv-job-")
    except OSError as error:
        raise UserError(f"TMPDIR: cannot make a folder for temporary files: {error.strerror}") from None
    atexit.register(_remove, folder, os.getpid())
    return folder


@contextlib.contextmanager
def temporary_files_in_scratch() -> Iterator[None]:
    """Libraries that leave their temporary files behind leave them in the `scratch_folder`."""
    before, tempfile.tempdir = tempfile.tempdir, scratch_folder()
    try:
        yield
    finally:
        tempfile.tempdir = before


def _remove(folder: str, owner: int) -> None:
    tries = 3 if os.getpid() == owner else 0  # a thread that was left behind may be writing
    while tries and os.path.exists(folder):
        shutil.rmtree(folder, ignore_errors=True)
        tries -= 1
