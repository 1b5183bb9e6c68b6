"""TensorBoard's event files in a run's folder, local or in a bucket.

    RUN/logs/events.out.tfevents.1790000000.00000400.0000     begun at a time, by a process that went on after step 400

Events are gathered here and a file is written whole, again when it has grown, until it is big enough for
the next one to begin; so it needs a store, not a file system. Each process begins with an event that tells
TensorBoard to forget what an earlier one has logged beyond its first step.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

from trainer import storage
from trainer.data import records

FOLDER = "logs"
_FILE_BYTES = 1 << 20
_EVERY = 30.0  # seconds between two writings at least, but for the last


class EventLog:
    """Writes the events of one process; what the store refuses is tried again with the next events.

    Args:
        run: address of the run's folder.
        step: steps that were done when this process began.
        every: seconds between two writings at least.
        file_bytes: size from which a file gets no more events.
    """

    def __init__(self, run: str, step: int, every: float = _EVERY, file_bytes: int = _FILE_BYTES):
        # TensorBoard reads the files of a folder in the order of their names.
        self._name = storage.join(run, FOLDER, f"events.out.tfevents.{int(time.time()):010d}.{step:08d}")
        self._every, self._file_bytes = every, file_bytes
        self._part, self._written_at = 0, -math.inf
        self._data, self._changed = bytearray(), False
        self._pending: dict[str, bytes] = {}  # by address, what the store does not have yet
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

    def add_image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Adds a picture uint8 [height, width, 3]."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        height, width, _ = picture.shape
        image = tf.compat.v1.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=file.getvalue()
        )
        summary = tf.compat.v1.Summary()
        summary.value.add(tag=tag, image=image)
        self._add(tf.compat.v1.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self, step: int) -> Exception | None:
        """Has new events written behind, if it is time to; returns the error of the writing before, if any."""
        if self._upload is not None and not self._upload.done():
            return None
        error = self._result()
        if time.monotonic() >= self._written_at + self._every:
            self._begin_upload()
            if len(self._data) >= self._file_bytes:
                self._part += 1
                self._begin_file(step)
        return error

    def close(self) -> Exception | None:
        """Writes what is left; returns the error if it could not."""
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

    def _result(self) -> Exception | None:
        upload, self._upload = self._upload, None
        return upload.exception() if upload is not None else None


def picture_grid(targets: np.ndarray, masks: np.ndarray, outputs: np.ndarray, side: int = 256) -> np.ndarray:
    """One row per example: with holes (grey), output, composite, target.

    Args:
        targets, outputs: float32 [N, S, S, 3], nominally in [0, 1].
        masks: float32 [N, S, S, 1] of {0, 1}.
        side: pictures with longer sides are made smaller.

    Returns:
        uint8 [N * s, 4 * s, 3] with s = min(S, side).
    """
    holes = np.where(masks > 0.5, targets, 0.5)
    composites = np.where(masks > 0.5, targets, outputs)
    shown = []
    for row in zip(holes, outputs, composites, targets, strict=True):
        cells = [np.clip(np.nan_to_num(cell), 0, 1).astype(np.float32) for cell in row]
        if cells[0].shape[0] > side:
            cells = [cv2.resize(cell, (side, side), interpolation=cv2.INTER_AREA) for cell in cells]
        shown.append(np.concatenate(cells, axis=1))
    return np.rint(np.concatenate(shown, axis=0) * 255).astype(np.uint8)
