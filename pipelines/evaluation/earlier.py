"""The report that an output folder holds already: whose it is, and whether the same evaluation made it.

The same command replaces its report. Those of other networks, data or options are results that somebody may want.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines.evaluation.job import FILES, Job, describe_methods
from trainer import storage
from trainer.data import folders
from trainer.documents import Form
from trainer.errors import UserError

METRICS, PAIRS = "metrics.json", "pairs.jsonl"
_HEAD = 1 << 16  # bytes of pairs.jsonl that its first line is in


class _Report(BaseModel):
    """What is read of metrics.json."""

    model_config = ConfigDict(extra="ignore")

    data: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    methods: list[dict[str, Any]] = []
    lpips: dict[str, Any] | None = None
    fid: dict[str, Any] | None = None


_FORM: Form[_Report] = Form("the metrics of an evaluation", _Report, max_bytes=1 << 26)


def _identity(report: _Report) -> dict[str, Any]:
    """What decides on the numbers of a report. What has a checksum may lie elsewhere by now."""
    found: dict[str, Any] = {}
    for name, facts in sorted(report.data.items()):
        if isinstance(facts, dict):  # of a dataset its checksum, and whatever there is of files
            keys = ("crc32c", "split") if "crc32c" in facts else sorted(facts)
            found |= {f"{name}.{key}": facts.get(key) for key in keys}
        else:
            found[name] = facts
    found |= report.parameters
    found["methods"] = [{key: method[key] for key in ("name", "crc32c") if key in method} for method in report.methods]
    for name, weights in (("lpips", report.lpips), ("fid", report.fid)):
        found[name] = weights and weights.get("crc32c")
    return found


def require_same(job: Job, overwrite: bool) -> None:
    """Checks that a job may write its report into its output folder.

    Args:
        overwrite: whether the report of another evaluation may be replaced.

    Raises:
        UserError: the folder holds what another kind of job made, or without ``overwrite`` another report; the message
            names the first difference.
    """
    output = job.output
    folders.require_kind(output, folders.REPORT)
    address = storage.join(output, METRICS)
    if overwrite:
        return
    if not storage.exists(address):
        _require_own_files(output)
        return
    try:
        there = _FORM.read(address)
    except UserError:  # cut short
        return
    now = {**job.fields, "methods": describe_methods(job)}
    now |= {name: weights and weights._asdict() for name, weights in (("lpips", job.lpips), ("fid", job.fid))}
    ours, theirs = (_identity(report) for report in (_FORM.parse(json.dumps(now).encode(), address), there))
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{output} holds the report of another evaluation, {key} is {json.dumps(ours.get(key))} and was "
                f"{json.dumps(theirs.get(key))}: --overwrite, or choose another folder"
            )


def _require_own_files(output: str) -> None:
    """Raises `UserError` for files of a report's names that no evaluation left, not even one that was killed.

    One that was has left its pairs, or those of the report that it was to replace.
    """
    there = [name for name in FILES if storage.exists(storage.join(output, name))]
    if PAIRS in there and _is_pairs(storage.read_range(storage.join(output, PAIRS), 0, _HEAD)):
        return
    if there:
        raise UserError(f"{output} holds {there[0]}, which no evaluation has left there: choose another folder")


def _is_pairs(head: bytes) -> bool:
    try:
        return {"pair", "method"} <= json.loads(head.partition(b"\n")[0]).keys()
    except (ValueError, AttributeError, RecursionError):
        return not head
