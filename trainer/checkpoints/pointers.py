"""Pointers to the newest and the best checkpoint of a run: two small files, moved by compare-and-swap.

    RUN/checkpoints/latest.json   checkpoint, step, crc32c (of its manifest), writer
                    best.json     the same, metric and value

Nobody can tell whether a silent writer is dead or slow, so writers take turns: a writer that starts puts its
name into the pointers (`claim`), and from then on no other writer can move them. The checkpoint is null
between the first claim and the first checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

from trainer import storage
from trainer.documents import Count, Crc32c, Form, Text
from trainer.errors import UserError

LATEST, BEST = "latest", "best"
FOLDER_NAME = r"^step-([0-9]{8,16})-[0-9a-f]{8}$"  # of a checkpoint; a pointer names nothing else
_ATTEMPTS = 100  # each failed one means that another writer's succeeded


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A checkpoint that cannot change: its folder and the crc32c of its manifest, which holds those of the rest."""

    address: str
    crc32c: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """A validation metric of one checkpoint."""

    metric: str
    value: float
    higher_is_better: bool

    def beats(self, value: float) -> bool:
        """Whether it is better than ``value``; NaN is worse than any number."""
        if math.isnan(self.value) or math.isnan(value):
            return not math.isnan(self.value)
        return self.value > value if self.higher_is_better else self.value < value


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Contents of a pointer. All but ``writer`` are None before the first checkpoint, ``writer`` before a claim."""

    # A later version may add fields. The values of some metrics are infinite.
    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")

    checkpoint: Annotated[str, Field(pattern=FOLDER_NAME)] | None
    step: Count | None = None
    crc32c: Crc32c | None = None
    writer: Text | None = None
    metric: Text | None = None
    value: float | None = None

    def pin(self, run: str) -> Pin | None:
        if self.checkpoint is None or self.crc32c is None:
            return None
        return Pin(address=storage.join(folder(run), self.checkpoint), crc32c=self.crc32c)


def folder(run: str) -> str:
    """Address of the folder with a run's checkpoints and pointers."""
    return storage.join(run, "checkpoints")


def address_of(run: str, which: str) -> str:
    return storage.join(folder(run), f"{which}.json")


_EMPTY = Pointer(checkpoint=None)
_FORM: Form[Pointer] = Form("a pointer to a checkpoint", Pointer, error=storage.Corrupt)


def _parse(data: bytes, address: str) -> Pointer:
    pointer = _FORM.parse(data, address)
    name, step = pointer.checkpoint, pointer.step
    if (step is None) != (name is None) or (pointer.crc32c is None) != (name is None):
        raise storage.Corrupt(f"{address} is not {_FORM.name}: expected a checkpoint with its step and crc32c.")
    if name is not None and int(name.split("-")[1]) != step:
        raise storage.Corrupt(f"{address} is not {_FORM.name}: expected the step of {name}. Received {step}.")
    return pointer


def read(run: str, which: str) -> Pointer | None:
    """The pointer; None if it was not written yet. Raises `Corrupt` if it is damaged."""
    data, _ = _FORM.read_versioned(address_of(run, which))
    return None if data is None else _parse(data, address_of(run, which))


def _read_for_writing(run: str, which: str) -> tuple[Pointer, bytes | None, object]:
    """A pointer, its bytes and their generation; a damaged one counts as empty, so that writing repairs it."""
    data, generation = _FORM.read_versioned(address_of(run, which))
    try:
        return _EMPTY if data is None else _parse(data, ""), data, generation
    except storage.Corrupt:
        return _EMPTY, data, generation


def _swap(run: str, which: str, change: Callable[[Pointer], Pointer | None]) -> bool:
    """Replaces a pointer by ``change(pointer)``, retried if another writer was faster; False if that is None."""
    for _ in range(_ATTEMPTS):
        now, data, generation = _read_for_writing(run, which)
        target = change(now)
        if target is None:
            return False
        fields = dataclasses.asdict(target)
        if which == LATEST:
            del fields["metric"], fields["value"]
        packed = json.dumps(fields, sort_keys=True).encode()
        if packed == data:  # already there: the answer to an earlier attempt was lost
            return True
        try:
            storage.replace(address_of(run, which), packed, generation)
            return True
        except storage.Conflict:
            pass
    raise storage.Conflict(address_of(run, which))


def claim(run: str) -> str:
    """Makes the caller the run's only writer; returns the writer's name for the functions below."""
    writer = os.urandom(8).hex()
    _swap(run, LATEST, lambda now: dataclasses.replace(now, writer=writer))
    if storage.exists(address_of(run, BEST)):
        _swap(run, BEST, lambda now: dataclasses.replace(now, writer=writer))
    return writer


def _require_turn(run: str, now: Pointer, writer: str | None) -> None:
    if writer is not None and now.writer not in (None, writer):
        raise UserError(f"{run} is being written by another process, which started later than this one")


def require_turn(run: str, writer: str | None) -> None:
    """Raises `UserError` if another writer has claimed the run since ``writer`` did; None never fails."""
    _require_turn(run, _read_for_writing(run, LATEST)[0], writer)


def move_latest(run: str, pin: Pin, step: int, writer: str | None, is_whole: Callable[[Pin], bool]) -> bool:
    """Points ``latest`` to a checkpoint; returns whether it did.

    It goes back to an earlier step only if the checkpoint it names now cannot be read.

    Args:
        writer: from `claim`; None for a program that writes one checkpoint without a claim.
        is_whole: whether the checkpoint of a pin can be read.

    Raises:
        UserError: another writer has claimed the run.
    """

    def change(now: Pointer) -> Pointer | None:
        _require_turn(run, now, writer)
        ours, current = _target(pin, step, now, writer), now.pin(run)
        is_newer = now.step is not None and now.step > step
        if current is not None and is_newer and ours.checkpoint != now.checkpoint and is_whole(current):
            return None
        return ours

    return _swap(run, LATEST, change)


def move_best(run: str, pin: Pin, step: int, score: Score, writer: str | None) -> bool:
    """Points ``best`` to a checkpoint if its score is better than the one there, or one of another metric.

    Returns and raises as `move_latest` does.
    """

    def change(now: Pointer) -> Pointer | None:
        _require_turn(run, now, writer)
        ours = dataclasses.replace(_target(pin, step, now, writer), metric=score.metric, value=score.value)
        rival = now.value if now.metric == score.metric and now.checkpoint is not None else None
        better = not math.isnan(score.value) if rival is None else score.beats(rival)
        return ours if better or ours == now else None

    return _swap(run, BEST, change)


def _target(pin: Pin, step: int, now: Pointer, writer: str | None) -> Pointer:
    return Pointer(checkpoint=pin.address.rpartition("/")[2], step=step, crc32c=pin.crc32c, writer=writer or now.writer)
