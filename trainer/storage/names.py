"""Names of local files are bytes: those that are not UTF-8 are surrogates in Python's text (PEP 383)."""

from __future__ import annotations

import functools
import hashlib
import posixpath
import re

MAX_BYTES = 255  # of a file's name, on the file systems in use

_BEFORE_BYTES = re.compile(r"\\+(?=x[89a-f][0-9a-f]|[\udc80-\udcff])")

# What systems and file managers leave in folders, beside names that begin with a dot: nobody's inputs.
_LEFT_BEHIND = frozenset(
    "thumbs.db ehthumbs.db ehthumbs_vista.db desktop.ini icon\r __macosx @eadir $recycle.bin lost+found".split(" ")
) | {"system volume information"}

# What each of them has and few other names have; of one character where there is one, which is found sooner.
_SIGNS = ("\r", "$", "@", "+", " ", "thumbs", "desktop.ini", "__macosx")

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


def is_hidden(path: str) -> bool:
    """Whether a part of a path begins with a dot, or is what a system or a file manager left (``Thumbs.db``).

    ``.`` and ``..`` are no hidden folders; they occur in names of objects and of members of tars.
    """
    folder, _, last = path.rpartition("/")
    if (last[:1] == "." and last not in (".", "..")) or last.lower() in _LEFT_BEHIND:
        return True
    return folder != "" and _is_in_hidden(folder)


def may_hide(paths: str) -> bool:
    """Whether any of many paths that are joined may be hidden: False saves asking `is_hidden` of each."""
    lower = paths.lower()
    return "/." in lower or any(sign in lower for sign in _SIGNS)


@functools.lru_cache(1024)  # many files have one folder
def _is_in_hidden(folder: str) -> bool:
    return is_hidden(folder)


def shorten(name: str, max_bytes: int = MAX_BYTES) -> str:
    """A file's name of at most ``max_bytes``: ``name`` if it is, else its beginning, a digest of it, and its extension.

    The same for the same name; two names do not become one.
    """
    data = to_bytes(name)
    if len(data) <= max_bytes:
        return name
    end = to_bytes(posixpath.splitext(name)[1])
    end = b"~" + hashlib.blake2b(data, digest_size=8).hexdigest().encode() + (end if len(end) <= 16 else b"")
    # Cut between characters: what is left of one would not be UTF-8.
    begin = data[: max_bytes - len(end)].decode("utf-8", "ignore")
    return begin + end.decode("utf-8", "surrogateescape")
