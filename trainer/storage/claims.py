"""Claims: which of several jobs may replace what is in a folder: the one that started last.

    FOLDER/.claims/000002-5f2c91d07a3be864    the newest claim; its job removes it when it ends

Nobody can tell whether a silent job is dead or slow, so jobs take turns: a job that replaces or deletes files claims
the folder first and removes the claims before its own. From then on every other job, one that merely adds files too,
is refused at its next `require`, which stands before each write.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from trainer import storage
from trainer.errors import LeftRunning, UserError

CLAIMS = ".claims"
_NAME = re.compile(r"(\d{6,9})-([0-9a-f]{16})")
_LATELY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job's right to write to a folder; travels to its workers.

    Attributes:
        folder: its address.
        name: of the newest claim when the job started; empty if there was none.
        is_own: whether that is the job's own. If not, the job replaces nothing, and is refused once there is a newer.
    """

    folder: str
    name: str
    is_own: bool


# When this process has asked for each claim of `require_lately` last.
_required: dict[Claim, float] = {}


def _order(name: str) -> tuple[int, str]:
    """Sort key of claims; no claim comes first."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), found[2]) if found else (0, "")


def _address(folder: str, name: str) -> str:
    return storage.join(folder, CLAIMS, name)


def _list(folder: str) -> list[str]:
    """Names of the claims, oldest first."""
    names = (posixpath.basename(address) for address in storage.find(storage.join(folder, CLAIMS), deep=False))
    return sorted(filter(_NAME.fullmatch, names), key=_order)


def take(folder: str, replaces: bool) -> Claim:
    """Claims a folder for a job that replaces or deletes what is there, or joins whoever writes there.

    Raises:
        UserError: another job has claimed it at the same moment.
    """
    found = _list(folder)
    newest = found[-1] if found else ""
    if not replaces:
        return Claim(folder=folder, name=newest, is_own=False)
    claim = Claim(folder=folder, name=f"{_order(newest)[0] + 1:06d}-{os.urandom(8).hex()}", is_own=True)
    storage.create(_address(folder, claim.name), b"")
    # Of two that claim at the same moment at least one sees the other here; the order of names decides.
    for name in _list(folder):
        if _order(name) < _order(claim.name):
            storage.delete(_address(folder, name))
    try:
        require(claim)
    except UserError:
        storage.delete(_address(folder, claim.name))
        raise
    return claim


def require(claim: Claim | None) -> None:
    """Confines the folder, and raises `UserError` if another job has claimed it since; None never fails."""
    if claim is None:
        return
    storage.confine(claim.folder)
    found = _list(claim.folder)
    if found and _order(found[-1]) > _order(claim.name):
        raise UserError(f"{claim.folder} is being written by another job, which started later than this one")
    if claim.is_own and claim.name not in found and not storage.exists(_address(claim.folder, claim.name)):
        raise UserError(f"{claim.folder} was written by another job, or emptied, since this one started")


def require_lately(claim: Claim | None) -> None:
    """`require`, for each of many files: of a job that replaces nothing it is believed for a second.

    What such a job writes in that second are new files, which the job that has just claimed the folder replaces or
    leaves alone as it would any other file.
    """
    if claim is None or claim.is_own:
        require(claim)
    elif time.monotonic() - _required.get(claim, -_LATELY_S) >= _LATELY_S:
        require(claim)
        _required[claim] = time.monotonic()


@contextlib.contextmanager
def held(claim: Claim | None, goes_on: bool = False) -> Iterator[None]:
    """Gives the folder back at the end: a job's own claim in any case, those of killed jobs if this one succeeds.

    With ``goes_on`` the job does, when this process ends, and so it does where `LeftRunning` is raised: it keeps its
    claim unless starting it failed. The next job that succeeds removes it, as that of a killed one.
    """
    try:
        yield
    except LeftRunning:
        raise
    except BaseException:
        if claim is not None and claim.is_own:
            with contextlib.suppress(Exception):  # the error that ends the job is the one to tell
                _release(claim)
        raise
    if claim is not None and not goes_on:
        _release(claim)


def _release(claim: Claim) -> None:
    for name in _list(claim.folder):
        if _order(name) <= _order(claim.name):
            storage.delete(_address(claim.folder, name))
    storage.remove_folder(storage.join(claim.folder, CLAIMS))


# Ending a job


def require_files(
    folder: str, files: Mapping[str, tuple[int, str] | None], sizes: Mapping[str, int] | None = None
) -> None:
    """Raises `UserError` unless all files of a job are in its folder.

    Args:
        files: by path below the folder, bytes and crc32c; None if any contents will do.
        sizes: of the files that have just been listed there, by their paths; None lists the folder.
    """
    if sizes is None:
        sizes = {storage.relative(address, folder): size for address, size in storage.scan(folder)}

    suspects = [
        name
        for name, known in files.items()
        if (size := sizes.get(name)) is None or (known is not None and known[0] != size)
    ]
    for name in suspects:  # a bucket's list may be stale: what it lacks is asked for by name
        address, known = storage.join(folder, name), files[name]
        if not storage.exists(address) or (known is not None and storage.checksum(address) != known[1]):
            raise UserError(
                f"{folder}: {len(suspects)} of {len(files)} files that this job wrote are missing or changed, such as "
                f"{name}. The same command writes what is missing."
            )


def publish(claim: Claim | None, address: str, data: bytes, write: Callable[[str, bytes], None]) -> None:
    """Writes the file that completes a folder, and takes it back if another job has claimed the folder meanwhile."""
    require(claim)
    write(address, data)
    try:
        require(claim)
    except UserError:
        if storage.read_versioned(address)[0] == data:
            storage.delete(address)
        raise
