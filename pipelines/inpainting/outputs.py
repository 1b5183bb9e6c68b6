"""Outputs of the inpainting job: the output folder, and how a second run skips what is finished.

OUTPUT/x/a.png               an output
       manifest.json         model, parameters, counts; written last
       items.jsonl           one line per input: status, hole ratio, whether it had no holes, windows, seconds, crc32c;
                             frames, if the file has several (the first is read), and notes on what was left out of it
       rejects.jsonl         one line per input that could not be used
       .items/job.json       model and parameters that all outputs share
              x/a.png.json   the output's line of items.jsonl, its stamp, and the versions of the files that it was
                             made of, written after it: a second run skips the output if all are as they were
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from pipelines.inpainting.colors import Ring, warn_of_rings
from pipelines.inpainting.inputs import ITEMS, MANIFEST, REJECTS, Item, MatchError
from pipelines.inpainting.loading import Settings, Task
from pipelines.inpainting.versions import (
    RECORDS,
    Version,
    files_of,
    is_finished,
    is_own,
    read_record,
    record_address,
    record_name,
    source_of,
)
from pipelines.transforms.dataset_writer import create_or_compare
from pipelines.transforms.model_handler import Filled
from pipelines.transforms.progress import Progress
from pipelines.transforms.rejects import FAULTS, REJECTED, Reject, Rejected, blame, reject, reject_lines
from trainer import storage
from trainer.data import folders
from trainer.documents import Form, Json
from trainer.errors import Unwritable, UserError
from trainer.images import EXTENSIONS, pictures, rgb
from trainer.storage import claims, names
from trainer.storage.claims import Claim

JOB = "job.json"
_OUTPUTS = tuple(EXTENSIONS.values())
_ATTEMPTS = 100  # each failed one means that another job's succeeded


_JOB: Form[dict] = Form("the job of an output folder", dict[str, Json], error=storage.Corrupt)
FINISHED = "finished"  # tag of items whose output need not be made again
STALE = "stale"  # of those that it turns out to be made again for


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


# At launch


def claim_output(output: str, job: dict, overwrite: bool) -> Claim:
    """Claims and prepares the output folder. Existing outputs may be replaced if the claim is the job's own.

    Args:
        output: address of the folder.
        job: the model and all parameters that the pixels of an output depend on.
        overwrite: forget what an earlier run finished.

    Raises:
        UserError: the folder has outputs of another model or other parameters, or something else, is not writable,
            has a link where records are written, or is claimed by another job.
    """
    storage.require_writable(output)
    storage.require_confined(storage.join(output, RECORDS))
    _require_own(output)
    # A run that resumes one that was replacing outputs goes on replacing them.
    claim = claims.take(output, replaces=overwrite or _compare_job(output, job) is True)
    storage.sweep(output, _is_ours)
    storage.delete(storage.join(output, MANIFEST))
    if overwrite:
        records = [name for name in storage.find(storage.join(output, RECORDS)) if name.endswith(".json")]
        # Listed before: nothing in the list is of a job that has started later.
        claims.require(claim)
        for record in records:
            if record != _job_address(output):
                storage.delete(record)
    for _ in range(_ATTEMPTS):
        data, generation = storage.read_versioned(_job_address(output))
        ours = _dump({**job, "replaces": claim.is_own})
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
    return name.startswith(f"{RECORDS}/") or name in (MANIFEST, ITEMS, REJECTS) or name.endswith(_OUTPUTS)


def _compare_job(output: str, job: dict) -> bool | None:
    """Whether an earlier run of the job was replacing outputs; None without an earlier run.

    Raises:
        UserError: the folder's outputs are of another job.
    """
    address = _job_address(output)
    data, _ = _JOB.read_versioned(address)
    if data is None:
        return None
    try:
        earlier = _JOB.parse(data, address)
        replaces = earlier.pop("replaces") is True
    except (storage.Corrupt, KeyError):
        raise UserError(f"{address} is damaged: --overwrite, or choose another folder") from None
    # What an earlier version had no option for, it did as the default does.
    ours, defaults = json.loads(_dump(job)), json.loads(_dump(dataclasses.asdict(Settings())))
    ours, earlier = {**defaults, **ours}, {**defaults, **earlier}
    if changed := [key for key in sorted({*ours, *earlier}) if ours.get(key) != earlier.get(key)]:
        values = [json.dumps(job.get(changed[0])) for job in (ours, earlier)]
        raise UserError(
            f"{output} holds outputs of another job, {changed[0]} is {values[0]} and was {values[1]}: "
            "--overwrite, or choose another folder"
        )
    return bool(replaces)


# Skipping what is finished


def list_existing(output: str) -> Iterator[tuple[str, str]]:
    """(`record_name` of an output, what exists of it: ``record`` or ``output``), for all that an earlier run left."""
    records = storage.join(output, RECORDS)
    left = [(storage.relative(address, records).removesuffix(".json"), "record") for address in storage.find(records)]
    left += [(record_name(storage.relative(address, output)), "output") for address in storage.find(output)]
    yield from ((name, kind) for name, kind in left if names.is_text(name))  # others are nothing of ours


def skip_finished(group: tuple[str, dict[str, Iterable]]) -> Iterator[Item | beam.pvalue.TaggedOutput]:
    """The item of one output, tagged `FINISHED` if record and output exist. Several items for it are all rejected.

    Args:
        group: `record_name` of the output, its ``items``, and what exists of it: see `list_existing`.
    """
    _, found = group
    items = sorted(found["items"])
    if len(items) > 1:
        error = MatchError(f"expected one image for each output. Received {len(items)} for {items[0].output}.")
        yield from (beam.pvalue.TaggedOutput(REJECTED, reject(item.image, "match", error)) for item in items)
    elif items and {"record", "output"} <= set(found["existing"]):
        yield beam.pvalue.TaggedOutput(FINISHED, items[0])
    elif items:
        yield items[0]


def recall(item: Item, output: str) -> Iterator[dict | beam.pvalue.TaggedOutput]:
    """The record of a finished item, or a tagged `Reject` if its output was made of other files.

    The item itself, tagged `STALE`, if its output, or a file that it was made of, is not as it was then.
    """
    try:
        with blame(item.image, "resume", (*FAULTS, KeyError, TypeError)):
            record = read_record(item, output)
            if record and (source := source_of(record)) != files_of(item):
                raise UserError(
                    f"{storage.join(output, item.output)} is of {' and '.join(filter(None, source))}: "
                    "--overwrite, or choose another folder"
                )
            is_current = record is not None and is_finished(record, item, output)
    except Rejected as lost:
        yield beam.pvalue.TaggedOutput(REJECTED, lost.reject)
    else:
        if record is None or not is_current:
            yield beam.pvalue.TaggedOutput(STALE, item)
        else:
            known = {key: value for key, value in record.items() if key not in ("stamp", "made_of")}
            yield {**known, "status": "finished before"}


# Writing


def write_result(
    result: tuple[Task, Filled | Exception],
    settings: Settings,
    output: str,
    replaces: bool,
    claim: Claim | None = None,
) -> Iterator[dict | beam.pvalue.TaggedOutput]:
    """Encodes and writes one output; its record, or a tagged `Reject` if it could not be computed or written."""
    task, filled = result
    begin, address = time.perf_counter(), task.item.image
    try:
        with blame(address, "inpaint", Exception):
            if isinstance(filled, Exception):
                raise filled
        with blame(address, "encode", Exception):
            data = task.copy if task.copy is not None else _encode(filled.pixels, task.metadata, settings)
        claims.require(claim)
        with blame(address, "write", Unwritable):
            height, width = filled.pixels.shape[:2]
            details = {
                "height": height,
                "width": width,
                "hole_ratio": task.hole_ratio,
                "windows": filled.windows,
                **(task.remarks or {}),
                "seconds": round(task.seconds + filled.seconds + time.perf_counter() - begin, 4),
                **_told(task.metadata),
            }
            record = write_output(task.item, data, details, output, replaces, task.versions)
    except Rejected as lost:
        yield beam.pvalue.TaggedOutput(REJECTED, lost.reject)
    else:
        yield record


def _told(metadata: pictures.Metadata) -> dict:
    """What a record says of an image file of which not all is in the output."""
    told = {"frames": metadata.frames} if metadata.frames > 1 else {}
    return {**told, "notes": list(metadata.notes)} if metadata.notes else told


def _encode(upright: np.ndarray, metadata: pictures.Metadata, settings: Settings) -> bytes:
    stored = rgb.turn_back(upright, metadata.orientation)
    return pictures.encode(pictures.Picture(stored, metadata), settings.format, settings.quality)


def write_output(
    item: Item, data: bytes, details: dict, output: str, replaces: bool, made_of: Sequence[Version] = ()
) -> dict:
    """Writes one output, then its record; returns the line of ``items.jsonl``.

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
            if not is_own(address, item, data, output):
                raise
            storage.overwrite(address, data)
    line = {**item.describe(), **details, "bytes": len(data), "crc32c": storage.crc32c(data), "status": "done"}
    versions = [dataclasses.asdict(version) for version in made_of]
    record = {**line, "stamp": storage.stamp(address, own=True), "made_of": versions}
    storage.overwrite(record_address(output, item.output), _dump(record))
    return line


def write_outcome(
    outputs: int,
    folder: str,
    fields: dict,
    records: list[dict],
    rejects: list[Reject],
    claim: Claim | None = None,
    job: dict | None = None,
) -> None:
    """Writes ``items.jsonl`` and ``rejects.jsonl``, then ``manifest.json`` with the counts and what to warn of.

    Args:
        outputs: number of ``records``.
        folder: address of the output folder.
        fields: of the manifest: model, parameters and code version.
        records: of all outputs.
        rejects: of all other inputs.
        claim, job: from `claim_output`, and as it takes it.

    Raises:
        UserError: outputs are gone, or the folder is of another job by now.
    """
    claims.require(claim)
    if job is not None and _compare_job(folder, job) is None:
        raise UserError(f"{_job_address(folder)} is gone: the folder was removed or emptied while this job wrote to it")
    made = {record["output"]: (record["bytes"], record["crc32c"]) for record in records if record["status"] == "done"}
    claims.require_files(folder, {**dict.fromkeys(record["output"] for record in records), **made})
    # Records of earlier versions have no field that says so.
    records = [{**record, "without_holes": record.get("hole_ratio") == 0} for record in records]
    lines = [(record["image"], record["mask"], _dump(record)) for record in records]
    lines += [(lost.source, "", _dump(_failure(lost))) for lost in rejects]
    before = sum(record["status"] != "done" for record in records)
    counts = {"inputs": outputs + len(rejects), "outputs": outputs, "rejects": len(rejects), "finished_before": before}
    counts["without_holes"] = sum(record["without_holes"] for record in records)
    if several := sum(record.get("frames", 1) > 1 for record in records):
        counts["several_frames"] = several
    storage.overwrite(storage.join(folder, ITEMS), b"".join(line for *_, line in sorted(lines)))
    storage.overwrite(storage.join(folder, REJECTS), reject_lines(rejects))
    warnings = warn_of_rings([Ring(**record["ring"]) for record in records if record.get("ring")])
    manifest = json.dumps({**fields, "counts": counts, "warnings": warnings}, indent=1, sort_keys=True).encode()
    claims.publish(claim, storage.join(folder, MANIFEST), manifest, storage.overwrite)


def _failure(lost: Reject) -> dict:
    """The line of ``items.jsonl`` of a reject."""
    return {"image": lost.source, "status": "rejected", "stage": lost.stage, "error": lost.error}


# Reporting


class ReportItems(beam.DoFn):
    """Passes outcomes (records as dicts, and `Reject`s) on, counts them, and prints `Progress`.

    Args:
        total: number of outcomes in all processes, as far as known at launch.
    """

    def __init__(self, total: int):
        super().__init__()
        self._progress = Progress("images", total)
        count, spread = beam.metrics.Metrics.counter, beam.metrics.Metrics.distribution
        self._counts = {name: count("pconv", name) for name in ("outputs", "rejects", "finished_before", "windows")}
        self._spreads = {name: spread("pconv", name) for name in ("hole_permille", "milliseconds", "output_bytes")}

    def setup(self):
        self._progress.start()

    def process(self, outcome: dict | Reject):
        is_new = isinstance(outcome, Reject) or outcome["status"] == "done"
        if isinstance(outcome, Reject):
            self._counts["rejects"].inc()
        else:
            self._counts["outputs"].inc()
            if is_new:
                self._counts["windows"].inc(outcome["windows"])
                self._spreads["hole_permille"].update(round(1000 * outcome["hole_ratio"]))
                self._spreads["milliseconds"].update(round(1000 * outcome["seconds"]))
                self._spreads["output_bytes"].update(outcome["bytes"])
            else:
                self._counts["finished_before"].inc()
        self._progress.add(is_new)
        yield outcome
