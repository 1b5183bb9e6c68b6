"""Outputs of the inpainting job: the output folder, and what is written into it.

OUTPUT/x/a.png               an output; with --pack tar a member x/a.png of a tar, see `packs`
       packs/*.tar           these, named in the manifest, and in items.jsonl with each output
       manifest.json         model, parameters, counts, names of the reports; written last
       items.jsonl           one line per input: status, hole ratio, whether it had no holes, windows, seconds, crc32c;
                             frames, if the file has several (the first is read), and notes on what was left out of it;
                             of more than 50,000 images items-00000-of-00016.jsonl and so on
       rejects.jsonl         one line per input that could not be used, in as many files
       .items/job.json       model and parameters that all outputs share
              part-*.jsonl   the books: lines of items.jsonl with what the outputs were made of, see `books`: a second
                             run skips an output if all that is as it was. Earlier versions wrote x/a.png.json for each
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.inpainting.books import Books, Line
from pipelines.inpainting.inputs import ITEMS, MANIFEST, REJECTS, REPORT, Item
from pipelines.inpainting.loading import Settings, Task
from pipelines.inpainting.packs import Packed
from pipelines.inpainting.versions import RECORDS, Version, is_own, pack_prefix
from pipelines.transforms.create_once import create_or_compare
from pipelines.transforms.model_handler import Filled
from pipelines.transforms.rejects import Rejected, blame
from trainer import storage
from trainer.data import folders
from trainer.documents import Form, Json
from trainer.errors import Unwritable, UserError
from trainer.images import EXTENSIONS, pictures, rgb
from trainer.storage import claims
from trainer.storage.claims import Claim

JOB = "job.json"
_OUTPUTS = tuple(EXTENSIONS.values())
_ATTEMPTS = 100  # each failed one means that another job's succeeded
_BOOKS = 2  # version of the books; records of folders without one are files of their own
_OURS = ("replaces", "books")  # what job.json says beside the job


@dataclass(frozen=True)
class _Reports:
    """What is read of an earlier manifest."""

    items: tuple[str, ...] = ()
    rejects: tuple[str, ...] = ()


_REPORTS: Form[_Reports] = Form("a manifest", _Reports, max_bytes=1 << 25, error=storage.Corrupt)
_JOB: Form[dict] = Form("the job of an output folder", dict[str, Json], error=storage.Corrupt)


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


# At launch


def claim_output(output: str, job: dict, overwrite: bool, alone: bool = False) -> Claim:
    """Claims and prepares the output folder. Existing outputs may be replaced if the claim is the job's own.

    Args:
        output: address of the folder.
        job: the model and all parameters that the pixels of an output depend on.
        overwrite: forget what an earlier run finished.
        alone: end other jobs that write there.

    Raises:
        UserError: the folder has outputs of another model or other parameters, or something else, is not writable,
            has a link where records are written, or is claimed by another job.
    """
    storage.require_writable(output)
    storage.require_confined(storage.join(output, RECORDS))
    _require_own(output)
    # A run that resumes one that was replacing outputs goes on replacing them.
    claim = claims.take(output, replaces=overwrite or alone or _compare_job(output, job) is True)
    storage.sweep(output, _is_ours)
    for name in (MANIFEST, *_shared_reports(output)):
        storage.delete(storage.join(output, name))
    if overwrite:
        records = [name for name in storage.find(storage.join(output, RECORDS)) if name.endswith((".json", ".jsonl"))]
        # Listed before: nothing in the list is of a job that has started later.
        claims.require(claim)
        for record in records:
            if record != _job_address(output):
                storage.delete(record)
    for _ in range(_ATTEMPTS):
        data, generation = storage.read_versioned(_job_address(output))
        ours = _dump({**job, "replaces": claim.is_own, "books": _BOOKS})
        if data == ours or (not overwrite and data is not None and _compare_job(output, job) is not None):
            return claim
        claims.require(claim)
        try:
            if data is None:
                storage.create(_job_address(output), ours)
            else:
                storage.replace(_job_address(output), ours, generation)
        except (storage.AlreadyExists, storage.Conflict):
            continue  # a job that started at the same moment was faster
        return claim
    raise UserError(f"{_job_address(output)} is written by others again and again")


def _shared_reports(output: str) -> list[str]:
    """Names of the reports of an earlier job that has several of each, which this one may have fewer of."""
    try:
        found = _REPORTS.read_if_any(storage.join(output, MANIFEST)) or _Reports()
    except storage.Corrupt:
        return []
    return [name for name in (*found.items, *found.rejects) if REPORT.fullmatch(name) and "-of-" in name]


def open_books(output: str) -> Books:
    """The books of a new run in a folder that it has claimed."""
    return Books(output=output, run=uuid.uuid4().hex[:8], has_old="books" not in (_read_job(output) or {}))


def require_job(output: str, job: dict) -> None:
    """Raises `UserError` if the folder is not the job's any more."""
    if _compare_job(output, job) is None:
        raise UserError(f"{_job_address(output)} is gone: the folder was removed or emptied while this job wrote to it")


def _require_own(output: str) -> None:
    """Raises `UserError` if the folder holds what another kind of job made, or reports that are not this job's."""
    folders.require_kind(output, folders.OUTPUTS)
    reports = [name for name in (ITEMS, REJECTS) if storage.exists(storage.join(output, name))]
    if reports and not any(
        storage.exists(address) for address in (_job_address(output), storage.join(output, MANIFEST))
    ):
        raise UserError(f"{output} holds {reports[0]}, which no inpainting job has left there: choose another folder")


def _job_address(output: str) -> str:
    return storage.join(output, RECORDS, JOB)


def _is_ours(name: str) -> bool:
    """Whether a file, by its path in the output folder, is one that the job writes."""
    if name.startswith(f"{RECORDS}/") or REPORT.fullmatch(name) is not None or name.endswith(_OUTPUTS):
        return True
    return pack_prefix(name) is not None


def _compare_job(output: str, job: dict) -> bool | None:
    """Whether an earlier run of the job was replacing outputs; None without an earlier run.

    Raises:
        UserError: the folder's outputs are of another job.
    """
    earlier = _read_job(output)
    if earlier is None:
        return None
    replaces = earlier["replaces"] is True
    earlier = {key: value for key, value in earlier.items() if key not in _OURS}
    # What an earlier version had no option for, it did as the default does.
    ours, defaults = json.loads(_dump(job)), json.loads(_dump(dataclasses.asdict(Settings())))
    ours, earlier = {**defaults, **ours}, {**defaults, **earlier}
    if changed := [key for key in sorted({*ours, *earlier}) if ours.get(key) != earlier.get(key)]:
        values = [json.dumps(job.get(changed[0])) for job in (ours, earlier)]
        raise UserError(
            f"{output} holds outputs of another job, {changed[0]} is {values[0]} and was {values[1]}: "
            "--overwrite, or choose another folder"
        )
    return replaces


def _read_job(output: str) -> dict | None:
    """What ``job.json`` says; None if there is none. Raises `UserError` for a damaged one."""
    address = _job_address(output)
    data, _ = _JOB.read_versioned(address)
    if data is None:
        return None
    with contextlib.suppress(storage.Corrupt):
        if "replaces" in (found := _JOB.parse(data, address)):
            return found
    raise UserError(f"{address} is damaged: --overwrite, or choose another folder")


# Writing


def write_result(
    result: tuple[Task, Filled | Exception],
    settings: Settings,
    output: str,
    replaces: bool,
    claim: Claim | None = None,
) -> Iterator[Line]:
    """Encodes and writes one output; the line of its record, or of a `Reject` if it could not be made or written."""
    task, _ = result
    try:
        data, details = _encode_result(result, settings)
        claims.require_lately(claim)
        with blame(task.item.image, "write", Unwritable):
            record = write_output(task.item, data, details, output, replaces, task.versions)
    except Rejected as lost:
        yield Line(task.item.share, lost.reject)
    else:
        yield Line(task.item.share, record)


def pack_result(result: tuple[Task, Filled | Exception], settings: Settings) -> Iterator[Packed | Line]:
    """Encodes one output, which is to be packed; or the line of a `Reject` if it could not be made."""
    task, _ = result
    try:
        data, details = _encode_result(result, settings)
    except Rejected as lost:
        yield Line(task.item.share, lost.reject)
    else:
        yield Packed(task.item.share, _describe(task.item, data, details, task.versions), data)


def _encode_result(result: tuple[Task, Filled | Exception], settings: Settings) -> tuple[bytes, dict]:
    """An output, and what its record says of how it was made. Raises `Rejected`."""
    task, filled = result
    begin = time.perf_counter()
    data = make_output(task, filled, settings)
    assert isinstance(filled, Filled)
    height, width = filled.pixels.shape[:2]
    return data, {
        "height": height,
        "width": width,
        "hole_ratio": task.hole_ratio,
        "windows": filled.windows,
        **(task.remarks or {}),
        "seconds": round(task.seconds + filled.seconds + time.perf_counter() - begin, 4),
        **_told(task.metadata),
    }


def make_output(task: Task, filled: Filled | Exception, settings: Settings) -> bytes:
    """The bytes of an output. Raises `Rejected` if the network failed, or the format cannot hold it."""
    with blame(task.item.image, "inpaint", Exception):
        if isinstance(filled, Exception):
            raise filled
    with blame(task.item.image, "encode", Exception):
        return task.copy if task.copy is not None else encode(filled.pixels, task.metadata, settings)


def _told(metadata: pictures.Metadata) -> dict:
    """What a record says of an image file of which not all is in the output."""
    told = {"frames": metadata.frames} if metadata.frames > 1 else {}
    return {**told, "notes": list(metadata.notes)} if metadata.notes else told


def encode(upright: np.ndarray, metadata: pictures.Metadata, settings: Settings) -> bytes:
    stored = rgb.turn_back(upright, metadata.orientation)
    return pictures.encode(pictures.Picture(stored, metadata), settings.format, settings.quality)


def write_output(
    item: Item, data: bytes, details: dict, output: str, replaces: bool, made_of: Sequence[Version] = ()
) -> dict:
    """Writes one output; returns its record, for the books.

    Args:
        item: what was inpainted.
        data: the output.
        details: fields of the record beside the item's.
        output: address of the output folder.
        replaces: whether an existing output may be replaced.
        made_of: the files that the output was made of.

    Raises:
        Unwritable: a file with other contents exists, and must not be replaced; or the name is too long.
    """
    address = storage.join(output, item.output)
    if replaces:
        storage.overwrite(address, data)
    else:
        try:
            create_or_compare(address, data)
        except Unwritable:
            if not is_own(address, item.earlier, data):
                raise
            storage.overwrite(address, data)
    return _describe(item, data, details, made_of, storage.stamp(address, own=True))


def _describe(item: Item, data: bytes, details: dict, made_of: Sequence[Version], stamp: str = "") -> dict:
    """The record of an output."""
    line = {**item.describe(), **details, "bytes": len(data), "crc32c": storage.crc32c(data), "status": "done"}
    versions = [(version.bytes, version.crc32c, version.stamp) for version in made_of]
    return {**line, "stamp": stamp, "versions": versions}
