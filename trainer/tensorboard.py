"""TensorBoard event files of a run, written and read, in a local folder or a bucket.

    RUN/logs/events.out.tfevents.1790000000.00000400.0000     created at a time by a process that began after step 400

Events are collected in memory and a file is rewritten whole as it grows, until it is large enough for the next one to
begin; so it needs an object store, not a file system. Each process begins with an event that tells TensorBoard to drop
what an earlier process logged beyond its first step; `read_curves` does the same.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from PIL import Image

from trainer import storage
from trainer.data import records

FOLDER = "logs"
MAX_POINTS = 200  # of a curve
_PREFIX = "events.out.tfevents."
_FILE_BYTES = 1 << 20
_EVERY = 30.0  # minimum seconds between two writes, except for the last

Curve = list[tuple[int, float]]  # (step, value)


class EventLog:
    """Writes the events of one process; a write that fails is retried with the next events.

    Args:
        run: address of the run's folder.
        step: steps done when this process began.
        every: minimum seconds between two writes.
        file_bytes: size from which a file gets no more events.
    """

    def __init__(self, run: str, step: int, every: float = _EVERY, file_bytes: int = _FILE_BYTES):
        storage.confine(run)
        # TensorBoard reads the files of a folder in name order.
        self._name = storage.join(run, FOLDER, f"{_PREFIX}{int(time.time()):010d}.{step:08d}")
        self._every, self._file_bytes = every, file_bytes
        self._part, self._written_at = 0, -math.inf
        self._data, self._changed = bytearray(), False
        self._pending: dict[str, bytes] = {}  # by address, what is not in the store yet
        self._thread = ThreadPoolExecutor(1, "logs")
        self._upload: Future | None = None
        self._begin_file(step)
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        self._add(tf.compat.v1.Event(wall_time=time.time(), step=step, session_log=start))

    def _begin_file(self, step: int) -> None:
        self._data = bytearray()
        self._add(tf.compat.v1.Event(wall_time=time.time(), step=step, file_version="brain.Event:2"))

    def _add(self, event) -> None:
        self._data += records.frame_records([event.SerializeToString()])
        self._changed = True

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by tag, such as ``loss/total``."""
        summary = tf.compat.v1.Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self._add(tf.compat.v1.Event(wall_time=time.time(), step=step, summary=summary))

    def add_image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [height, width, 3]."""
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        height, width, _ = image.shape
        summary = tf.compat.v1.Summary()
        encoded = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": file.getvalue()}
        summary.value.add(tag=tag, image=tf.compat.v1.Summary.Image(**encoded))
        self._add(tf.compat.v1.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self, step: int) -> BaseException | None:
        """Starts writing new events in the background if it is time to; returns the error of the last write, if any."""
        if self._upload is not None and not self._upload.done():
            return None
        error = self._result()
        if time.monotonic() >= self._written_at + self._every:
            self._begin_upload()
            if len(self._data) >= self._file_bytes:
                self._part += 1
                self._begin_file(step)
        return error

    def close(self) -> BaseException | None:
        """Writes what is left; returns the error if that failed."""
        self._result()
        self._begin_upload()
        error = self._result()
        self._thread.shutdown()
        return error

    def _begin_upload(self) -> None:
        if self._changed:
            self._pending[f"{self._name}.{self._part:04d}"] = bytes(self._data)
            self._changed = False
        self._written_at = time.monotonic()
        self._upload = self._thread.submit(self._write, list(self._pending.items()))

    def _write(self, files: list[tuple[str, bytes]]) -> None:
        for address, data in files:
            storage.overwrite(address, data)
            del self._pending[address]

    def _result(self) -> BaseException | None:
        upload, self._upload = self._upload, None
        return upload.exception() if upload is not None else None


def read_curves(run: str, tags: Iterable[str]) -> dict[str, Curve]:
    """Scalars that a run logged, by tag, thinned to `MAX_POINTS`; only those of ``tags`` that the run has.

    A process that resumed after step n replaces what an earlier one logged beyond it.
    """
    wanted = set(tags)
    found = _read_logs(run, lambda tag: tag in wanted)
    return {tag: thin(sorted(curve.items())) for tag, curve in sorted(found.items()) if curve}


def read_scalars(run: str, step: int) -> dict[str, float]:
    """Scalars that a run logged after ``step``, by tag."""
    return {tag: curve[step] for tag, curve in _read_logs(run, lambda tag: True).items() if step in curve}


def _read_logs(run: str, wanted: Callable[[str], bool]) -> dict[str, dict[int, float]]:
    """Value by step, by tag."""
    found: dict[str, dict[int, float]] = {}
    files = storage.find(storage.join(run, FOLDER))
    for address in sorted(name for name in files if _PREFIX in name):
        for data in records.read_records(address):
            event = tf.compat.v1.Event.FromString(data)
            if event.HasField("session_log"):
                for curve in found.values():
                    for step in [step for step in curve if step > event.step]:
                        del curve[step]
            for value in event.summary.value:
                if wanted(value.tag) and value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def thin(curve: Curve, max_points: int = MAX_POINTS) -> Curve:
    """A curve of at most ``max_points``: means of as many neighbors as needed, each at the last of their steps."""
    size = -(-len(curve) // max_points)
    groups = [curve[start : start + size] for start in range(0, len(curve), size or 1)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
