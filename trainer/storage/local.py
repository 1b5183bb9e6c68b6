"""Local folders as a store: atomic through drafts and links (see `beneath`), compare-and-swap through a lock file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

import google_crc32c

from trainer.errors import AlreadyExists, Conflict, Denied, NotFound, Outage, Unwritable, UserError, is_outage
from trainer.storage import beneath, names
from trainer.storage.store import EVERYTHING, Entry, Span, crc32c, encode_crc32c, require_size

_BLOCK = 1 << 20
_TICK_S, _COARSE_TICK_S = 0.1, 2.5  # no less than the ticks of any file system's clock


class LocalStore:
    """Files at local paths. A file's generation is its `crc32c`."""

    is_remote = False
    near = 0

    def normalize(self, address: str) -> str:
        """Absolute, with ``~`` expanded: workers run in other folders."""
        return os.path.abspath(os.path.expanduser(address))

    def entries(
        self,
        folder: str,
        deep: bool,
        enters: Callable[[str], bool] | None = None,
        lost: dict[str, Denied] | None = None,
        span: Span = EVERYTHING,
    ) -> Iterator[Entry]:
        """The files of a span in ``folder`` that are not hidden; links are followed, see `beneath.walk`."""

        def fail(error: OSError) -> None:
            found = _unlisted(folder, error)
            if lost is None or not isinstance(found, Denied):
                raise found from None
            if not span.part:  # all parts find it
                lost[error.filename] = found

        skipped = len(folder.rstrip("/")) + 1
        for path in beneath.walk(folder, deep, enters, fail):
            if span == EVERYTHING or span.holds(path[skipped:]):
                yield self.entry(path)

    def folders(self, folder: str) -> list[str]:
        """Names of the folders right in ``folder``, links to folders among them."""
        try:
            with os.scandir(folder) as entries:
                return [entry.name for entry in entries if beneath.is_folder(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _unlisted(folder, error) from None

    def exists(self, address: str) -> bool:
        """Whether a file (not a folder) is there."""
        return os.path.isfile(address)

    def is_there(self, address: str) -> bool:
        """Whether anything has this name; a link that leads nowhere has."""
        return os.path.lexists(address)

    def entry(self, address: str) -> Entry:
        """The file with its `stamp` as its version; of size 0 if it is a link to nowhere: reading will say so."""
        try:
            state = os.stat(address)
        except (OSError, ValueError) as error:
            return Entry(address, 0, f"error {getattr(error, 'errno', None)}")
        return Entry(address, state.st_size, _stamp(state, own=False))

    def checksum(self, address: str) -> str:
        """`crc32c` of the file, read block by block."""
        total = google_crc32c.Checksum()
        with _reading(address), _open(address) as file:
            while block := file.read(_BLOCK):
                total.update(block)
        return encode_crc32c(total.digest())

    def stamp(self, address: str, own: bool = False) -> str:
        """Size, times and inode of the file, unless these may stay the same while its contents do not.

        The time of the last write can be set back, that of the last change of any kind cannot: it lies only for what
        is changed twice within one of its ticks. So nothing is told of a file that somebody else has only just
        written, nor, for longer, where times are whole hundredths of a second: such file systems have coarse ticks.
        """
        with contextlib.suppress(OSError, ValueError):
            return _stamp(os.stat(address), own)
        return ""

    def changed(self, address: str, outside: str = "") -> float:
        """The latest time of a change of any kind, of files and of the folders that they are in."""
        places = {address}
        try:
            for path in beneath.walk(address, deep=True):
                places |= {path, os.path.dirname(path)}
        except OSError:
            return time.time()  # of what cannot be listed nothing is known
        return max(map(_changed, (p for p in places if not (outside and f"{p}/".startswith(f"{outside}/")))), default=0)

    def read_versioned(self, address: str, max_bytes: int | None = None) -> tuple[bytes | None, object]:
        """The whole file and its `crc32c`."""
        with contextlib.suppress(NotFound), _reading(address), _open(address) as file:
            require_size(address, os.fstat(file.fileno()).st_size, max_bytes)
            data = file.read()
            return data, crc32c(data)
        return None, 0

    def read_range(self, address: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer where the file ends."""
        with _reading(address), _open(address) as file:
            file.seek(start)
            return file.read(length)

    def require_writable(self, folder: str) -> None:
        """Makes the folder; raises `UserError` unless files can be created in it. Confines it as it is now."""
        _make_folder(folder)
        beneath.confine(folder, anew=True)
        if not os.access(folder, os.W_OK):
            raise Denied(f"cannot write to {folder}: permission denied")

    def create(self, address: str, data: bytes) -> None:
        """Writes a new file."""
        try:
            with _writing(address):
                beneath.write(address, data, once=True)
        except FileExistsError:
            raise AlreadyExists(address) from None

    def replace(self, address: str, data: bytes, generation: object) -> None:
        """Writes the file if it still has the ``generation``, holding the lock file ``.NAME.lock`` beside it."""
        with _writing(address), beneath.locked(address):
            if self.read_versioned(address)[1] != generation:
                raise Conflict(address)
            beneath.write(address, data)

    def overwrite(self, address: str, data: bytes) -> None:
        """Writes the file, whatever is there."""
        with _writing(address):
            beneath.write(address, data)

    def delete(self, address: str) -> None:
        """Removes the file, if it exists."""
        with _writing(address):
            beneath.delete(address)

    def confine(self, folder: str) -> None:
        """Lets nothing below the folder be written or deleted through a link."""
        beneath.confine(folder)

    def require_confined(self, address: str) -> None:
        """Raises `UserError` for a link on the way from a confined folder to ``address``, or there."""
        with _writing(address):
            beneath.require_confined(address)

    def sweep(self, folder: str, owns: Callable[[str], bool]) -> None:
        """Removes drafts that no living writer holds a lock on."""
        with _writing(folder):
            beneath.sweep(folder, owns)

    def remove_folder(self, folder: str) -> None:
        """Removes folders without files."""
        beneath.remove_folder(folder)


def _stamp(state: os.stat_result, own: bool) -> str:
    """See `LocalStore.stamp`."""
    is_coarse = state.st_ctime_ns % 10_000_000 == 0
    if (own and not is_coarse) or time.time() - state.st_ctime > (_COARSE_TICK_S if is_coarse else _TICK_S):
        return f"{state.st_size}-{state.st_mtime_ns}-{state.st_ctime_ns}-{state.st_ino}"
    return ""


def _changed(path: str) -> float:
    with contextlib.suppress(OSError, ValueError):
        state = os.stat(path)
        return max(state.st_mtime, state.st_ctime)
    return 0.0


def _open(path: str) -> BinaryIO:
    """Opens a regular file. Nothing else is opened: a pipe waits for its writer, a device may never end."""
    _require_regular(path, os.stat(path))
    file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    try:
        _require_regular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _require_regular(path: str, state: os.stat_result) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{path} cannot be read: expected a regular file. Received a pipe, a socket or a device.")


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turns what the operating system raises into this project's errors."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{path} does not exist") from None
    except IsADirectoryError:
        raise NotFound(f"{path} does not exist as a file: it is a folder") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        kind = Outage if is_outage(error) else UserError
        raise kind(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turns what the operating system raises into this project's errors, except that a file is there already."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _writing_error(path, error) from None


def _writing_error(path: str, error: OSError) -> Exception:
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    kind = Denied if denied else Outage if is_outage(error) else Unwritable
    size, reason = len(names.to_bytes(os.path.basename(path))), error.strerror
    if error.errno == errno.ENAMETOOLONG and size > names.MAX_BYTES:
        reason = f"expected a name of at most {names.MAX_BYTES} bytes. Received {size}."
    return kind(f"cannot write to {path}: {reason}")


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:  # a file has its name
        raise Unwritable(f"cannot write to {folder}: {error.strerror}") from None
    except OSError as error:
        raise _writing_error(folder, error) from None


def _unlisted(folder: str, error: OSError) -> Exception:
    denied = error.errno in (errno.EACCES, errno.EPERM)
    kind = Denied if denied else Outage if is_outage(error) else UserError
    return kind(f"{error.filename or folder} cannot be listed: {error.strerror}")
