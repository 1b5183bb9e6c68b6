"""What is still to be done of a share: its images and masks are matched, its outputs and their records looked up.

images, masks ---> match -> items -> finished before?  yes: a page of their outputs
outputs, records ---------------------^               no: chunks of items, for whoever has time

Images of two shares may have one output: ``a.xyz`` beside ``a.jpg``, and ``a.xyz.gif``. What is found of those that
may is settled by the share of the output.
"""

from __future__ import annotations

import json
import pickle
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
from trainer.storage.names import printable

_THREADS = 16  # that wait for storage, where a list does not tell what has changed
_LARGEST_CHUNK, _CHUNKS = 256, 128  # items of a chunk, and chunks of a share that is smaller


class Chunk(NamedTuple):
    """Items that are to be made, so many, packed: see `unpack_items`."""

    number: int
    items: bytes


class Before(NamedTuple):
    """Outputs of a share that earlier runs have finished, so many, as a page."""

    share: str
    number: int
    page: bytes


class Contested(NamedTuple):
    """What is found of items whose outputs other shares may have, too, packed, for the share of the outputs' names."""

    share: str
    found: bytes


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


class _Finished(NamedTuple):
    """What is kept of the record of an output that is finished."""

    output: str
    crc32c: str
    bytes: int


_Outcome = Item | Line | _Finished  # of an item: itself if it is to be made


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

    def finish(self, one: _Finished) -> None:
        self.before.names.append(one.output)
        self.before.marks.append(one.crc32c)
        self.before.sizes.append(one.bytes)

    def tell(self, share: str) -> Iterator[Line | Chunk | Before]:
        """All of it; ``share``: where the books have it."""
        yield from self.lines
        yield Before(share, len(self.before.names), pages.pack(self.before))
        yield from pack_items(self.todo)


def resolve(
    group: tuple[str, Iterable[bytes]], survey: Survey, job: Resuming
) -> Iterator[Line | Chunk | Before | Contested]:
    """What is to be done of a share, what is not, and the lines of what is known already.

    Args:
        group: a share and its pages.
        survey: of all inputs.
    """
    share, mine, found = group[0], _Share(), _Found()
    with pages.uncollected():
        for data in group[1]:
            mine.add(pages.unpack(data), job.sources)
        items = _match_all(mine, survey, job, found)
        for one in _look_up(items, mine, share, job):
            found.add(one)
    if found.asked:
        with ThreadPoolExecutor(_THREADS) as pool:
            for one in pool.map(lambda asked: _recall(asked, mine, job), found.asked):
                found.add(one)
    if share:  # else it has all images
        yield from _contest(items, found, share, not storage.is_remote(job.books.output))
    yield from found.tell(share)


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


# Outputs that several shares may have


def _contest(items: dict[str, list[Item]], found: _Found, share: str, is_local: bool) -> Iterator[Contested]:
    """Takes out of ``found`` what is known of outputs that other shares may have, too."""
    contested = {name: alike for name, alike in items.items() if pages.is_contested(name)}
    if not contested:
        return
    outcomes: dict[str, _Outcome | None] = {
        printable(item.image): None for alike in contested.values() for item in alike
    }

    def takes(image: str, outcome: _Outcome) -> bool:
        if is_ours := image in outcomes:
            outcomes[image] = outcome
        return is_ours

    before, found.before = found.before, Page(pages.FINISHED, [], [], [])
    for row in map(_Finished, before.names, before.marks, before.sizes):
        if row.output not in contested or not takes(printable(contested[row.output][0].image), row):
            found.finish(row)
    found.todo = [item for item in found.todo if not takes(printable(item.image), item)]
    found.lines = [line for line in found.lines if not takes(_image_of(line), line)]
    homes: dict[str, list[tuple[Item, _Outcome | None]]] = {}
    for name, alike in contested.items():
        home = hash_of(root_in(name, is_local))[: len(share)]
        homes.setdefault(home, []).extend((item, outcomes[printable(item.image)]) for item in alike)
    yield from (Contested(home, zlib.compress(pickle.dumps(rows), 1)) for home, rows in homes.items())


def _image_of(line: Line) -> str:
    return line.outcome.source if isinstance(line.outcome, Reject) else printable(line.outcome["image"])


def settle(group: tuple[str, Iterable[bytes]]) -> Iterator[Line | Chunk | Before]:
    """What is to be done of outputs that several shares may have, and what is not.

    Args:
        group: a share, and what all shares have found of outputs whose names are in it, see `Contested`.
    """
    share, outputs = group[0], dict[str, list[tuple[Item, _Outcome]]]()
    for data in group[1]:
        for item, outcome in pickle.loads(zlib.decompress(data)):
            outputs.setdefault(item.output, []).append((item, outcome))
    shares: dict[str, _Found] = {}
    for _, alike in sorted(outputs.items()):
        if len(alike) > 1:
            alike = [(item, line) for item, line in _collide(item for item, _ in alike)]
        for item, outcome in alike:
            found = shares.setdefault(item.share[: len(share)], _Found())
            if isinstance(outcome, _Finished):
                found.finish(outcome)
            else:
                found.add(outcome)
    for booked, found in shares.items():
        yield from found.tell(booked)


def _collide(alike: Iterable[Item]) -> Iterator[tuple[Item, Line]]:
    """The rejects of images that would have one output."""
    alike = sorted(alike)
    images = ", ".join(item.image for item in alike[:4]) + (", ..." if len(alike) > 4 else "")
    error = MatchError(
        f"expected one image for each output. Received {len(alike)} for {alike[0].output}: {images}. Rename them, or "
        "inpaint them into folders of their own."
    )
    yield from ((item, Line(item.share, reject(item.image, "match", error))) for item in alike)


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
            yield from (line for _, line in _collide(alike))
            continue
        files = files_of(item)
        seen = (
            record
            for record in known
            if source_of(record) == files and is_seen(record, item, job.books.output, mine.marks)
        )
        if record := next(seen, None):
            yield record
        elif known or (job.books.has_old and (name in mine.outputs or (share and pages.is_contested(name)))):
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
            # A list may be stale, or have it in another share: what it lacks is asked for by name.
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
