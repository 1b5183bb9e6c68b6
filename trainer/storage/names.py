"""Names of local files are bytes: those that are not UTF-8 are surrogates in Python's text (PEP 383)."""

from __future__ import annotations

import re

_BEFORE_BYTES = re.compile(r"\\+(?=x[89a-f][0-9a-f]|[\udc80-\udcff])")

_NO_BYTES = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte: JSON can have them


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, as Beam's coders, JSON's readers and terminals expect it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    r"""``name`` with ``\xNN`` for each byte that is not UTF-8.

    Other names stay as they are, and no two names become the same: backslashes right before such a byte, or before
    text of that form, are doubled.
    """
    doubled = _NO_BYTES.sub(lambda found: f"\\u{ord(found[0]):04x}", _BEFORE_BYTES.sub(r"\g<0>\g<0>", name))
    return doubled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def to_bytes(name: str) -> bytes:
    """A file's name as the file system has it."""
    return name.encode("utf-8", "surrogateescape")


def to_text(name: bytes) -> str:
    """Undoes `to_bytes`."""
    return name.decode("utf-8", "surrogateescape")
