"""Reports of a finished job: ``items.jsonl`` and ``rejects.jsonl``, made share by share of the books, and the manifest.

The outputs are listed once more for that: what was deleted while the job ran is missed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import orjson

from pipelines.inpainting import pages
from pipelines.inpainting.books import Books, parse_record, parse_reject, read_parts, read_records, run_of
from pipelines.inpainting.colors import Ring, warn_of_rings
from pipelines.inpainting.inputs import ITEMS, MANIFEST, REJECTS
from pipelines.inpainting.outputs import require_job
from pipelines.inpainting.packs import Census, Sorted, later, settle
from pipelines.inpainting.pages import Survey
from pipelines.inpainting.versions import Record, pack_of, told
from pipelines.transforms.rejects import Reject, reject_lines
from trainer import storage
from trainer.errors import UserError
from trainer.storage import claims
from trainer.storage.claims import Claim
from trainer.storage.names import printable

_COUNTS = ("inputs", "outputs", "rejects", "finished_before", "without_holes", "several_frames")


class Summary(NamedTuple):
    """What the reports of some shares say together.

    Attributes:
        counts: those of `_COUNTS`.
        items, rejects: names of the reports.
        rings: see `colors.warn_of_rings`.
        packs: what has become of them.
    """

    counts: tuple[int, ...] = (0,) * len(_COUNTS)
    items: tuple[str, ...] = ()
    rejects: tuple[str, ...] = ()
    rings: tuple[int, Ring] | None = None
    packs: Sorted = Sorted()


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """What the reports depend on beside the books.

    Attributes:
        books, claim: the job's.
        job: as `outputs.claim_output` takes it.
        fields: of the manifest: model, parameters and code version.
        packs: whether outputs are in packs.
    """

    books: Books
    job: dict
    fields: dict
    claim: Claim | None = None
    packs: bool = False


def report_name(name: str, share: str) -> str:
    """``items.jsonl`` if there is one share, else ``items-00012-of-00256.jsonl``."""
    stem, dot, extension = name.partition(".")
    return f"{stem}-{int(share, 16):05d}-of-{16 ** len(share):05d}{dot}{extension}" if share else name


@pages.uncollected()
def merge(group: tuple[str, Iterable[bytes]], job: Reporting) -> Summary:
    """Writes the reports of one share.

    Args:
        group: a share, and its pages of outputs that are there, of parts of the books, and of outputs that were
            finished before.

    Raises:
        UserError: outputs are gone, or the folder is of another job by now.
    """
    share, data = group
    folder = job.books.output
    require_job(folder, job.job)
    parts, there, before = list[str](), dict[str, int](), dict[str, tuple[str, int]]()
    for page in map(pages.unpack, data):
        if page.kind == pages.RECORDS:
            parts += page.names
        elif page.kind == pages.WRITTEN:
            there.update(page.rows())
        else:
            before.update(zip(page.names, zip(page.marks, page.sizes, strict=True), strict=True))
    lines, files, counts = list[tuple[str, str, bytes]](), dict[str, tuple[int, str] | None](), [0] * len(_COUNTS)
    census = Census(there)
    rings, (records, rejects) = list[Ring](), _gather(job, parts, share, before, census)
    images, missing = set[str](), set(before)
    for record, status in records:
        said = _said(record, status)
        lines.append((said["image"], said["mask"], dump_item(said)))
        missing.discard(record["output"])
        is_new, kept = status == "done", cast(Any, record.get("pack", record))
        files[pack_of(record) or record["output"]] = (kept["bytes"], kept["crc32c"]) if is_new else None
        counts[3] += not is_new
        if rejects:
            images.add(printable(record["image"]))
        if said["without_holes"]:
            counts[4] += 1
        if said.get("frames", 1) > 1:
            counts[5] += 1
        if said.get("ring"):
            rings.append(Ring(**said["ring"]))
    counts[0] = counts[1] = len(lines)
    if missing:
        raise UserError(
            f"{folder}: the books of {len(missing)} outputs are gone, such as that of {min(missing)}. The same command "
            "makes them again."
        )
    claims.require(job.claim)
    claims.require_files(folder, files, there)
    # An input that one attempt could not use and another could is an output.
    rejects = [lost for lost in rejects if lost.source not in images]
    lines += [(lost.source, "", dump_item(_failure(lost))) for lost in rejects]
    counts[0], counts[2] = counts[0] + len(rejects), len(rejects)
    names: list[tuple[str, ...]] = []
    for name, text in ((ITEMS, b"".join(line for *_, line in sorted(lines))), (REJECTS, reject_lines(rejects))):
        names.append((report_name(name, share),) if text or not share else ())
        if names[-1]:
            storage.overwrite(storage.join(folder, names[-1][0]), text)
    return Summary(tuple(counts), names[0], names[1], _join(rings), census.sort())


def _gather(
    job: Reporting, parts: list[str], share: str, before: dict[str, tuple[str, int]], census: Census
) -> tuple[Iterator[tuple[Record, str]], list[Reject]]:
    """Records, each with its status, and rejects."""
    books, ours, rejects = job.books, dict[str, bytes](), dict[Reject, None]()
    own = {name for name in parts if run_of(name) == books.run}
    for _, output, line in read_parts(books, own, share):
        if output:
            ours[output] = _count_later(ours.get(output, b""), line, census) if job.packs else line
        elif lost := parse_reject(line):
            rejects[lost] = None

    def records() -> Iterator[tuple[Record, str]]:
        for line in ours.values():
            if record := parse_record(line):
                yield record, record["status"]
        wanted, packed = before.keys() - ours.keys(), dict[str, Record]()
        for output, record, _ in read_records(books, [name for name in parts if name not in own], share):
            if job.packs:
                census.see(record)
            if output not in wanted or (record["crc32c"], record["bytes"]) != before[output]:
                continue
            if not job.packs:
                wanted.remove(output)
                yield record, "finished before"
            elif pack_of(record) in census.there:
                packed[output] = later(record, packed.get(output, record))
        for record in packed.values():
            census.count(record)
            yield record, "finished before"

    return records(), list(rejects)


def _count_later(one: bytes, other: bytes, census: Census) -> bytes:
    """Of two lines of one output, the first of which may be none, the one that counts."""
    counts, line = parse_record(one), other
    if (record := parse_record(other)) is None:
        return one or other
    census.see(record)
    if counts is not None and later(counts, record) is counts:
        record, line = counts, one
    census.count(record)
    return line


def _said(record: Record, status: str) -> dict:
    """A line of ``items.jsonl``."""
    said = told(record)
    said["status"] = status
    # Records of earlier versions have no field that says so.
    said["without_holes"] = record.get("hole_ratio") == 0
    return said


def _join(rings: list[Ring]) -> tuple[int, Ring] | None:
    """How many rings there are, and one that stands for all."""
    if not rings:
        return None
    return len(rings), rings[0]._replace(tolerance=max(ring.tolerance for ring in rings))


def merge_summaries(summaries: Iterable[Summary]) -> Summary:
    """What the reports of all these shares say."""
    found = [Summary(), *summaries]
    counts = tuple(map(sum, zip(*(one.counts for one in found), strict=True)))
    rings = [one.rings for one in found if one.rings]
    joined = _join([ring for _, ring in rings])
    return Summary(
        counts,
        tuple(sorted(name for one in found for name in one.items)),
        tuple(sorted(name for one in found for name in one.rejects)),
        (sum(count for count, _ in rings), joined[1]) if joined else None,
        Sorted.join(one.packs for one in found),
    )


def publish(summary: Summary, survey: Survey, job: Reporting) -> None:
    """Writes ``manifest.json``, with the counts and what to warn of: the job is done.

    Raises:
        UserError: the folder is of another job by now, or was emptied.
    """
    folder = job.books.output
    claims.require(job.claim)
    require_job(folder, job.job)
    counts = dict(zip(_COUNTS, summary.counts, strict=True))
    if not counts["several_frames"]:
        del counts["several_frames"]
    fields: dict[str, Any] = dict(job.fields)
    if not fields.get("parameters", {}).get("base", "-"):
        fields["parameters"] = {**fields["parameters"], "base": survey.base}
    reports = {"items": summary.items, "rejects": summary.rejects}
    for name in {ITEMS, REJECTS}.difference(*reports.values()):  # of a run with fewer images
        storage.delete(storage.join(folder, name))
    found = {**fields, "counts": counts, "warnings": warn_of_rings(summary.rings), **reports}
    if job.packs:
        found["packs"] = settle(folder, summary.packs)
    manifest = json.dumps(found, indent=1, sort_keys=True).encode()
    claims.publish(job.claim, storage.join(folder, MANIFEST), manifest, storage.overwrite)


def dump_item(value: dict) -> bytes:
    """A line of ``items.jsonl``, its keys in order."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)  # 1.8 us; json.dumps 11.5
    except TypeError:  # as an integer of more than 64 bits, which the books do not have of this job
        return json.dumps(value, sort_keys=True).encode() + b"\n"


def _failure(lost: Reject) -> dict:
    """The line of ``items.jsonl`` of a reject."""
    return {"image": lost.source, "status": "rejected", "stage": lost.stage, "error": lost.error}
