"""Errors that one package raises and another catches."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

E = TypeVar("E", bound=Exception)


class UserError(Exception):
    """Something the user can fix; commands print it as one line and exit with code 2."""


class NotFound(UserError):
    """There is nothing at the address."""


class Corrupt(UserError):
    """The bytes at an address do not have the checksum they should have."""


class TooLarge(Corrupt):
    """A file is larger than what may be at its address."""


class Denied(UserError):
    """Access is refused, to more than one file: a missing permission, or no credentials."""


class Unwritable(UserError):
    """A file cannot be written under this name: it is too long, or taken by something else, other contents included."""


class DeviceError(UserError):
    """The device to compute on does not exist on this machine."""


class ConfigChanged(UserError):
    """A run's config.json differs from the config it should continue with."""


class Outage(Exception):
    """A store, a network, a disk or a process does not do its work: no answer, a full disk. It is no file's fault.

    Commands print it as one line and exit with code 1: the same command may succeed later.
    """


class LeftRunning(KeyboardInterrupt):
    """The user has interrupted a command whose job goes on without it, on a service."""


class AlreadyExists(Exception):
    """`storage.create` found something at the address."""


class Conflict(Exception):
    """`storage.replace` found another generation than the one that was read."""


class ImageError(ValueError):
    """The bytes are not an image, or not one that can be used here."""


class MaskError(ImageError):
    """A mask does not say which pixels are holes, or not of this image."""


# What the operating system says about one file. All else (EIO, EMFILE, ENOSPC, EDQUOT, ESTALE ...) it says about the
# disk, the network or the process.
_ABOUT_A_FILE = "ENOENT EACCES EPERM ENOTDIR EISDIR ELOOP ENAMETOOLONG EINVAL ENXIO ENODEV".split()
_FILE_ERRORS = frozenset(getattr(errno, name) for name in _ABOUT_A_FILE)


def is_outage(error: BaseException) -> bool:
    """Whether ``error`` says nothing about the file at hand, so that no input may be blamed for it.

    An `Outage`; a permission that is missing (`Denied`), for it is not missing for one file; an error of the operating
    system other than those about a file: that it is not there, may not be read, or is no file. An OSError without a
    number comes from a decoder.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _FILE_ERRORS
    return isinstance(error, Outage | Denied | ConnectionError | TimeoutError)


def outage_in(error: BaseException) -> Outage | None:
    """The outage that an engine has wrapped into ``error``, or ``error`` itself; None if there is none.

    Found as by `user_error_in`; a `Denied` counts, and so does the operating system's report of a disk that fails.
    """

    def is_wanted(found: BaseException) -> bool:
        connection = isinstance(found, ConnectionError | TimeoutError)  # may be the engine's own
        return is_outage(found) and not connection

    return _find(error, is_wanted, (Outage, Denied), Outage)


def is_full_disk(error: BaseException) -> bool:
    """Whether ``error``, or what caused it, is a disk or a quota that is full: waiting makes no room."""
    texts = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
    return any(text in str(found) for found in _chain(error, set()) for text in texts)


def no_gpu(asked: str, expected: int = 1, found: int = 0) -> DeviceError:
    """The error of a machine with fewer GPUs than ``asked`` for; ``asked`` names the option or setting."""
    have = f"{found} of {expected} GPUs" if found else "no GPU"
    return DeviceError(
        f"{asked}: this machine has {have} that TensorFlow can use: check that NVIDIA's driver runs (nvidia-smi) and "
        "that LD_LIBRARY_PATH leads to the libraries of CUDA and cuDNN"
    )


def user_error_in(error: BaseException) -> UserError | None:
    """The `UserError` that an engine has wrapped into ``error``, or ``error`` itself; None if there is none.

    The outermost `UserError` counts, of ``error`` and what caused it: Ray's ``cause``, Ray Train's ``worker_failures``
    and ``controller_failure``, Python's own chain. Engines that carry errors between processes as text (Beam's workers,
    TensorFlow's ``numpy_function``) leave a traceback, in which the last ``trainer.errors.Class: message`` counts, with
    the first line of its message. That finds only classes that this process has imported, so every error class that
    crosses processes belongs in this module.
    """
    return _find(error, lambda found: isinstance(found, UserError), (UserError,), UserError)


def _find(
    error: BaseException, wanted: Callable[[BaseException], bool], kinds: tuple[type[Exception], ...], result: type[E]
) -> E | None:
    """``result`` with the message of the first ``wanted`` error of a chain, or of the last of ``kinds`` in a text."""
    chain = list(_chain(error, set()))
    for found in chain:
        if wanted(found):
            return result(_without_step(str(found)))
    family = [derived for kind in kinds for derived in _family(kind)]
    classes = "|".join(re.escape(f"{kind.__module__}.{kind.__qualname__}") for kind in family)
    # In log records a traceback's line breaks may be escaped.
    line = re.compile(rf"(?:(?<=\\n)|(?<![\w.]))(?:{classes}): (.*?)(?=\\n|\n|$)")
    for found in chain:
        if messages := line.findall(str(found)):
            return result(_without_step(messages[-1]))
    return None


def _chain(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """``error`` and everything that caused it, from the outside in; what Ray has wrapped comes before the wrapper."""
    if not isinstance(error, BaseException) or id(error) in seen:
        return
    seen.add(id(error))
    # Wrappers last: Ray makes its RayTaskError an instance of its cause's class, with a traceback as its text.
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    for inner in (getattr(error, "cause", None), *failures):
        yield from _chain(inner, seen)
    yield error
    yield from _chain(error.__cause__ if error.__suppress_context__ else error.__context__, seen)


def _family(base: type[Exception]) -> list[type[Exception]]:
    """``base`` and every class derived from it."""
    return [base, *(kind for derived in base.__subclasses__() for kind in _family(derived))]


def _without_step(message: str) -> str:
    """``message`` without the name of the step that Beam appends."""
    return message.partition(" [while running '")[0]
