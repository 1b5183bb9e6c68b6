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
from pipelines.inpainting.books import Books, Line, parse_record, read_records
from pipelines.inpainting.inputs import Item, Sources
from pipelines.inpainting.matching import Matched, collide, match_files, match_listed, pair_up
from pipelines.inpainting.pages import Page, Share, Survey, hash_of, root_in
from pipelines.inpainting.versions import (
    as_booked,
    files_of,
    is_finished,
    pack_of,
    read_record,
    source_of,
)
from pipelines.pairs.names import root_of, stem_of
from pipelines.transforms.rejects import FAULTS, Reject, Rejected, blame
from trainer import storage
from trainer.errors import UserError
from trainer.storage.names import printable

_THREADS = 16  # that wait for storage, where a list does not tell what has changed
_LARGEST_CHUNK = 256  # items of a chunk
_CHUNKS = (128, 32, 8, 2, 1)  # of a share, at least, by its digits: 16 times as many shares need fewer of each


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
        packs: whether outputs are in packs.
    """

    sources: Sources
    books: Books
    extension: str
    needs_mask: bool = True
    packs: bool = False


class _Asked(NamedTuple):
    """An item whose files a list does not tell enough of, and the lines of records that may be of its output."""

    item: Item
    known: list[bytes]


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

    def add(self, one: _Outcome | _Asked) -> None:
        if isinstance(one, Item):
            self.todo.append(one)
        elif isinstance(one, Line):
            self.lines.append(one)
        elif isinstance(one, _Asked):
            self.asked.append(one)
        else:
            self.finish(one)

    def finish(self, one: _Finished) -> None:
        self.before.names.append(one.output)
        self.before.marks.append(one.crc32c)
        self.before.sizes.append(one.bytes)

    def tell(self, share: str) -> Iterator[Line | Chunk | Before]:
        """All of it; ``share``: where the books have it."""
        yield from self.lines
        yield Before(share, len(self.before.names), pages.pack(self.before))
        yield from pack_items(self.todo, len(share))


def resolve(
    group: tuple[str, Iterable[bytes]], survey: Survey, job: Resuming
) -> Iterator[Line | Chunk | Before | Contested]:
    """What is to be done of a share, what is not, and the lines of what is known already.

    Args:
        group: a share and its pages.
        survey: of all inputs.
    """
    share, mine, found = group[0], Share(job.sources), _Found()
    with pages.uncollected():
        for data in group[1]:
            mine.add(pages.unpack(data))
        matched = _match_all(mine, survey, job, found)
        packed = _look_up(matched, share, job, found)
    if found.asked:
        with ThreadPoolExecutor(_THREADS) as pool:
            for one in pool.map(lambda asked: _recall(asked, mine, job), found.asked):
                found.add(one)
    if packed:
        _make_packs_again(packed, matched, found)
    if share:  # else it has all images
        yield from _contest(matched, found, share)
    yield from found.tell(share)


def pack_items(items: list[Item], digits: int) -> Iterator[Chunk]:
    """Items in chunks: as many as keep some workers busy, and no more items in each than can be done in a while.

    ``digits``: of the share that has them.
    """
    size = max(1, min(_LARGEST_CHUNK, len(items) // _CHUNKS[digits]))
    for start in range(0, len(items), size):
        chunk = items[start : start + size]
        yield Chunk(len(chunk), zlib.compress(json.dumps(chunk).encode(), 1))


def unpack_items(chunk: Chunk) -> Iterator[Item]:
    """The items of a chunk."""
    for image, mask, output, more_masks, share, earlier in json.loads(zlib.decompress(chunk.items)):
        yield Item(image, mask, output, tuple(more_masks), share, tuple(earlier))


# Outputs that several shares may have


def is_contested(output: str) -> bool:
    """Whether images of several roots, and so of several shares, may have this output.

    ``a.xyz`` beside ``a.jpg`` has ``a.xyz.png``, which has another root, as ``xyz`` is no image's extension; and so has
    ``a.xyz.gif``, whose root is that of the output.
    """
    stem = stem_of(output)
    return "." in stem and root_of(stem) != root_of(output)


def _contest(matched: Matched, found: _Found, share: str) -> Iterator[Contested]:
    """Takes out of ``found`` what is known of outputs that other shares may have, too."""
    dotted = (name for name in matched if name.count(".") > 1)  # others are not, and this is said sooner
    contested = {name: matched.alike(name) for name in dotted if is_contested(name)}
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
        home = hash_of(root_in(name, matched.is_local))[: len(share)]
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
            alike = [(item, Line(item.share, lost)) for item, lost in collide(item for item, _ in alike)]
        for item, outcome in alike:
            found = shares.setdefault(item.share[: len(share)], _Found())
            if isinstance(outcome, _Finished):
                found.finish(outcome)
            else:
                found.add(outcome)
    for booked, found in shares.items():
        yield from found.tell(booked)


# Matching


def _match_all(mine: Share, survey: Survey, job: Resuming, found: _Found) -> Matched:
    """Items of a share; what has no counterpart is added to ``found``."""
    has_masks, is_local = pages.MASKS in job.sources.kinds, not storage.is_remote(job.books.output)
    pairs, others = pair_up([*mine.images], [*mine.masks] if has_masks else None, job.sources)
    outputs = {stem + job.extension: (root, image, mask) for root, (stem, image, mask) in pairs.items()}
    matched = Matched(mine, outputs, {}, is_local)

    def add(items: Iterable[Item | Reject], digits: str) -> None:
        for one in items:
            if isinstance(one, Reject):
                found.lines.append(Line(digits, one))
            else:
                matched.add(one)

    for name in [name for name in outputs if pages.as_path(name) != name] if is_local else ():
        (item,) = matched.alike(name)
        del outputs[name]
        matched.add(item)
    for root, (images, masks) in others.items():
        digits = hash_of(pages.as_path(root) if is_local else root)
        files = match_files(images, masks if has_masks else None, job.sources, job.extension, digits)
        add(files, digits)
    if mine.pairs:
        base, stems = job.sources.where.base or survey.base, dict[str, list[tuple[str, str]]]()
        for pair in mine.pairs:
            stems.setdefault(stem_of(storage.relative(pair[0], base)), []).append(pair)
        for stem, listed in stems.items():
            digits = hash_of(root_in(stem, is_local))
            add(match_listed(listed, base, job.needs_mask, job.extension, digits), digits)
    return matched


# Looking up


def _look_up(matched: Matched, share: str, job: Resuming, found: _Found) -> dict[str, set[str]]:
    """Adds what is known of all items to ``found``; returns the packs of those that are in some."""
    finished, known, packed = dict[str, tuple[str, int]](), dict[str, list[bytes]](), dict[str, set[str]]()
    several = {name for name, alike in matched.items.items() if len(alike) > 1}
    for output, record, line in read_records(job.books, matched.mine.parts, share):
        if not (output in matched.pairs or output in matched.items):
            continue
        if job.packs and (pack := pack_of(record)) in matched.mine.outputs:
            packed.setdefault(output, set()).add(pack)
        if output in finished or output in several:
            continue
        if matched.is_seen(output, record):
            finished[output] = record["crc32c"], record["bytes"]
        else:
            known.setdefault(output, []).append(line)
    done = sorted(finished)
    found.before = Page(
        pages.FINISHED, done, [finished[name][0] for name in done], [finished[name][1] for name in done]
    )
    for name in sorted(name for name in matched if name not in finished):
        item, *more = matched.alike(name)
        if more:
            found.lines += (Line(one.share, lost) for one, lost in collide([item, *more]))
        elif name in known or (job.books.has_old and (name in matched.mine.outputs or (share and is_contested(name)))):
            found.asked.append(_Asked(item, known.get(name, [])))
        else:
            found.todo.append(item)
    return packed


def _make_packs_again(packed: dict[str, set[str]], matched: Matched, found: _Found) -> None:
    """Takes for not finished what is in one pack with an output that is not, for no pack is ever changed."""
    members: dict[str, list[str]] = {}
    for output, mine in packed.items():
        for pack in mine:
            members.setdefault(pack, []).append(output)
    rows = dict(zip(found.before.names, zip(found.before.marks, found.before.sizes, strict=True), strict=True))
    names = [output for output in packed if output not in rows]
    while names:
        for pack in packed.get(names.pop(), ()):
            again = [output for output in members.pop(pack, ()) if rows.pop(output, None)]
            found.todo += (matched.alike(output)[0] for output in again)
            names += again
    found.before = Page(
        pages.FINISHED, [*rows], [mark for mark, _ in rows.values()], [size for _, size in rows.values()]
    )


def _recall(asked: _Asked, mine: Share, job: Resuming) -> Item | Line | _Finished:
    """An output that is finished, or a line for the books if it is not in them; or the item.

    A line, too, if its output was made of other files.
    """
    item, output = asked.item, job.books.output
    known = [record for line in asked.known if (record := parse_record(line))]
    try:
        with blame(item.image, "resume", (*FAULTS, KeyError, TypeError)):
            # A list may be stale, or have it in another share: what it lacks is asked for by name.
            is_there = job.packs or item.output in mine.outputs
            if not is_there and not storage.exists(storage.join(output, item.output)):
                return item
            old = None if known else read_record(item, output)
            known = known or ([old] if old else [])
            same = [record for record in known if source_of(record) == files_of(item)]
            if known and not same:
                raise UserError(
                    f"{storage.join(output, item.output)} is of {' and '.join(filter(None, source_of(known[0])))}: "
                    "--overwrite, or choose another folder"
                )
            finished = next((record for record in same if is_finished(record, item, output, mine.mark_of)), None)
    except Rejected as lost:
        return Line(item.share, lost.reject)
    if finished is None:
        return item._replace(earlier=tuple(sorted({record["crc32c"] for record in same})))
    if finished is old:
        return Line(item.share, as_booked(old, item))
    return _Finished(finished["output"], finished["crc32c"], finished["bytes"])
