"""Errors that one package raises and another catches."""

from __future__ import annotations

import re
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can fix; commands print it as one line and exit with code 2."""


class NotFound(UserError):
    """There is nothing at the address."""


class Corrupt(UserError):
    """The bytes at an address do not have the checksum they should have."""


class TooLarge(Corrupt):
    """A file is larger than what may be at its address."""


class DeviceError(UserError):
    """The device to compute on does not exist on this machine."""


class ConfigChanged(UserError):
    """A run's config.json differs from the config it should continue with."""


class AlreadyExists(Exception):
    """`storage.create` found something at the address."""


class Conflict(Exception):
    """`storage.replace` found another generation than the one that was read."""


class ImageError(ValueError):
    """The bytes are not an image, or not one that can be used here."""


def user_error_in(error: BaseException) -> UserError | None:
    """The `UserError` that an engine has wrapped into ``error``, or ``error`` itself; None if there is none.

    The outermost `UserError` counts, of ``error`` and what caused it: Ray's ``cause``, Ray Train's ``worker_failures``
    and ``controller_failure``, Python's own chain. Engines that carry errors between processes as text (Beam's workers,
    TensorFlow's ``numpy_function``) leave a traceback, in which the last ``trainer.errors.Class: message`` counts, with
    the first line of its message. That finds only classes that this process has imported, so every error class that
    crosses processes belongs in this module.
    """
    chain = list(_chain(error, set()))
    for found in chain:
        if isinstance(found, UserError):
            return UserError(_without_step(str(found)))
    classes = "|".join(re.escape(f"{kind.__module__}.{kind.__qualname__}") for kind in _family(UserError))
    # In log records a traceback's line breaks may be escaped.
    line = re.compile(rf"(?:(?<=\\n)|(?<![\w.]))(?:{classes}): (.*?)(?=\\n|\n|$)")
    for found in chain:
        if messages := line.findall(str(found)):
            return UserError(_without_step(messages[-1]))
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
