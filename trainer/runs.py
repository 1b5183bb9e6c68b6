"""A training run's folder: its config.json and data.json, who may change them, and its summary.json.

Layout:

    RUN/config.json     the resolved `TrainConfig`; a run that continues may change only what no step computes with
    RUN/data.json       the records that it trains on; runs of earlier versions get it when they continue
    RUN/checkpoints/    see `trainer.checkpoints`
    RUN/exports/        see `trainer.inference.export_formats`
    RUN/logs/           see `trainer.tensorboard` and `RunLog`
    RUN/summary.json    results of the run's last process; written when it ends
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from trainer import documents, presets, storage
from trainer.command import code_version, printable
from trainer.config import TrainConfig
from trainer.data import manifest
from trainer.documents import Crc32c, Form, Text
from trainer.errors import ConfigChanged, NotFound, Outage, UserError
from trainer.storage import recognize

if TYPE_CHECKING:  # light commands import this module, and checkpoints load NumPy and h5py
    from trainer.checkpoints.pointers import Pin

CONFIG, DATA, SUMMARY, LOGS = "config.json", "data.json", "summary.json", "logs"
DATASETS = ("images", "masks")
CARD = "card.json"  # of an export

_SUMMARY = documents.Form[dict[str, Any]]("the summary of a run", dict[str, documents.Json])
_ATTEMPTS = 100  # each failed one means that another process's succeeded

# What may change when a run continues: none of these alter what a step computes.
_FREE = ("scaling.", "checkpoint.", "validation.", "log_every", "skip_nonfinite")


def _read_config(run: str) -> tuple[TrainConfig | None, object]:
    """The run's config, None if it has none yet, and the generation of the file."""
    address = storage.join(run, CONFIG)
    data, generation = storage.read_versioned(address, documents.MAX_BYTES)
    try:
        return (None if data is None else presets.from_json(data)), generation
    except ValueError as error:
        raise UserError(f"{address} is not a config: {error}") from None


def find_config(run: str) -> TrainConfig | None:
    """The config of a run, None if it has not begun; raises `UserError` if it cannot be read."""
    return _read_config(run)[0]


def read_config(run: str) -> TrainConfig:
    """The config of an existing run.

    Raises:
        UserError: the folder does not exist, is not a run's, or its config cannot be read.
    """
    config = find_config(run)
    if config is None:
        raise explain_missing(run)
    return config


def explain_missing(run: str) -> UserError:
    """What to say of a folder that is not the folder of a training run, or that of a checkpoint in one."""
    thing = recognize.look(run)
    if thing.kind == "nothing":
        return NotFound(f"run {run} does not exist")
    advice = f"{run} is {thing.what}"
    if thing.kind in ("export", "network"):
        return UserError(f"{advice}. Expected the folder of a training run (inpaint takes a .keras file as --model).")
    if thing.kind == "checkpoint" and thing.whole:
        which = "inpaint and export: --checkpoint STEP, evaluate: RUN@STEP"
        return UserError(f"{advice}. Expected the run: {thing.whole} ({which}).")
    if thing.whole and "training run" in thing.what:
        return UserError(f"{advice}. Expected the folder of a training run: {thing.whole}.")
    return UserError(f"{run} has no {CONFIG}: it is not the folder of a training run, but {thing.what}")


def compare_config(run: str, config: TrainConfig, allowed: Collection[str] = ()) -> object:
    """Checks that a run may start or continue with ``config``; returns the generation of its ``config.json``.

    Args:
        allowed: dotted keys whose values may differ, besides those that alter no step's computation.

    Raises:
        ConfigChanged: other keys differ; the message names them.
        UserError: the run's ``config.json`` is not a config.
    """
    present, generation = _read_config(run)
    if present is None:
        return generation
    ours, theirs = presets.flatten(config), presets.flatten(present)
    changed = [key for key in ours if ours[key] != theirs[key] and key not in allowed and not key.startswith(_FREE)]
    if changed:
        listed = ", ".join(f"{key} is {theirs[key]}, asked for {ours[key]}" for key in changed)
        raise ConfigChanged(f"{run} was started with another config: {listed}.")
    return generation


def settle_config(run: str, config: TrainConfig, allowed: Collection[str] = ()) -> None:
    """Writes ``config.json`` of a new run, or of one that continues with permitted changes; raises as `compare_config`.

    Of several processes that start at the same moment each finds what a faster one wrote, and compares with that.
    """
    _settle(run, CONFIG, presets.to_json(config), lambda: compare_config(run, config, allowed))


def _settle(run: str, name: str, data: bytes, compare: Callable[[], object]) -> None:
    """Writes a document of the run; ``compare()`` checks what is there and returns its generation."""
    storage.confine(run)
    address = storage.join(run, name)
    for _ in range(_ATTEMPTS):
        generation = compare()
        if storage.read_versioned(address)[0] == data:
            return
        try:
            return storage.replace(address, data, generation)
        except storage.Conflict:
            pass
    raise UserError(f"{address} is changed by other processes again and again")


@dataclass(frozen=True, kw_only=True)
class Records:
    """Records that a run trains on.

    Attributes:
        address: of their dataset.
        split: of it.
        crc32c: from `manifest.digest`; it alone says whether records are the same, for a dataset may move.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")

    address: str
    split: Text
    crc32c: Crc32c

    @classmethod
    def of(cls, address: str, kind: str, split: str) -> Records:
        """Those of a split of a dataset; raises as `manifest.load_manifest` does."""
        shards = manifest.load_manifest(address, kind).split(split)
        return cls(address=address, split=split, crc32c=manifest.digest(shards))

    def __str__(self) -> str:
        return f"{self.address}, split {self.split}, crc32c {self.crc32c}"


_DATA: Form[dict[str, Records]] = Form("the data of a run", dict[str, Records])


def compare_data(run: str, data: Mapping[str, Records], allowed: Collection[str] = ()) -> object:
    """Checks that a run may start or continue with ``data``; returns the generation of its ``data.json``.

    Args:
        data: by name, one of `DATASETS`.
        allowed: names of those that may be others.

    Raises:
        ConfigChanged: the run trained on other records; the message names them.
        UserError: the run's ``data.json`` is damaged.
    """
    address = storage.join(run, DATA)
    found, generation = _DATA.read_versioned(address)
    present = {} if found is None else _DATA.parse(found, address)
    for name, theirs in present.items():
        ours = data.get(name)
        if ours is not None and ours.crc32c != theirs.crc32c and name not in allowed:
            raise ConfigChanged(f"{run} was started with other {name}: {theirs}. Asked for {ours}.")
    return generation


def settle_data(run: str, data: Mapping[str, Records], allowed: Collection[str] = ()) -> None:
    """Writes ``data.json``, as `settle_config` does ``config.json``; raises as `compare_data`."""
    described = {name: dataclasses.asdict(records) for name, records in data.items()}
    packed = json.dumps(described, indent=1, sort_keys=True).encode()
    _settle(run, DATA, packed, lambda: compare_data(run, data, allowed))


def plain(value: Any) -> Any:
    """``value``, nested dicts and lists, as strict JSON: keys become strings, NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarized_step(run: str) -> int | None:
    """The last step that the run's summary tells of; None if there is no summary, or one that cannot be read."""
    try:
        step = (_SUMMARY.read_if_any(storage.join(run, SUMMARY)) or {}).get("step")
    except UserError:
        return None
    return step if isinstance(step, int) else None


def write_summary(run: str, pins: dict[str, Pin | None], export: str, export_files: dict[str, str], facts: dict) -> str:
    """Writes the summary, replacing an earlier one; returns its address.

    Args:
        pins: checkpoints by name: ``latest``, ``best``.
        export: the export's folder.
        export_files: crc32c of its files by name.
        facts: other JSON values, such as ``steps`` and ``seconds``.
    """
    checkpoints = {name: dataclasses.asdict(pin) if pin else None for name, pin in pins.items()}
    summary = {
        **facts,
        "checkpoints": checkpoints,
        "export": {"address": export, "crc32c": export_files},
        "code_version": code_version(),
    }
    address = storage.join(run, SUMMARY)
    storage.confine(run)
    storage.overwrite(address, json.dumps(plain(summary), indent=1, sort_keys=True).encode())
    return address


def is_exported(run: str, step: int) -> bool:
    """Whether the run's summary tells of ``step``, and its export is there as the summary says."""
    try:
        summary = _SUMMARY.read_if_any(storage.join(run, SUMMARY)) or {}
        export = summary.get("export")
        if summary.get("step") != step or not isinstance(export, dict):
            return False
        folder = export.get("address")
        if not isinstance(folder, str) or not folder.startswith(run + "/"):  # the run was copied here
            return False
        listed = export.get("crc32c")
        if not isinstance(listed, dict) or not listed:
            return False
        files = {storage.relative(file, folder): storage.checksum(file) for file in storage.find(folder)}
        # More formats may have been exported since; the card names their files, too.
        return all(name in files and (name == CARD or files[name] == crc32c) for name, crc32c in listed.items())
    except UserError:
        return False


class RunLog:
    """What a training has printed, kept in the run's folder after its machines are gone.

        RUN/logs/20261126T031500-a1b2/driver.log           what the command printed, and why it ended
        RUN/logs/20261126T031500-a1b2/10.128.0.7-421.log   what the process 421 of a machine printed

    A file is written whole as it grows, until it is large enough for the next one, ``driver.1.log``, to begin. What
    cannot be written is tried again with what comes next, and does not disturb training.

    Args:
        run: address of the run's folder.
        every: seconds between two writes.
        file_bytes: size from which a file gets no more lines.
    """

    def __init__(self, run: str, every: float = 30.0, file_bytes: int = 1 << 20):
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"
        storage.confine(run)
        self._folder = storage.join(run, LOGS, name)
        self._every, self._file_bytes = every, file_bytes
        self._texts: dict[str, bytearray] = {}  # by name, of the file that grows
        self._parts: dict[str, int] = {}
        self._changed: dict[str, bytes | bytearray] = {}  # by address, what is not in the store yet
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._write_again_and_again, name="run log", daemon=True)

    def __enter__(self) -> RunLog:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError | Outage):
            self.add("driver", [f"error: {error}"])
        elif error is not None:
            self.add("driver", "".join(traceback.format_exception(error)).splitlines())
        self._over.set()
        self._thread.join()
        if why := self._write():
            print(f"could not write {self._folder}: {printable(str(why))}", file=sys.stderr)

    def show(self, line: str) -> None:
        """Prints a line, and keeps it."""
        print(printable(line), flush=True)
        self.add("driver", [line])

    def add(self, source: str, lines: Iterable[str]) -> None:
        """Keeps lines of a process."""
        name = re.sub(r"[^\w.-]", "_", source)
        with self._lock:
            text = self._texts.setdefault(name, bytearray())
            if len(text) >= self._file_bytes:
                self._parts[name] = self._parts.get(name, 0) + 1
                text = self._texts[name] = bytearray()
            for line in lines:
                text += line.encode(errors="replace") + b"\n"
            part = f".{self._parts[name]}" if name in self._parts else ""
            self._changed[storage.join(self._folder, f"{name}{part}.log")] = text

    def _write_again_and_again(self) -> None:
        while not self._over.wait(self._every):
            self._write()

    def _write(self) -> Exception | None:
        """Writes what has changed; returns the error if that failed."""
        with self._lock:
            changed, self._changed = {address: bytes(text) for address, text in self._changed.items()}, {}
        for address in list(changed):
            try:
                storage.overwrite(address, changed[address])
            except Exception as error:
                with self._lock:
                    self._changed = {**changed, **self._changed}
                return error
            del changed[address]
        return None
