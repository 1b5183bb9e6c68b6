"""What an address of a user's means: what is there under that very name, else the files that match it as a pattern.

``x [v2]``, ``50%*`` and ``who?`` are good names of folders, so what exists comes first, from the left on: in
``/data/x [v2]/*.png`` only the star is a wildcard if there is a folder ``/data/x [v2]``. The project's own calls have
no patterns: see `api.find`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trainer.errors import Denied
from trainer.storage import api

_WILDCARD = re.compile(r"[*?\[]")
_TOKEN = re.compile(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\])")


@dataclass(frozen=True)
class Selection:
    """A file, the files below a folder, or those below it that a glob matches.

    Attributes:
        base: the folder that the files' names are relative to, see `api.relative`.
        glob: of the names; empty for all.
        name: of the one file in ``base``; empty if there may be others.
    """

    base: str
    glob: str = ""
    name: str = ""

    @property
    def place(self) -> str:
        """The one file, or the folder that all of the files are in or below."""
        return api.join(self.base, self.name) if self.name else self.base

    @property
    def address(self) -> str:
        """The address that means these files, unless something is there by the name of the pattern."""
        below = self.glob or self.name
        return api.join(self.base, below) if below else self.base

    def scan(self, lost: dict[str, Denied] | None = None) -> Iterator[tuple[str, int]]:
        """Address and size of each file, in no particular order; see `api.scan`."""
        if not self.glob:
            yield from api.scan(self.address, lost=lost)
            return
        matches, may_hold = compile_glob(self.glob).fullmatch, _compile_folders(self.glob)
        deep = "/" in self.glob or "**" in self.glob

        def enters(folder: str) -> bool:
            return may_hold(api.relative(folder, self.base))

        for address, size in api.scan_folder(self.base, deep, enters, lost):
            if matches(api.relative(address, self.base)):
                yield address, size

    def find(self, lost: dict[str, Denied] | None = None) -> list[str]:
        """Addresses of the files, sorted."""
        return sorted(address for address, _ in self.scan(lost))

    def holds(self, address: str) -> bool:
        """Whether a file would be one of these if it were there; hidden ones, too."""
        if not address.startswith(api.join(self.base, "")):
            return False
        name = api.relative(address, self.base)
        if self.glob:
            return compile_glob(self.glob).fullmatch(name) is not None
        return not self.name or name == self.name or name.startswith(self.name + "/")


def select(address: str) -> Selection:
    """What ``address`` means: a file, a folder or a glob.

    In a glob ``**/`` is any number of folders, ``**`` anything; ``*``, ``?``, ``[a-z]`` and ``[!a]`` stay within a
    folder. Raises `UserError` for an address that `api.normalize` does not take.
    """
    pattern, end = api.normalize(address), 0
    while wildcard := _WILDCARD.search(pattern, end):
        first = pattern.rindex("/", 0, wildcard.start())
        end = pattern.find("/", wildcard.start())
        end = len(pattern) if end < 0 else end
        if not is_there(pattern[:end]):
            return Selection(pattern[:first] or "/", glob=pattern[first + 1 :])
    if api.is_file_like(pattern):
        base, _, name = pattern.rpartition("/")
        return Selection(base or "/", name=name)
    return Selection(pattern)


def is_there(address: str) -> bool:
    """Whether anything is under this very name: a file, a folder, or what is neither."""
    return api.store_of(address).is_there(address)


def compile_glob(pattern: str) -> re.Pattern[str]:
    """The regular expression of a glob: see `select`."""
    rules = {"**/": "(?s:.*/)?", "**": "(?s:.*)", "*": "[^/]*", "?": "[^/]"}
    parts = _TOKEN.split(pattern)
    sets = {p: "(?!/)" + fnmatch.translate(p)[:-2] for p in parts[1::2]}  # without the \Z at its end
    return re.compile("".join(rules.get(p) or sets.get(p) or re.escape(p) for p in parts))


def _compile_folders(pattern: str) -> Callable[[str], bool]:
    """Whether a folder, by its path, may hold what a glob matches."""
    parts = pattern.split("/")
    whole = next((number for number, part in enumerate(parts) if "**" in part), None)
    depth = len(parts) - 1 if whole is None else whole  # folders that are matched part by part
    globs = [compile_glob("/".join(parts[: number + 1])) for number in range(depth)]

    def may_hold(path: str) -> bool:
        number = path.count("/")
        if number >= depth:
            return whole is not None and (not depth or globs[-1].match(path) is not None)
        return globs[number].fullmatch(path) is not None

    return may_hold
