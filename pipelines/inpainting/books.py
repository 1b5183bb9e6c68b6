"""The job's books: a line for each output and each reject, in part files that are written once and then only read.

    OUTPUT/.items/part-3f-5f2c91d0-6d0c1f0a9be3.jsonl      lines of share 3f, by run 5f2c91d0, named by their contents

Whoever has written outputs writes their lines together, when there are many or after a moment: so a million outputs
cost some thousand files more, not a million. A line is what a second run needs to know of an output and of what it was
made of: see `versions`. Several lines of one output are of several attempts or runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from pipelines.inpainting.versions import RECORDS, Record, is_record
from pipelines.transforms.create_once import create_or_compare
from pipelines.transforms.rejects import Reject
from trainer import storage
from trainer.documents import CHECKED
from trainer.storage import claims
from trainer.storage.claims import Claim

MOST_LINES = 1000  # of a part
FLUSH_S = 2.0  # after which lines are written, however few: what a process that is killed has to do again
_PART = re.compile(r"part-([0-9a-f]{0,4})-([0-9a-f]{8})-[0-9a-f]{12}\.jsonl")
_MAX_BYTES = 1 << 30  # of a part


class Line(NamedTuple):
    """What became of one input.

    Attributes:
        share: the digits of its hash, see `pages.hash_of`.
        outcome: the record of its output, or why there is none.
        is_booked: whether it is in the books already.
    """

    share: str
    outcome: dict | Reject
    is_booked: bool = False


class _Lost(TypedDict):
    """The line of a reject."""

    __pydantic_config__ = CHECKED  # type: ignore[misc]

    share: str
    reject: dict[str, str]


_LOST: TypeAdapter[_Lost] = TypeAdapter(_Lost)
_BEGIN = re.compile(rb'\{"share": "([0-9a-f]{4})", "(?:reject|output": ("[^"\\]*(?:\\.[^"\\]*)*"))')
_DIGITS = frozenset(b"0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class Books:
    """Where a job keeps its books.

    Attributes:
        output: address of the output folder.
        run: this run's name, 8 hexadecimal digits.
        has_old: whether the folder may have records in files of their own, as an earlier version wrote them.
    """

    output: str
    run: str
    has_old: bool = False


def list_parts(output: str) -> list[str]:
    """Names of all part files."""
    folder = storage.join(output, RECORDS)
    found = (storage.relative(address, folder) for address, _ in storage.scan(folder, deep=False))
    return [name for name in found if _PART.fullmatch(name)]


def part_prefix(name: str) -> str:
    """The digits that the shares of a part's lines begin with."""
    found = _PART.fullmatch(name)
    assert found is not None
    return found[1]


def run_of(name: str) -> str:
    """The run that has written a part."""
    found = _PART.fullmatch(name)
    assert found is not None
    return found[2]


# Writing


@dataclass
class Writer:
    """Writes lines in parts, one for each share that has some.

    Attributes:
        books, claim: the job's.
        digits: of a share.
    """

    books: Books
    claim: Claim | None
    digits: int
    _lines: list[tuple[str, bytes]] = field(default_factory=list)
    _flushed: float = 0.0

    def add(self, line: Line) -> None:
        """Keeps a line in mind, and writes all if it is time."""
        self._lines.append((line.share, dump_line(line)))
        if len(self._lines) >= MOST_LINES or time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes the lines that are not written yet."""
        lines, self._lines = sorted(self._lines), []
        if lines:
            claims.require(self.claim)
        for share, mine in itertools.groupby(lines, key=lambda line: line[0][: self.digits]):
            write_part(self.books, share, b"".join(line for _, line in mine))
        self._flushed = time.monotonic()


def write_part(books: Books, share: str, lines: bytes) -> None:
    """Writes one part, of lines of one share: see `dump_line`."""
    digest = hashlib.blake2b(lines, digest_size=6).hexdigest()
    create_or_compare(storage.join(books.output, RECORDS, f"part-{share}-{books.run}-{digest}.jsonl"), lines)


def dump_line(line: Line) -> bytes:
    """The line, beginning with what `read_parts` looks for."""
    if isinstance(line.outcome, Reject):
        said: dict = {"share": line.share, "reject": dataclasses.asdict(line.outcome)}
    else:
        said = {"share": line.share, "output": line.outcome["output"], **line.outcome}
    return json.dumps(said).encode() + b"\n"


# Reading


def read_parts(books: Books, names: Iterable[str], share: str) -> Iterator[tuple[str, str, bytes]]:
    """(run, output, line) of each line of a share, the output empty for a reject: see `parse_record`, `parse_reject`.

    Lines are parsed when they are needed, one by one: all of them together would take a hundred times the memory.
    """
    start = share.encode()
    for run, lines in _read_lines(books, names):
        for line in lines:
            found = _BEGIN.match(line)
            if found and found[1].startswith(start):
                yield run, orjson.loads(found[2]) if found[2] else "", line


def read_records(books: Books, names: Iterable[str], share: str) -> Iterator[tuple[str, Record, bytes]]:
    """(output, record, line) of each record of a share, without damaged ones."""
    begin = b'{"share": "' + share.encode()
    for _, lines in _read_lines(books, names):
        for line in lines:
            # What `_BEGIN` finds, told sooner.
            is_ours = line.startswith(begin) and line.startswith(b'", "output": "', 15)
            if is_ours and _DIGITS.issuperset(line[11:15]) and (record := parse_record(line)):
                yield record["output"], record, line


def _read_lines(books: Books, names: Iterable[str]) -> Iterator[tuple[str, list[bytes]]]:
    """(run, lines) of each part."""
    for name in sorted(names):
        data, _ = storage.read_versioned(storage.join(books.output, RECORDS, name), _MAX_BYTES)
        yield run_of(name), (data or b"").splitlines()


def parse_record(line: bytes) -> Record | None:
    """The record in a line; None if it is damaged, as if it were not there."""
    try:
        found = orjson.loads(line)  # 1.7 us; json.loads 7.5
    except ValueError:
        return None
    return found if is_record(found) else None


def parse_reject(line: bytes) -> Reject | None:
    """The reject in a line; None if it is damaged."""
    try:
        return Reject(**_LOST.validate_json(line)["reject"])
    except (ValueError, TypeError):
        return None
