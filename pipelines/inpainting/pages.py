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
import json
import posixpath
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipelines.inpainting.books import Line, list_parts, part_prefix
from pipelines.inpainting.inputs import Sources, common_folder, inside, list_files, list_pairs
from pipelines.pairs.lists import find_lists, read_pairs
from pipelines.pairs.names import root_of, stem_of
from pipelines.transforms.rejects import Reject
from trainer import storage
from trainer.storage import Entry, Selection, names

IMAGES, MASKS, PAIRS, OUTPUTS, RECORDS = "images", "masks", "pairs", "outputs", "records"
FINISHED = "finished"
HEX = 4  # digits of a hash, of which a share has the first ones
PER_SHARE = 50_000  # images, at most; what a worker has of each at a time takes about 3 kB
_NAMES = 50_000  # of a page


class Page(NamedTuple):
    """Names of one kind, with what a list tells of each.

    Attributes:
        kind: ``images``, ``masks``, ``outputs``, ``records``, ``pairs`` or ``finished``.
        names: paths below the kind's folder; of pairs, addresses of images.
        marks: what tells that a file is the same as before, see `versions.is_same`; of pairs, addresses of masks.
        sizes: bytes; empty for pairs.
    """

    kind: str
    names: list[str]
    marks: list[str]
    sizes: list[int]


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


def pack(page: Page) -> bytes:
    return zlib.compress(json.dumps(page).encode(), 1)


def unpack(data: bytes) -> Page:
    return Page(*json.loads(zlib.decompress(data)))


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


def parts_of_outputs(output: str) -> list[Part]:
    """What is to be listed of an output folder."""
    return [Part(OUTPUTS, Selection(output)), Part(RECORDS, output)]


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
            images, masks = zip(*rows[start : start + _NAMES], strict=True)
            folders = sorted({posixpath.dirname(image) for image in images}, key=lambda folder: folder.split("/"))
            survey = Survey(len(images), (folders[0], folders[-1]))
            yield survey, pack(Page(PAIRS, list(images), list(masks), []))
        return
    found: Iterable[Entry | Reject]
    if part.kind == RECORDS:
        found = (Entry(name, 0) for name in list_parts(str(part.place)))
    elif part.kind == OUTPUTS:
        assert isinstance(part.place, Selection)
        found = _list_outputs(part.place)
    else:
        assert isinstance(part.place, Selection)
        found = list_files(sources, part.kind, part.place)
    page = Page(part.kind, [], [], [])
    for entry in found:
        if isinstance(entry, Reject):
            yield _line(entry)
            continue
        name, size, version, checksum = entry
        page.names.append(name)
        page.marks.append(checksum or version)
        page.sizes.append(size)
        if len(page.names) == _NAMES:
            yield _survey(page), pack(page)
            page = Page(part.kind, [], [], [])
    if page.names:
        yield _survey(page), pack(page)


def _survey(page: Page) -> Survey:
    return Survey(len(page.names) if page.kind == IMAGES else 0)


def _list_outputs(selected: Selection) -> Iterator[Entry]:
    skipped = len(storage.join(selected.base, ""))
    for address, size, version, checksum in selected.entries():
        name = address[skipped:]
        if names.is_text(name):  # others are nothing of ours
            yield Entry(name, size, version, checksum)


# Spreading


def as_path(name: str) -> str:
    """The path of the local file that an object's name becomes: of ``a//b`` and ``a/b`` it is one."""
    return posixpath.normpath(name.lstrip("/")) if "//" in f"/{name}" else name


def root_in(name: str, is_local: bool) -> str:
    """`root_of` an image, a mask or an output; ``is_local``: whether outputs are local files."""
    return as_path(root_of(name)) if is_local else root_of(name)


def is_contested(output: str) -> bool:
    """Whether images of several roots, and so of several shares, may have this output.

    ``a.xyz`` beside ``a.jpg`` has ``a.xyz.png``, which has another root, as ``xyz`` is no image's extension; and so has
    ``a.xyz.gif``, whose root is that of the output.
    """
    stem = stem_of(output)
    return "." in stem and root_of(stem) != root_of(output)


def hash_of(root: str) -> str:
    """`HEX` digits of a root's hash."""
    return hashlib.blake2b(root.encode(), digest_size=HEX // 2).hexdigest()


def spread(data: bytes, survey: Survey, sources: Sources) -> Iterator[tuple[str, bytes] | Line]:
    """(share, page) of what each share has of a page, and the lines of what cannot be used."""
    page, digits = unpack(data), survey.digits
    is_local = not storage.is_remote(sources.output)
    shares: dict[str, Page] = {}

    def add(share: str, name: str, mark: str, size: int | None) -> None:
        if share not in shares:
            shares[share] = Page(page.kind, [], [], [])
        mine = shares[share]
        mine.names.append(name)
        mine.marks.append(mark)
        if size is not None:
            mine.sizes.append(size)

    if page.kind == PAIRS:
        base = sources.where.base or survey.base
        outputs = storage.join(sources.output, "")
        for found in list_pairs(zip(page.names, page.marks, strict=True), base):
            if isinstance(found, Reject):
                yield _line(found)
                continue
            name, (image, mask) = found
            for address in (image, mask):
                if address.startswith(outputs):
                    raise inside(address, sources.output)
            add(hash_of(root_in(name, is_local))[:digits], image, mask, None)
    elif page.kind == RECORDS:
        for name in page.names:
            prefix = part_prefix(name)
            for share in [prefix[:digits]] if len(prefix) >= digits else _below(prefix, digits):
                add(share, name, "", 0)
    else:
        for name, mark, size in zip(page.names, page.marks, page.sizes, strict=True):
            add(hash_of(root_in(name, is_local))[:digits], name, mark, size)
    yield from ((share, pack(mine)) for share, mine in shares.items())


def _line(lost: Reject) -> Line:
    """The line of a file that has no share yet."""
    return Line(hash_of(lost.source), lost)


def _below(prefix: str, digits: int) -> list[str]:
    """All shares of so many digits that begin with a prefix."""
    missing = digits - len(prefix)
    return [f"{prefix}{number:0{missing}x}" for number in range(16**missing)]
