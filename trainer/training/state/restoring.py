"""How the workers of a training get the state that its newest checkpoint holds."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer import checkpoints
from trainer.config import TrainConfig
from trainer.training.progress.events import CheckpointUnreadable, Report
from trainer.training.state.train_state import TrainState
from trainer.training.step import make_sum


def restore(
    state: TrainState, config: TrainConfig, run: str, worker: int, strategy: tf.distribute.Strategy, report: Report
) -> checkpoints.Pin | None:
    """Restores the newest checkpoint that can be read, if there is any; all workers must find the same one."""
    share = make_sum(strategy)
    share(np.zeros(1))  # nobody looks before worker 0 keeps other writers out
    found = checkpoints.load_newest(run)
    if found:
        state.restore(found.checkpoint, config)
        for address, why in found.skipped if worker == 0 else ():
            report(CheckpointUnreadable(address=found.checkpoint.pin.address, skipped=address, why=why))
    steps = np.zeros(config.scaling.workers)
    steps[worker] = state.step
    if len(set(everyones := share(steps).tolist())) > 1:
        raise RuntimeError(f"workers found checkpoints of different steps: {everyones}")
    return found.checkpoint.pin if found else None
