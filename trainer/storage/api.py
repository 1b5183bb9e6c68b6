"""Files at addresses, whatever store they are in.

An *address* is a local path or ``SCHEME://...`` with one of `SCHEMES`; functions other than `normalize` and those that
find files expect it as `normalize` returns it. Everything written here is either created once (`create`) or replaced by
compare-and-swap (`replace`): nothing is overwritten by accident, whatever is retried.
"""

from __future__ import annotations

import fnmatch
import itertools
import posixpath
import re
from collections.abc import Callable, Iterator

from trainer.errors import Corrupt, NotFound, Outage, UserError
from trainer.storage import names
from trainer.storage.gcs import GcsStore
from trainer.storage.local import LocalStore
from trainer.storage.store import Store, crc32c

SCHEMES: dict[str, Store] = {"": LocalStore(), "gs": GcsStore()}

_SCHEME = re.compile(r"(\w[\w+.-]*)://")
_WILDCARD = re.compile(r"[*?\[]")


# Addresses


def store_of(address: str) -> Store:
    """The store that ``address`` is in. Raises `UserError` for an unknown scheme or an empty address."""
    scheme = _SCHEME.match(address)
    store = SCHEMES.get(scheme[1] if scheme else "") if address else None
    if store is None:
        forms = " or ".join(f"{scheme}://bucket/name" if scheme else "a local path" for scheme in SCHEMES)
        raise UserError(f"expected {forms}. Received {address!r}.")
    return store


def normalize(address: str) -> str:
    """``address`` without a slash at its end; a local path absolute, with ``~`` expanded. Raises `UserError`."""
    return store_of(address).normalize(address)


def join(folder: str, *names: str) -> str:
    """The address of a file below ``folder``."""
    return posixpath.join(folder, *names)


def relative(address: str, folder: str) -> str:
    """The part of ``address`` below ``folder``."""
    return posixpath.relpath(address, folder)


def is_remote(address: str) -> bool:
    """Whether reading needs a network, so that caches and local copies are worth it; if not, ``address`` is a path."""
    return store_of(address).is_remote


def near(address: str) -> int:
    """How many bytes can be read in about the time that one more `read_range` takes to begin."""
    return store_of(address).near


# Patterns


def fixed_folder(pattern: str) -> str | None:
    """The folder before the first wildcard of a glob; None for a pattern without wildcards."""
    wildcard = _WILDCARD.search(pattern)
    return pattern[: wildcard.start()].rpartition("/")[0] if wildcard else None


def compile_glob(pattern: str) -> re.Pattern[str]:
    """The regular expression of a glob.

    ``**/`` is any number of folders, ``**`` anything; ``*``, ``?``, ``[a-z]`` and ``[!a]`` stay within a folder.
    """
    rules = {"**/": "(?s:.*/)?", "**": "(?s:.*)", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", pattern)
    sets = {p: "(?!/)" + fnmatch.translate(p)[:-2] for p in parts[1::2]}  # without the \Z at its end
    return re.compile("".join(rules.get(p) or sets.get(p) or re.escape(p) for p in parts))


def escape(name: str) -> str:
    """The glob that matches ``name`` alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


# Finding


def scan(address: str) -> Iterator[tuple[str, int]]:
    """Address and size of each file that `find` finds, one by one, in no particular order."""
    pattern = normalize(address)
    folder = fixed_folder(pattern)
    base = pattern if folder is None else folder
    matches = compile_glob(pattern).fullmatch if folder is not None else None
    deep = matches is None or "**" in pattern or "/" in pattern[len(base) + 1 :]
    found = store_of(pattern).scan(base, deep)
    if matches is None and exists(base):
        found = itertools.chain([(base, size(base))], found)
    for name, length in found:
        if "/." not in name[len(base) :] and (matches is None or matches(name)):
            yield name, length


def find(address: str) -> list[str]:
    """Addresses of all files that match, sorted: one file, a folder (all files below it) or a glob.

    Files and folders whose names begin with a dot are skipped, unless ``address`` is or begins with
    them. Returns an empty list where nothing matches; raises `NotFound` for a bucket that does not exist.
    """
    return sorted(name for name, _ in scan(address))


def folders(address: str) -> list[str]:
    """Names of the folders right in ``address``, sorted, without those that begin with a dot."""
    return sorted(name for name in store_of(address).folders(address) if not name.startswith("."))


def base_of(address: str) -> str:
    """The folder that the names found by ``find(address)`` are relative to."""
    pattern = normalize(address)
    folder = fixed_folder(pattern)
    if folder is not None:
        return folder
    return pattern.rpartition("/")[0] if exists(pattern) else pattern


def exists(address: str) -> bool:
    """Whether a file (not a folder) is there."""
    return store_of(address).exists(address)


def size(address: str) -> int:
    """Bytes in the file; 0 if it does not exist."""
    return store_of(address).size(address)


def checksum(address: str) -> str:
    """`crc32c` of the file; a bucket knows that of its objects. Raises `NotFound`."""
    return store_of(address).checksum(address)


def stamp(address: str, own: bool = False) -> str:
    """What tells without reading a file that it is as it was before; empty if nothing does: see `store.Store.stamp`."""
    return store_of(address).stamp(address, own)


def changed(address: str, outside: str = "") -> float:
    """When a file, or what is below a folder but not below ``outside``, was changed last: see `store.Store.changed`."""
    return store_of(address).changed(address, outside)


# Reading


def read(address: str, checksum: str | None = None, max_bytes: int | None = None) -> bytes:
    """The whole file. Raises `NotFound`, `TooLarge`, and `Corrupt` if ``checksum`` (see `crc32c`) differs."""
    data, _ = read_versioned(address, max_bytes)
    if data is None and store_of(address).checksum(address):  # raises NotFound, more slowly: who reads expects a file
        data, _ = read_versioned(address, max_bytes)
    if data is None:
        raise NotFound(f"{address} does not exist")
    if checksum is not None and crc32c(data) != checksum:
        raise Corrupt(f"{address} is corrupt: expected crc32c {checksum}. Received {crc32c(data)}.")
    return data


def read_versioned(address: str, max_bytes: int | None = None) -> tuple[bytes | None, object]:
    """The whole file and the generation to give to `replace`; ``(None, 0)`` if it does not exist.

    Raises `TooLarge` for a file of more than ``max_bytes``.
    """
    return store_of(address).read_versioned(address, max_bytes)


def read_range(address: str, start: int, length: int) -> bytes:
    """``length`` bytes from ``start``; fewer where the file ends. Raises `NotFound`."""
    return store_of(address).read_range(address, start, length)


# Writing


def require_writable(folder: str) -> None:
    """Raises `UserError` unless files can be written below ``folder``: a check to make at launch; confines the folder.

    The folder may be a link then: where it leads to at this moment counts from then on.
    """
    if not names.is_text(folder):
        raise UserError(f"expected a folder whose name is UTF-8. Received {names.printable(folder)}.")
    store_of(folder).require_writable(folder)


def confine(folder: str) -> None:
    """From now on this process writes and deletes nothing below ``folder`` through a link: that raises `UserError`.

    To be called wherever a job or a run begins to use its folder, in each process.
    """
    store_of(folder).confine(folder)


def require_confined(address: str) -> None:
    """Raises `UserError` if a link is on the way from a confined folder to ``address``, or is there itself."""
    store_of(address).require_confined(address)


def create(address: str, data: bytes) -> None:
    """Writes a new file; raises `AlreadyExists` if there is one."""
    store_of(address).create(address, data)


def replace(address: str, data: bytes, generation: object) -> None:
    """Writes ``data`` if the file still has the ``generation`` that `read_versioned` gave, else raises `Conflict`."""
    store_of(address).replace(address, data, generation)


def overwrite(address: str, data: bytes) -> None:
    """Writes ``data`` whatever is there; for files that only one writer has, such as reports."""
    store_of(address).overwrite(address, data)


def delete(address: str) -> None:
    """Removes a file; does nothing if it does not exist."""
    store_of(address).delete(address)


def sweep(folder: str, owns: Callable[[str], bool]) -> None:
    """Removes what writers that were killed left behind below ``folder``; what a living one is writing stays.

    Args:
        owns: whether a file, by its path below ``folder``, is one whose leftovers may be removed.
    """
    store_of(folder).sweep(folder, owns)


def remove_folder(folder: str) -> None:
    """Removes ``folder`` and the folders below it if they hold no files; a bucket has no folders."""
    store_of(folder).remove_folder(folder)


# Failing


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed: not after an answer (`UserError`, `Conflict`), nor after a bug."""
    return isinstance(error, Outage | OSError)
