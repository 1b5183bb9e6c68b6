"""Errors that one package raises and another catches."""

from __future__ import annotations

import re


class UserError(Exception):
    """Something the user can fix; commands print it as one line and exit with code 2."""


class NotFound(UserError):
    """There is nothing at the address."""


class Corrupt(UserError):
    """The bytes at an address do not have the checksum they should have."""


class DeviceError(UserError):
    """The device to compute on does not exist on this machine."""


class AlreadyExists(Exception):
    """`storage.create` found something at the address."""


class Conflict(Exception):
    """`storage.replace` found another generation than the one that was read."""


class ImageError(ValueError):
    """The bytes are not an image, or not one that can be used here."""


def user_error_in(error: BaseException) -> UserError | None:
    """The `UserError` that a worker raised, from the text into which Beam, Ray and TensorFlow wrap it; None if none."""
    text = str(error)
    found = re.findall(r"(?<!exceptions\.)\b(?:UserError|NotFound|Corrupt): (.+?)(?: \[while running|\\n|\n|$)", text)
    return UserError(found[-1].strip("'\"")) if found else None
