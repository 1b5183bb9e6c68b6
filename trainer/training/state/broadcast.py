"""A checkpoint sent from worker 0 to the others, over the connections by which they exchange gradients."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import presets
from trainer.checkpoints import Checkpoint, Pin
from trainer.errors import UserError
from trainer.training.step import make_sum

_WORDS = 1 << 21  # of 32 bits, sent at a time


def load_on_first(
    load: Callable[[], Checkpoint | None], worker: int, strategy: tf.distribute.Strategy
) -> Checkpoint | None:
    """What ``load()`` returns on worker 0, on all workers and bit for bit; the others do not call it.

    All workers must call this together.

    Raises:
        Exception: whatever ``load`` does; on the others a `UserError` if it was one, else a `RuntimeError`.
    """
    send = _Sender(strategy, worker == 0)
    if worker == 0:
        try:
            found = load()
        except Exception as error:
            send.document({"error": str(error), "of_user": isinstance(error, UserError)})
            raise
        send.document(_describe(found) if found else {})
        if found:
            send.words(_pack(found))
        return found
    told = send.document()
    if "error" in told:
        raise UserError(told["error"]) if told["of_user"] else RuntimeError(f"worker 0: {told['error']}")
    return _unpack(told, send.words()) if told else None


class _Sender:
    """Sends what worker 0 has to all workers, each of which calls the same methods in the same order."""

    def __init__(self, strategy: tf.distribute.Strategy, sends: bool):
        self._sum, self._sends = make_sum(strategy), sends

    def document(self, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """``values``, JSON, of worker 0."""
        packed = json.dumps(values).encode()
        words = np.frombuffer(packed + b" " * (-len(packed) % 4), np.uint32)
        return json.loads(self.words(words).tobytes())

    def words(self, words: np.ndarray | None = None) -> np.ndarray:
        """``words``, uint32 [n], of worker 0."""
        mine = words if self._sends and words is not None else np.zeros(0, np.uint32)
        size = int(self._sum(np.array([float(mine.size)]))[0])
        found = mine if self._sends else np.zeros(size, np.uint32)
        for begin in range(0, size, _WORDS):
            values = np.zeros(min(size, _WORDS))  # of one length, for which the sum is compiled once
            part = mine[begin : begin + _WORDS]
            values[: part.size] = part  # float64 holds each of them exactly
            summed = self._sum(values)[: size - begin]
            if not self._sends:
                found[begin : begin + _WORDS] = summed
        return found


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """All of a checkpoint but the values of its arrays."""
    arrays = [
        [part, name, array.dtype.str, list(array.shape)]
        for part, named in checkpoint.variables.items()
        for name, array in named.items()
    ]
    config = presets.to_json(checkpoint.config).decode() if checkpoint.config else None
    pin = {"address": checkpoint.pin.address, "crc32c": checkpoint.pin.crc32c}
    loaded = list(checkpoint.variables)
    told = {"pin": pin, "state": checkpoint.state, "parts": checkpoint.parts, "config": config}
    return told | {"loaded": loaded, "arrays": arrays}


def _places(told: dict[str, Any]) -> Iterator[tuple[str, str, np.dtype, list[int], slice]]:
    """Part, name, dtype, shape and bytes of each array."""
    end = 0
    for part, name, dtype, shape in told["arrays"]:
        begin = -(-end // 8) * 8
        end = begin + math.prod(shape) * np.dtype(dtype).itemsize
        yield part, name, np.dtype(dtype), shape, slice(begin, end)


def _pack(checkpoint: Checkpoint) -> np.ndarray:
    """The values of all arrays, uint32 [n]."""
    places = list(_places(_describe(checkpoint)))
    words = np.zeros(-(-max((place.stop for *_, place in places), default=0) // 4), np.uint32)
    for part, name, _, _, place in places:
        words.view(np.uint8)[place] = np.frombuffer(checkpoint.variables[part][name].tobytes(), np.uint8)
    return words


def _unpack(told: dict[str, Any], words: np.ndarray) -> Checkpoint:
    variables: dict[str, dict[str, np.ndarray]] = {part: {} for part in told["loaded"]}
    for part, name, dtype, shape, place in _places(told):
        variables[part][name] = words.view(np.uint8)[place].view(dtype).reshape(shape)
    return Checkpoint(
        pin=Pin(**told["pin"]),
        state=told["state"],
        parts=tuple(told["parts"]),
        variables=variables,
        config=presets.from_json(told["config"].encode()) if told["config"] else None,
    )
