"""Pages: lists of names that travel together, and shares: what goes to one worker to be matched and looked up.

A name by itself would cost an engine more than all that is done with it. So what is listed goes from step to step in
pages of many names, compressed; each page is spread over shares by a hash of what the names of an image, of its masks,
of its output and of the records of that have in common. How many shares there are depends on the number of images.

parts of the lists -> pages, and a `Survey` of each -> pages of shares -> by share: `resume.resolve`, `reports.merge`
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import pickle
import posixpath
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import zstandard

from pipelines.inpainting.books import Line, list_parts, part_prefix
from pipelines.inpainting.inputs import Columns, Sources, columns_of, common_folder, inside, list_files, list_pairs
from pipelines.inpainting.versions import PACKS, pack_prefix
from pipelines.pairs.lists import find_lists, read_pairs
from pipelines.pairs.names import root_of, roots_of
from pipelines.transforms.rejects import Reject
from trainer import storage
from trainer.storage import Selection, in_batches, names

IMAGES, MASKS, PAIRS, OUTPUTS, RECORDS = "images", "masks", "pairs", "outputs", "records"
WRITTEN, FINISHED = "written", "finished"
# Of each kind, what its readers ask for: the rest would take memory, of an engine in one process several times.
COLUMNS = {
    IMAGES: ("names", "marks"),
    MASKS: ("names", "marks"),
    PAIRS: ("names", "marks"),
    OUTPUTS: ("names", "marks"),
    RECORDS: ("names",),
    WRITTEN: ("names", "sizes"),
    FINISHED: ("names", "marks", "sizes"),
}
HEX = 4  # digits of a hash, of which a share has the first ones
PER_SHARE = 50_000  # images, at most; what a worker has of each at a time takes about 3 kB
_NAMES = 50_000  # of a page
_AT_ONCE = 250_000  # names that are spread at a time, of some 200 bytes: the more of each share, the less a name takes
_LEVEL = 3  # of Zstandard: of a bucket's names 7 bytes each and 0.3 us; level 9 takes 6.6 and 0.9
_HASH = hashlib.blake2b(digest_size=HEX // 2)


class Page(NamedTuple):
    """Names of one kind, with what a list tells of each.

    Attributes:
        kind: one of `COLUMNS`, which says what else there is; the rest is empty.
        names: paths below the kind's folder; of pairs, addresses of images.
        marks: what tells that a file is the same as before, see `versions.is_same`; of pairs, addresses of masks.
        sizes: bytes.
    """

    kind: str
    names: list[str]
    marks: list[str]
    sizes: list[int]

    @classmethod
    def of(cls, kind: str, rows: Iterable[tuple]) -> Page:
        """The page that has these `rows`."""
        columns = dict(zip(COLUMNS[kind], map(list, zip(*rows, strict=True)), strict=False))
        return cls(kind, *(columns.get(name, []) for name in cls._fields[1:]))

    def rows(self) -> Iterator[tuple]:
        """What there is of each name, in the order of `COLUMNS`."""
        return zip(*(getattr(self, name) for name in COLUMNS[self.kind]), strict=True)


class Survey(NamedTuple):
    """What is known of all inputs together.

    Attributes:
        images: how many there are.
        folders: of lists, the first and the last of the images' folders in the order of their names.
    """

    images: int = 0
    folders: tuple[str, ...] = ()

    @property
    def digits(self) -> int:
        """How many digits of the hash a share has: 16 times as many shares with each."""
        return next((n for n in range(HEX) if self.images <= PER_SHARE * 16**n), HEX)

    @property
    def base(self) -> str:
        """The folder of all listed images. Raises `UserError` if there is none."""
        return common_folder(storage.join(folder, "") for folder in self.folders)


def merge_surveys(surveys: Iterable[Survey]) -> Survey:
    """What is known of all together."""
    images, folders = 0, set[str]()
    for survey in surveys:
        images += survey.images
        folders |= set(survey.folders)
        folders = {min(folders), max(folders)} if folders else folders
    return Survey(images, tuple(sorted(folders, key=lambda folder: folder.split("/"))))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of cycles, which would go through a share's names again and again and find none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Zstandard(threading.local):
    """Both ways, of one thread: making a decompressor for each page takes up to three times what it then does."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=_LEVEL).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_zstandard = _Zstandard()


def pack(page: Page) -> bytes:
    kind, names, marks, sizes = page
    return _zstandard.compress(pickle.dumps((kind, _join(names), _join(marks), sizes), 5))


def unpack(data: bytes) -> Page:
    kind, names, marks, sizes = pickle.loads(_zstandard.decompress(data))
    return Page(kind, _split(names), _split(marks), sizes)


def _join(texts: list[str]) -> str | list[str]:
    """One text, which takes less than many; itself if a text has what separates them."""
    joined = "\0".join(texts)
    return joined if joined.count("\0") == len(texts) - 1 else texts


def _split(found: str | list[str]) -> list[str]:
    return found.split("\0") if isinstance(found, str) else found


# Listing


class Part(NamedTuple):
    """A part of a list, that one worker goes through.

    Attributes:
        kind: of its pages.
        place: what is listed: files; of pairs, the address of a list, and of records, the output folder.
    """

    kind: str
    place: Selection | str


def parts_of(sources: Sources) -> list[Part]:
    """What is to be listed of the inputs; nothing is asked for."""
    if sources.where.listed:
        return [Part(PAIRS, sources.where.listed)]
    return [Part(kind, selected) for kind, (selected, _) in sources.kinds.items()]


def parts_of_outputs(output: str, kind: str = OUTPUTS) -> list[Part]:
    """What is to be listed of an output folder; ``kind``: of the outputs' pages, `OUTPUTS` or `WRITTEN`."""
    return [Part(kind, Selection(output)), Part(RECORDS, output)]


def cut(part: Part) -> Iterator[Part]:
    """Parts of a part, to be listed at the same time."""
    if part.kind == PAIRS:
        yield from (Part(PAIRS, found.address) for found in find_lists(str(part.place)))
    elif isinstance(part.place, Selection) and storage.is_remote(part.place.base):
        yield from (Part(part.kind, place) for place in part.place.cut())
    else:
        yield part


def list_part(part: Part, sources: Sources) -> Iterator[tuple[Survey, bytes] | Line]:
    """Pages of a part, each with its `Survey`, and the lines of what cannot be used."""
    if part.kind == PAIRS:
        rows = read_pairs(str(part.place))
        for start in range(0, len(rows), _NAMES):
            mine = rows[start : start + _NAMES]
            folders = sorted({posixpath.dirname(image) for image, _ in mine}, key=lambda folder: folder.split("/"))
            yield Survey(len(mine), (folders[0], folders[-1])), pack(Page.of(PAIRS, mine))
        return
    found: Iterable[Columns | Reject]
    if part.kind == RECORDS:
        found = [(list_parts(str(part.place)), (), (), ())]
    elif part.kind in (OUTPUTS, WRITTEN):
        assert isinstance(part.place, Selection)
        found = _list_outputs(part.place)
    else:
        assert isinstance(part.place, Selection)
        found = list_files(sources, part.kind, part.place)
    page = Page(part.kind, [], [], [])
    has_marks, has_sizes = ("marks" in COLUMNS[part.kind]), ("sizes" in COLUMNS[part.kind])
    for some in found:
        if isinstance(some, Reject):
            yield _line(some)
            continue
        paths, sizes, versions, checksums = some
        page.names.extend(paths)
        if has_marks:
            page.marks.extend(checksum or version for version, checksum in zip(versions, checksums, strict=True))
        if has_sizes:
            page.sizes.extend(sizes)
        if len(page.names) >= _NAMES:
            yield _survey(page), pack(page)
            page = Page(part.kind, [], [], [])
    if page.names:
        yield _survey(page), pack(page)


def _survey(page: Page) -> Survey:
    return Survey(len(page.names) if page.kind == IMAGES else 0)


def _list_outputs(selected: Selection) -> Iterator[Columns]:
    skipped = len(storage.join(selected.base, ""))
    for some in in_batches(selected.entries()):
        if not "".join([found[0] for found in some]).isascii():
            some = [found for found in some if names.is_text(found.address)]  # others are nothing of ours
        yield from columns_of(some, skipped)


# Spreading


def as_path(name: str) -> str:
    """The path of the local file that an object's name becomes: of ``a//b`` and ``a/b`` it is one."""
    return posixpath.normpath(name.lstrip("/")) if "//" in f"/{name}" else name


def root_in(name: str, is_local: bool) -> str:
    """`root_of` an image, a mask or an output; ``is_local``: whether outputs are local files."""
    return as_path(root_of(name)) if is_local else root_of(name)


def hash_of(root: str) -> str:
    """`HEX` digits of a root's hash."""
    return _digest(root).hex()


def _digest(root: str) -> bytes:
    found = _HASH.copy()  # half the time of a new one
    found.update(root.encode())
    return found.digest()


def spread(listed: Iterable[bytes], survey: Survey, sources: Sources) -> Iterator[tuple[str, bytes] | Line]:
    """(share, page) of what each share has of some pages, and the lines of what cannot be used.

    Args:
        listed: pages, as many as there are: some of each share together take less than one by one.
        survey: of all inputs.
    """
    shares, held = _Shares(), 0
    for page in map(unpack, listed):
        held += len(page.names)
        if held > _AT_ONCE:
            yield from shares.take()
            held = len(page.names)
        if page.kind == PAIRS:
            yield from _spread_pairs(page, survey, sources, shares)
        else:
            _spread_files(page, survey.digits, sources, shares)
    yield from shares.take()


class _Shares(dict[tuple[str, str], Page]):
    """A page of what there is of each share and kind."""

    def __missing__(self, key: tuple[str, str]) -> Page:
        self[key] = Page(key[1], [], [], [])
        return self[key]

    def add(self, share: str, kind: str, *columns: list) -> None:
        """``columns``: of the page, in the order of `COLUMNS`."""
        page = self[share, kind]
        for name, column in zip(COLUMNS[kind], columns, strict=True):
            getattr(page, name).extend(column)

    def take(self) -> Iterator[tuple[str, bytes]]:
        """(share, page) of all, which are forgotten."""
        for key in [*self]:
            yield key[0], pack(self.pop(key))


def _spread_pairs(page: Page, survey: Survey, sources: Sources, shares: _Shares) -> Iterator[Line]:
    base, is_local = sources.where.base or survey.base, not storage.is_remote(sources.output)
    outputs = storage.join(sources.output, "")
    for found in list_pairs(page.rows(), base):
        if isinstance(found, Reject):
            yield _line(found)
            continue
        name, (image, mask) = found
        for address in (image, mask):
            if address.startswith(outputs):
                raise inside(address, sources.output)
        shares.add(hash_of(root_in(name, is_local))[: survey.digits], PAIRS, [image], [mask])


@uncollected()
def _spread_files(page: Page, digits: int, sources: Sources, shares: _Shares) -> None:
    kind, is_local = page.kind, not storage.is_remote(sources.output)
    if kind == RECORDS:
        for name in page.names:
            for share in _below(part_prefix(name), digits):
                shares.add(share, kind, [name])
        return
    for share, columns in _cut_by_share(page, is_local, digits):
        shares.add(share, kind, *columns)
    if kind in (OUTPUTS, WRITTEN) and any(name.startswith(PACKS) for name in page.names):
        for name, *known in page.rows():
            if (prefix := pack_prefix(name)) is not None:
                for share in _below(prefix, digits):
                    shares.add(share, kind, [name], *([value] for value in known))


def _cut_by_share(page: Page, is_local: bool, digits: int) -> Iterator[tuple[str, list[list]]]:
    """(share, columns) of the images, masks or outputs of a page, in their order; see `root_in`."""
    columns = [getattr(page, name) for name in COLUMNS[page.kind]]
    if not digits:
        yield "", columns
        return
    _, roots = roots_of(page.names)
    if is_local:
        roots = [as_path(root) for root in roots]
    hashes = np.frombuffer(b"".join(map(_digest, roots)), ">u2")
    numbers = hashes >> 4 * (HEX - digits)
    order = np.argsort(numbers, kind="stable")
    # By arrays of references: numpy sorts and cuts a page at once, where Python goes name by name.
    ordered = [np.array(column, object)[order] for column in columns]
    found, starts = np.unique(numbers[order], return_index=True)
    for number, start, end in zip(found, starts, [*starts[1:], len(order)], strict=True):
        yield f"{number:0{digits}x}", [column[start:end].tolist() for column in ordered]


def _line(lost: Reject) -> Line:
    """The line of a file that has no share yet."""
    return Line(hash_of(lost.source), lost)


def _below(prefix: str, digits: int) -> list[str]:
    """All shares of so many digits that begin with a prefix, or that it begins with."""
    if len(prefix) >= digits:
        return [prefix[:digits]]
    missing = digits - len(prefix)
    return [f"{prefix}{number:0{missing}x}" for number in range(16**missing)]


# Shares


@dataclass
class Share:
    """What the pages of a share say: marks of images, masks and outputs by paths, listed pairs, parts of the books."""

    sources: Sources
    images: dict[str, str] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def add(self, page: Page) -> None:
        if page.kind == PAIRS:
            self.pairs += page.rows()
        elif page.kind == RECORDS:
            self.parts += page.names
        else:
            kinds = {IMAGES: self.images, MASKS: self.masks, OUTPUTS: self.outputs}
            kinds[page.kind].update(page.rows())

    def mark_of(self, address: str) -> str:
        """What a list tells of a file; empty for nothing."""
        sources = self.sources
        folders = (sources.where.base, self.images), (sources.mask_base, self.masks), (sources.output, self.outputs)
        for folder, marks in folders:
            begin = storage.join(folder, "")
            if address.startswith(begin) and (mark := marks.get(address[len(begin) :])):
                return mark
        return ""
