"""What an address of a user's means: what is there under that very name, else the files that match it as a pattern.

``x [v2]``, ``50%*`` and ``who?`` are good names of folders, so what exists comes first, from the left on: in
``/data/x [v2]/*.png`` only the star is a wildcard if there is a folder ``/data/x [v2]``. The project's own calls have
no patterns: see `api.find`.
"""

from __future__ import annotations

import bisect
import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from trainer.errors import Denied
from trainer.storage import api
from trainer.storage.store import EVERYTHING, Entry, Span

_WILDCARD = re.compile(r"[*?\[]")
_TOKEN = re.compile(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\])")

_PAGE = 1000  # files that one request lists
_WIDE = 12  # requests that a part of a list must take to be cut, which itself takes some 20
_SOME = 4  # parts of which this is asked first
_LOCAL_PARTS = 8  # each lists the names of all, which takes a fourth of the time that their sizes do
_MOST_LETTERS = 256  # that names are told apart by, at one place of them
_THREADS = 16


@dataclass(frozen=True)
class Selection:
    """A file, the files below a folder, or those below it that a glob matches.

    Attributes:
        base: the folder that the files' names are relative to, see `api.relative`.
        glob: of the names; empty for all.
        name: of the one file in ``base``; empty if there may be others.
        span: the files of these alone that are meant, see `cut`.
    """

    base: str
    glob: str = ""
    name: str = ""
    span: Span = EVERYTHING

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
        """Address and size of each of the `entries`."""
        return ((found.address, found.size) for found in self.entries(lost))

    def entries(self, lost: dict[str, Denied] | None = None) -> Iterator[Entry]:
        """Each file, in no particular order; see `api.entries`."""
        if self.span == EVERYTHING and not self.glob:
            yield from api.entries(self.address, lost=lost)
            return
        if not self.glob:
            yield from api.folder_entries(self.base, True, None, lost, self.span)
            return
        matches, may_hold = compile_glob(self.glob).fullmatch, _compile_folders(self.glob)
        skipped = len(api.join(self.base, ""))

        def enters(folder: str) -> bool:
            return may_hold(folder[skipped:])

        for found in api.folder_entries(self.base, self._is_deep, enters, lost, self.span):
            if matches(found.address[skipped:]):
                yield found

    @property
    def _is_deep(self) -> bool:
        return not self.glob or "/" in self.glob or "**" in self.glob

    def cut(self, count: int = 32) -> list[Selection]:
        """Selections of which each file of this one is in exactly one, to be listed at the same time.

        Where a list can begin at any name, each has the names from one on up to another, found by asking for a few
        names; about ``count`` of them have more files than one request lists, if there are so many. Of a local folder,
        each has those with some of the hashes, and lists all names, but asks for the sizes of its own alone.
        """
        if self.name:
            return [self]
        if not api.is_remote(self.base):
            parts = min(count, _LOCAL_PARTS)
            return [dataclasses.replace(self, span=Span(part=part, parts=parts)) for part in range(parts)]

        skipped = len(api.join(self.base, ""))

        def look(start: str, end: str, most: int) -> list[str]:
            found = api.store_of(self.base).entries(self.base, self._is_deep, span=Span(start, end, most=most))
            return [one.address[skipped:] for one in itertools.islice(found, most)]

        starts = cut_names(look, count)
        spans = [Span(start, end) for start, end in zip(starts, [*starts[1:], ""], strict=True)]
        return [dataclasses.replace(self, span=span) for span in spans] if len(spans) > 1 else [self]

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


def cut_names(look: Callable[[str, str, int], list[str]], count: int) -> list[str]:
    """The first names of ranges that hold all names, in order; the first is empty.

    Where many more names than one request lists begin alike, the letters that follow are told apart, and so on until
    there are ``count`` beginnings of so many. These are ranges of their own; others are joined.

    Args:
        look: returns the first names, so many (third argument), from one (first argument) on and before another
            (second argument; empty for no bound).
    """

    def is_wide(prefix: str) -> bool:
        return len(look(prefix, _after(prefix), _WIDE * _PAGE)) == _WIDE * _PAGE

    sizes, below = {"": len(look("", "", _PAGE))}, [""]
    with ThreadPoolExecutor(_THREADS) as pool:
        while sum(size >= _PAGE for size in sizes.values()) < count:
            large = [prefix for prefix in below if sizes[prefix] >= _PAGE]
            # A few tell whether it is worth while: names that begin alike are mostly as many.
            some = large[:: -(-len(large) // _SOME) or 1]
            known = dict(zip(some, pool.map(is_wide, some), strict=True))
            if not any(known.values()):
                break
            rest = [prefix for prefix in large if prefix not in known]
            known |= zip(rest, pool.map(is_wide, rest), strict=True)
            wide = [prefix for prefix in large if known[prefix]]
            longer: dict[str, int] = {}
            for found in pool.map(lambda prefix: _longer(look, prefix), wide):
                longer |= found
            for prefix in wide:
                del sizes[prefix]
            sizes, below = sizes | longer, list(longer)
    starts, size = [""], 0
    for prefix in sorted(sizes):
        size += sizes[prefix]
        if size > _PAGE and prefix:
            starts.append(prefix)
            size = sizes[prefix]
    return starts


def _longer(look: Callable[[str, str, int], list[str]], prefix: str) -> dict[str, int]:
    """What the names that begin with ``prefix`` begin with, one letter after what they all have in common.

    And how many begin so, up to those of one request.
    """
    end = _after(prefix)
    found = look(prefix, end, _PAGE)
    if not found:  # deleted meanwhile
        return {}
    first = found[0]

    def is_shared(length: int) -> bool:
        following = _after(first[:length])
        return not following or not look(following, end, 1)

    lengths = range(len(prefix) + 1, len(first) + 1)
    length = len(prefix) + 1 + bisect.bisect_left(lengths, True, key=lambda length: not is_shared(length))
    longer: dict[str, int] = {}
    while found and len(longer) < _MOST_LETTERS:
        begin = found[0][:length]
        if len(begin) == length:
            longer[begin] = sum(name.startswith(begin) for name in found)
        following = _after(begin) if len(begin) == length else begin + " "
        found = look(following, end, _PAGE) if following else []
    return longer


def _after(prefix: str) -> str:
    """The first text behind all that begin with ``prefix``; empty if there is none."""
    for end in range(len(prefix), 0, -1):
        letter = ord(prefix[end - 1]) + 1
        if letter <= 0x10FFFF:
            return prefix[: end - 1] + chr(0xE000 if 0xD800 <= letter < 0xE000 else letter)
    return ""


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
