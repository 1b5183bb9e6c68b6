"""Scalars that a training run logged, read back from its TensorBoard files."""

from __future__ import annotations

import re
from collections.abc import Iterable

from trainer import storage
from trainer.data import records
from trainer.tensorboard import FOLDER

POINTS = 200  # of a curve, at most
_PARTS = re.compile(r"events\.out\.tfevents\.")

Curve = list[tuple[int, float]]  # (step, value)


def read_curves(run: str, tags: Iterable[str]) -> dict[str, Curve]:
    """Curves by tag, of those of ``tags`` that the run has; empty for a run without logs.

    A process that went on after step n replaces what an earlier one logged beyond it.
    """
    import tensorflow as tf

    wanted, found = set(tags), {}
    folder = storage.join(run, FOLDER)
    for address in sorted(name for name in storage.find(folder) if _PARTS.search(name)):
        for data in records.read_records(address):
            event = tf.compat.v1.Event.FromString(data)
            if event.HasField("session_log"):
                for curve in found.values():
                    for step in [step for step in curve if step > event.step]:
                        del curve[step]
            for value in event.summary.value:
                if value.tag in wanted and value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: thin(sorted(curve.items())) for tag, curve in sorted(found.items()) if curve}


def thin(curve: Curve, points: int = POINTS) -> Curve:
    """Means of as many neighbours as it takes to leave ``points``; each stands at the last of its steps."""
    together = -(-len(curve) // points)
    groups = [curve[start : start + together] for start in range(0, len(curve), together or 1)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
