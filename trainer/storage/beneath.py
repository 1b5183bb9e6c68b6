"""Local folders without surprises: listed without circles, written and deleted without following a link out of them.

A folder that is confined (`confine`) is the place of one job or run. From there down to a file every folder is opened
by itself, relative to the one above it and only if it is no link (``openat`` with ``O_NOFOLLOW``), so that a folder
which is replaced by a link, at any moment, leads nowhere. Links above a confined folder are the user's: followed.

A file is written as a draft, ``.NAME.XXXXXXXX`` beside it (with a long NAME shortened), that its writer holds a lock
on: a draft without a lock is left from a writer that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator

from trainer.errors import Unwritable, UserError
from trainer.storage import names

_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{8}", re.DOTALL)
_ATTEMPTS = 100  # each failed one means that the folder was removed, or the draft swept, between two system calls

# The folder that each confined one was when it was confined, as a path without links.
_confined: dict[str, str] = {}


# Confining


def confine(folder: str, anew: bool = False) -> None:
    """From now on nothing is written to or deleted from ``folder`` by this process through a link below it.

    Nor through ``folder`` itself, should it lead elsewhere by then; with ``anew``, where it leads now counts.
    """
    if anew or folder not in _confined:
        _confined[folder] = os.path.realpath(folder)


def require_confined(path: str) -> None:
    """Raises `UserError` if a link is on the way to ``path``, or is there, below a confined folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), parent(path) as (folder, name):
        if _is_link(folder, name):
            raise _link_error(path)


def _is_link(folder: int, name: str) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _link_error(path: str) -> Unwritable:
    return Unwritable(
        f"{path} is a link: nothing is written or deleted through it. Expected a folder or file, or none."
    )


def _outermost(path: str) -> str | None:
    """The outermost confined folder that ``path`` is below; None if there is none."""
    found, folder = None, path
    while (above := os.path.dirname(folder)) != folder:
        folder = above
        if folder in _confined:
            found = folder
    return found


@contextlib.contextmanager
def parent(path: str, make: bool = False) -> Iterator[tuple[int, str]]:
    """The folder that ``path`` is in, opened, and the name in it: what the functions with ``dir_fd`` take.

    Args:
        path: absolute.
        make: whether folders that are missing are made.

    Raises:
        UserError: a link is on the way, below a confined folder.
        OSError: a folder is missing, or may not be used.
    """
    folder, name = os.path.split(path)
    root, below = _outermost(path), list[str]()
    flags = _FOLDER
    if root is not None:
        below = [part for part in folder[len(root) :].split("/") if part]
        if {"..", "."} & {*below, name}:
            raise UserError(f"{path} is not below {root}")
        folder, flags = _confined[root], flags | os.O_NOFOLLOW
        if (now := os.path.realpath(root)) != folder:
            raise UserError(
                f"{root} leads to {now}. Expected {folder}, where it led when this process began to use it."
            )
    if make:
        try:
            os.makedirs(folder, exist_ok=True)
        except FileExistsError:  # `write` raises that for the file alone
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    opened = os.open(folder, flags)
    try:
        for number, part in enumerate(below, 1):
            inner = _enter(opened, part, make, os.path.join(root or "", *below[:number]))
            os.close(opened)
            opened = inner
        yield opened, name
    finally:
        os.close(opened)


def _enter(folder: int, name: str, make: bool, path: str) -> int:
    """Opens a folder in an open folder; ``path`` is for errors. Raises as `parent` does."""
    while True:
        try:
            return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(folder, name):
                raise _link_error(path) from None
            raise


# Writing


def write(path: str, data: bytes, once: bool = False) -> None:
    """Writes a draft beside ``path`` and then publishes it, so that no reader ever sees half a file.

    Args:
        once: an existing file is left, and ``FileExistsError`` raised.
    """
    for attempt in range(_ATTEMPTS):
        with contextlib.ExitStack() as closing:
            try:
                folder, name = closing.enter_context(parent(path, make=True))
                if _publish(folder, name, data, once):
                    return
            except FileNotFoundError:  # another process removed the folder
                if attempt + 1 == _ATTEMPTS:
                    raise
    raise OSError(errno.EBUSY, "its draft is removed again and again", path)


def _publish(folder: int, name: str, data: bytes, once: bool) -> bool:
    """Whether the file was written; False if somebody removed the draft before it was locked."""
    draft = f".{names.shorten(name, names.MAX_BYTES - len('..12345678'))}.{os.urandom(4).hex()}"
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
    try:
        _lock(file, wait=True)
        if not os.fstat(file).st_nlink:
            return False
        with open(file, "wb", closefd=False) as stream:
            stream.write(data)
        if once:  # a link fails if the name is taken, a rename would not
            os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        else:
            os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        return True
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)
        os.close(file)


def _lock(file: int, wait: bool) -> bool:
    """Whether an exclusive lock could be had; some mounts have none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Holds the lock file ``.NAME.lock`` beside ``path``. What is there is not changed, whatever it is."""
    with parent(path, make=True) as (folder, name):
        lock = f".{names.shorten(name, names.MAX_BYTES - len('..lock'))}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(lock, flags, 0o666, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _link_error(os.path.join(os.path.dirname(path), lock)) from None
            raise
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def delete(path: str) -> None:
    """Removes a file, or a link but not what it leads to; does nothing if there is none."""
    with contextlib.suppress(FileNotFoundError), parent(path) as (folder, name):
        os.unlink(name, dir_fd=folder)


# Cleaning up


def sweep(folder: str, owns: Callable[[str], bool]) -> None:
    """Removes the drafts below ``folder`` whose writers are gone.

    Args:
        owns: whether a file, by its path below ``folder``, is one whose drafts may be removed.
    """
    for above, _, files in os.walk(folder):
        for name in files:
            found = _DRAFT.fullmatch(name)
            if found and owns(os.path.relpath(os.path.join(above, found[1]), folder)):
                _remove_draft(os.path.join(above, name))


def _remove_draft(path: str) -> None:
    """Removes a draft unless a living writer holds it or it may not be opened."""
    with contextlib.suppress(FileNotFoundError, PermissionError), parent(path) as (folder, name):
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return
        file = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            if _lock(file, wait=False):
                os.unlink(name, dir_fd=folder)
        finally:
            os.close(file)


def remove_folder(path: str) -> None:
    """Removes the folders at and below ``path`` that hold no files."""
    if os.path.islink(path):
        return
    for above, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError), parent(above) as (folder, name):
            os.rmdir(name, dir_fd=folder)


# Listing


def walk(
    base: str,
    deep: bool,
    enters: Callable[[str], bool] | None = None,
    fail: Callable[[OSError], None] | None = None,
) -> Iterator[str]:
    """Paths of what is right in ``base`` or, if ``deep``, anywhere below it, and is no folder nor hidden.

    Links are followed, but each folder is listed once: under its own path if that is below ``base``, else under the
    first of the links that lead to it. A link to a folder that ``base`` is in leads nowhere.

    Args:
        enters: whether a folder below, by its path, is listed; None lists all.
        fail: is called with the error of each folder that cannot be listed, whose ``filename`` says which; None
            raises it.
    """
    seen, links = _above(base), [base]
    while links:
        starts, links = sorted(links), []
        for start in starts:
            waiting = [start]
            while waiting:
                folder = waiting.pop()
                try:
                    files, below, linked = _list(folder, seen)
                except OSError as error:
                    if fail is None:
                        raise
                    fail(error)
                    continue
                yield from files
                if deep:
                    waiting += filter(enters, reversed(below))
                    links += filter(enters, linked)


def _above(base: str) -> set[tuple[int, int]]:
    """Device and inode of the folders that ``base`` is in."""
    folder, found = os.path.realpath(base), set()
    while (above := os.path.dirname(folder)) != folder:
        folder = above
        with contextlib.suppress(OSError):
            state = os.stat(folder)
            found.add((state.st_dev, state.st_ino))
    return found


def _list(folder: str, seen: set[tuple[int, int]]) -> tuple[list[str], list[str], list[str]]:
    """Paths in a folder: what is no folder, folders, and links to folders; nothing if it is ``seen`` or is gone."""
    files, folders, links = list[str](), list[str](), list[str]()
    try:
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in seen:
            return files, folders, links
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                if not names.is_hidden(entry.name):
                    kind = files if not is_folder(entry) else links if entry.is_symlink() else folders
                    kind.append(entry.path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return files, sorted(folders), links


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading will say so
        return False
