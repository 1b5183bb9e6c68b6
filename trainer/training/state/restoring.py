"""How the workers of a training get the state that its newest checkpoint holds."""

from __future__ import annotations

import tensorflow as tf

from trainer import checkpoints
from trainer.config import TrainConfig
from trainer.training.progress.events import CheckpointUnreadable, Report
from trainer.training.state.broadcast import load_on_first
from trainer.training.state.train_state import TrainState


def restore(
    state: TrainState, config: TrainConfig, run: str, worker: int, strategy: tf.distribute.Strategy, report: Report
) -> checkpoints.Pin | None:
    """Restores the newest checkpoint that can be read, if there is any; returns its pin.

    Worker 0 reads it, once it keeps other writers out, and sends it to the others, which read nothing.
    """

    def load() -> checkpoints.Checkpoint | None:
        found = checkpoints.load_newest(run)
        if found is None:
            return None
        for address, why in found.skipped:
            report(CheckpointUnreadable(address=found.checkpoint.pin.address, skipped=address, why=why))
        return found.checkpoint

    checkpoint = load() if config.scaling.workers == 1 else load_on_first(load, worker, strategy)
    if checkpoint:
        state.restore(checkpoint, config)
    return checkpoint.pin if checkpoint else None
