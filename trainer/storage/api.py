"""Files at addresses, whatever store they are in.

An *address* is a local path or ``SCHEME://...`` with one of `SCHEMES`; functions other than `normalize` and those that
find files expect it as `normalize` returns it. Everything written here is either created once (`create`) or replaced by
compare-and-swap (`replace`): nothing is overwritten by accident, whatever is retried.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator

from trainer.errors import Corrupt, Denied, NotFound, Outage, UserError
from trainer.storage import names
from trainer.storage.gcs import GcsStore
from trainer.storage.local import LocalStore
from trainer.storage.objects import AZURE, S3, ObjectStore
from trainer.storage.store import EVERYTHING, Entry, Span, Store, crc32c, in_batches

# A scheme is a store and its line here; tests add theirs.
SCHEMES: dict[str, Store] = {"": LocalStore(), "gs": GcsStore(), "s3": ObjectStore(S3), "az": ObjectStore(AZURE)}

_SCHEME = re.compile(r"(\w[\w+.-]*)://")


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
    """``address`` without a slash at its end; a local path absolute, with ``~`` expanded.

    Raises:
        UserError: it is malformed, or not UTF-8: no JSON document could name it.
    """
    if not names.is_text(address):
        raise UserError(f"expected an address in UTF-8. Received {names.printable(address)}.")
    return store_of(address).normalize(address)


def join(folder: str, *names: str) -> str:
    """The address of a file below ``folder``. Undone by `relative`, whatever the name of an object looks like."""
    return "/".join(("" if folder == "/" else folder, *names))


def relative(address: str, folder: str) -> str:
    """The part of ``address`` below ``folder``, as it is: ``a//b`` and ``a/b`` are two objects."""
    start = join(folder, "")
    if not address.startswith(start):
        raise ValueError(f"{address} is not below {folder}")
    return address[len(start) :]


def is_remote(address: str) -> bool:
    """Whether reading needs a network, so that caches and local copies are worth it; if not, ``address`` is a path."""
    return store_of(address).is_remote


def near(address: str) -> int:
    """How many bytes can be read in about the time that one more `read_range` takes to begin."""
    return store_of(address).near


# Finding


def scan(address: str, deep: bool = True, lost: dict[str, Denied] | None = None) -> Iterator[tuple[str, int]]:
    """Address and size of each of the `entries`."""
    return ((found.address, found.size) for found in entries(address, deep, lost))


def entries(address: str, deep: bool = True, lost: dict[str, Denied] | None = None) -> Iterator[Entry]:
    """Each file that `find` finds, one by one, in no particular order.

    Args:
        lost: gets the error of each folder that may not be listed, by its address; without it, that is raised.
    """
    address = store_of(address).normalize(address)
    is_file = deep and is_file_like(address)
    if is_file:
        yield entry(address)
    if not is_file or is_remote(address):  # an object may have the name of a folder
        yield from folder_entries(address, deep, lost=lost)


def folder_entries(
    folder: str,
    deep: bool,
    enters: Callable[[str], bool] | None = None,
    lost: dict[str, Denied] | None = None,
    span: Span = EVERYTHING,
) -> Iterator[Entry]:
    """`entries` of a folder; a hint: ``enters`` is whether a folder below, by its address, may hold what is sought."""
    skipped, listed = len(folder), store_of(folder).entries(folder, deep, enters, lost, span)
    return itertools.chain.from_iterable(_visible(some, skipped) for some in in_batches(listed))


def _visible(some: list[Entry], skipped: int) -> list[Entry]:
    """Those that are not hidden by their paths without so many characters."""
    if not names.may_hide("\0".join([found[0] for found in some])):
        return some
    return [found for found in some if not names.is_hidden(found[0][skipped:])]


def entry(address: str) -> Entry:
    """The file at ``address`` as a list shows it; of size 0 if it does not exist."""
    return store_of(address).entry(address)


def find(address: str, deep: bool = True) -> list[str]:
    """Addresses of a file, or of all files below a folder, sorted; nothing in ``address`` is a wildcard: see `select`.

    Files and folders that are hidden (`names.is_hidden`) are skipped, unless ``address`` is or begins with them.
    Returns an empty list where nothing is; raises `NotFound` for a bucket that does not exist.

    Args:
        deep: whether the files in the folder's folders are found, too; if not, ``address`` is a folder.
    """
    return sorted(name for name, _ in scan(address, deep))


def folders(address: str) -> list[str]:
    """Names of the folders right in ``address``, sorted, without hidden ones."""
    return sorted(name for name in store_of(address).folders(address) if not names.is_hidden(name))


def is_file_like(address: str) -> bool:
    """Whether something other than a folder is there: pipes, and links that lead nowhere, count."""
    if is_remote(address):
        try:
            return exists(address)
        except Denied:
            # Whoever may read a managed folder may not read what is beside it, as an object of its name would be.
            if next(store_of(address).entries(address, True, span=Span(most=1)), None) is None:
                raise
            return False
    return os.path.lexists(address) and not os.path.isdir(address)


def exists(address: str) -> bool:
    """Whether a file (not a folder) is there."""
    return store_of(address).exists(address)


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
    store_of(folder).require_writable(folder)


def try_writing(folder: str) -> None:
    """Writes a small hidden file into ``folder``, reads it and deletes it; raises what one of these raises."""
    address, data = join(folder, f".try-{os.urandom(4).hex()}"), b"writable"
    create(address, data)
    try:
        read(address, crc32c(data))
    finally:
        delete(address)


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
