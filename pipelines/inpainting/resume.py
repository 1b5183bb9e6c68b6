"""What is still to be done of a share: its images and masks are matched, its outputs and their records looked up.

images, masks ---> match -> items -> finished before?  yes: a page of their outputs
outputs, records ---------------------^               no: chunks of items, for whoever has time
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from pipelines.inpainting import pages
from pipelines.inpainting.books import Books, Line, parse_record, read_parts
from pipelines.inpainting.inputs import Item, MatchError, Sources
from pipelines.inpainting.matching import match_files, match_listed
from pipelines.inpainting.pages import Page, Survey, hash_of, root_in
from pipelines.inpainting.versions import (
    Record,
    as_booked,
    files_of,
    is_finished,
    is_seen,
    read_record,
    source_of,
)
from pipelines.pairs.names import root_of, stem_of
from pipelines.transforms.rejects import FAULTS, Reject, Rejected, blame, reject
from trainer import storage
from trainer.errors import UserError

_THREADS = 16  # that wait for storage, where a list does not tell what has changed
_LARGEST_CHUNK, _CHUNKS = 256, 128  # items of a chunk, and chunks of a share that is smaller


class Chunk(NamedTuple):
    """Items of one share that are to be made, so many, packed: see `unpack_items`."""

    number: int
    items: bytes


class Before(NamedTuple):
    """Outputs of a share that earlier runs have finished, so many, as a page."""

    share: str
    number: int
    page: bytes


@dataclass(frozen=True, kw_only=True)
class Resuming:
    """What resolving a share depends on.

    Attributes:
        sources: where the inputs are.
        books: the job's.
        extension: of the outputs.
        needs_mask: whether holes are in mask files.
    """

    sources: Sources
    books: Books
    extension: str
    needs_mask: bool = True


@dataclass
class _Share:
    """The pages of a share, by what they are asked for."""

    images: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    outputs: set[str] = field(default_factory=set)
    marks: dict[str, str] = field(default_factory=dict)

    def add(self, page: Page, sources: Sources) -> None:
        if page.kind == pages.PAIRS:
            self.pairs += zip(page.names, page.marks, strict=True)
            return
        if page.kind == pages.RECORDS:
            self.parts += page.names
            return
        if page.kind == pages.IMAGES:
            folder = sources.where.base
            self.images += page.names
        elif page.kind == pages.MASKS:
            folder = sources.mask_base
            self.masks += page.names
        else:
            folder = sources.output
            self.outputs.update(page.names)
        begin = storage.join(folder, "")
        self.marks.update((begin + name, mark) for name, mark in zip(page.names, page.marks, strict=True) if mark)


class _Asked(NamedTuple):
    """An item whose files a list does not tell enough of, and the records that may be of its output."""

    item: Item
    known: list[Record]


@dataclass
class _Found:
    """What is known of the items of a share."""

    lines: list[Line] = field(default_factory=list)
    todo: list[Item] = field(default_factory=list)
    asked: list[_Asked] = field(default_factory=list)
    before: Page = field(default_factory=lambda: Page(pages.FINISHED, [], [], []))

    def add(self, one: Item | Line | _Asked | Record) -> None:
        if isinstance(one, Item):
            self.todo.append(one)
        elif isinstance(one, Line):
            self.lines.append(one)
        elif isinstance(one, _Asked):
            self.asked.append(one)
        else:  # the record of what is finished, of which these three are kept
            self.before.names.append(one["output"])
            self.before.marks.append(one["crc32c"])
            self.before.sizes.append(one["bytes"])


def resolve(group: tuple[str, Iterable[bytes]], survey: Survey, job: Resuming) -> Iterator[Line | Chunk | Before]:
    """What is to be done of a share, what is not, and the lines of what is known already.

    Args:
        group: a share and its pages.
        survey: of all inputs.
    """
    share, mine, found = group[0], _Share(), _Found()
    with pages.uncollected():
        for data in group[1]:
            mine.add(pages.unpack(data), job.sources)
        for one in _look_up(_match_all(mine, survey, job, found), mine, share, job):
            found.add(one)
    if found.asked:
        with ThreadPoolExecutor(_THREADS) as pool:
            for one in pool.map(lambda asked: _recall(asked, mine, job), found.asked):
                found.add(one)
    yield from found.lines
    yield Before(share, len(found.before.names), pages.pack(found.before))
    yield from pack_items(found.todo)


def pack_items(items: list[Item]) -> Iterator[Chunk]:
    """Items in chunks: as many as keep some workers busy, and no more items in each than can be done in a while."""
    size = max(1, min(_LARGEST_CHUNK, len(items) // _CHUNKS))
    for start in range(0, len(items), size):
        chunk = items[start : start + size]
        yield Chunk(len(chunk), zlib.compress(json.dumps(chunk).encode(), 1))


def unpack_items(chunk: Chunk) -> Iterator[Item]:
    """The items of a chunk."""
    for image, mask, output, more_masks, share, earlier in json.loads(zlib.decompress(chunk.items)):
        yield Item(image, mask, output, tuple(more_masks), share, tuple(earlier))


# Matching


def _match_all(mine: _Share, survey: Survey, job: Resuming, found: _Found) -> dict[str, list[Item]]:
    """Items of a share by their output; what has no counterpart is added to ``found``."""
    items = dict[str, list[Item]]()
    is_local = not storage.is_remote(job.books.output)
    for matched in _match(mine, survey, job):
        if isinstance(matched, Line):
            found.add(matched)
        else:
            name = pages.as_path(matched.output) if is_local else matched.output
            items.setdefault(name, []).append(matched if name == matched.output else matched._replace(output=name))
    return items


def _match(mine: _Share, survey: Survey, job: Resuming) -> Iterator[Item | Line]:
    """Items of a share, and the lines of what has no counterpart."""
    where, is_local = job.sources.where, not storage.is_remote(job.books.output)
    if where.listed:
        base, stems = where.base or survey.base, dict[str, list[tuple[str, str]]]()
        for pair in mine.pairs:
            stems.setdefault(stem_of(storage.relative(pair[0], base)), []).append(pair)
        for stem, pairs in stems.items():
            digits = hash_of(root_in(stem, is_local))
            yield from _booked(match_listed(pairs, base, job.needs_mask, job.extension, digits), digits)
        return
    roots: dict[str, tuple[list[str], list[str]]] = {}
    for part, found in enumerate((mine.images, mine.masks)):
        for name in found:
            roots.setdefault(root_of(name), ([], []))[part].append(name)
    has_masks = pages.MASKS in job.sources.kinds
    for root, (images, masks) in roots.items():
        digits = hash_of(pages.as_path(root) if is_local else root)
        matched = match_files(images, masks if has_masks else None, job.sources, job.extension, digits)
        yield from _booked(matched, digits)


def _booked(found: Iterable[Item | Reject], digits: str) -> Iterator[Item | Line]:
    for one in found:
        yield Line(digits, one) if isinstance(one, Reject) else one


# Looking up


def _look_up(
    items: dict[str, list[Item]], mine: _Share, share: str, job: Resuming
) -> Iterator[Item | Line | _Asked | Record]:
    """Items that are to be made or asked about, records of those that are finished, and lines of rejects."""
    lines: dict[str, list[bytes]] = {}
    for _, output, line in read_parts(job.books, mine.parts, share):
        if output in items:
            lines.setdefault(output, []).append(line)
    for name, alike in sorted(items.items()):
        item, known = alike[0], [record for line in lines.get(name, ()) if (record := parse_record(line))]
        if len(alike) > 1:
            error = MatchError(f"expected one image for each output. Received {len(alike)} for {item.output}.")
            yield from (Line(one.share, reject(one.image, "match", error)) for one in sorted(alike))
            continue
        files = files_of(item)
        seen = (
            record
            for record in known
            if source_of(record) == files and is_seen(record, item, job.books.output, mine.marks)
        )
        if record := next(seen, None):
            yield record
        elif known or (job.books.has_old and name in mine.outputs):
            yield _Asked(item, known)
        else:
            yield item


def _recall(asked: _Asked, mine: _Share, job: Resuming) -> Item | Line | Record:
    """The record of an item if it is finished, a line for the books if that is not in them; or the item.

    A line, too, if its output was made of other files.
    """
    (item, known), output = asked, job.books.output
    try:
        with blame(item.image, "resume", (*FAULTS, KeyError, TypeError)):
            # A bucket's list may be stale: what it lacks is asked for by name.
            if item.output not in mine.outputs and not storage.exists(storage.join(output, item.output)):
                return item
            old = None if known else read_record(item, output)
            known = known or ([old] if old else [])
            same = [record for record in known if source_of(record) == files_of(item)]
            if known and not same:
                raise UserError(
                    f"{storage.join(output, item.output)} is of {' and '.join(filter(None, source_of(known[0])))}: "
                    "--overwrite, or choose another folder"
                )
            finished = next((record for record in same if is_finished(record, item, output, mine.marks)), None)
    except Rejected as lost:
        return Line(item.share, lost.reject)
    if finished is None:
        return item._replace(earlier=tuple(sorted({record["crc32c"] for record in same})))
    return Line(item.share, as_booked(old, item)) if finished is old else finished
