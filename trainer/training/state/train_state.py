"""The state of a training: all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from trainer import checkpoints
from trainer.checkpoints.files import State
from trainer.config import TrainConfig
from trainer.model import unet
from trainer.model.precision import find_policy
from trainer.training.carried import LossScale, WeightAverage


@dataclass(eq=False)
class TrainState:
    """What a checkpoint holds.

    Attributes:
        average: None if the config asks for no EMA.
        loss_scale: None unless training computes in float16.
        step: optimizer steps done.
        skipped: steps among them that were skipped because they were not finite.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    average: WeightAverage | None
    loss_scale: LossScale | None
    step: int = 0
    skipped: int = 0

    @classmethod
    def build(cls, config: TrainConfig, strategy: tf.distribute.Strategy) -> TrainState:
        """The state before the first step."""
        with strategy.scope():
            policy = find_policy(config.precision, config.scaling.device)
            model = unet.build_unet(config.unet, dtype=policy, seed=config.seed)
            rate = config.initial.learning_rate
            optimizer = keras.optimizers.Adam(rate, name="adam")  # part of its variables' names
            optimizer.build(model.trainable_variables)
        average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        return cls(model, optimizer, average, LossScale() if config.precision == "mixed_float16" else None)

    def restore(self, checkpoint: checkpoints.Checkpoint, config: TrainConfig) -> None:
        """Sets everything from a checkpoint; raises `UserError` if it does not fit."""
        targets = {checkpoints.MODEL: self.model.variables, checkpoints.OPTIMIZER: self.optimizer.variables}
        checkpoints.restore_variables(checkpoint, config, targets)
        if self.average:  # it starts here if the checkpoint was saved without
            self.average.restore(checkpoints.inference_weights(checkpoint).arrays)
        if self.loss_scale and "loss_scale" in checkpoint.state:
            self.loss_scale.restore(checkpoint.state["loss_scale"])
        self.step, self.skipped = checkpoint.state["step"], checkpoint.state.get("skipped", 0)

    def readers(self) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
        """What reads each part of a checkpoint: its arrays by variable path."""
        found = {
            checkpoints.MODEL: lambda: checkpoints.read_variables(self.model.variables),
            checkpoints.OPTIMIZER: lambda: checkpoints.read_variables(self.optimizer.variables),
        }
        return found | ({checkpoints.EMA: self.average.arrays} if self.average else {})

    def inference_weights(self) -> dict[str, np.ndarray]:
        """The weights that validation judges, by variable path: the EMA where there is one."""
        readers = self.readers()
        return readers[checkpoints.inference_part(readers)]()

    def facts(self, config: TrainConfig, phase: str) -> State:
        """The values of a checkpoint's state.json."""
        found: State = {"step": self.step, "phase": phase, "examples": self.step * config.examples_per_step}
        if self.loss_scale:
            found["loss_scale"] = self.loss_scale.state()
        if self.skipped:
            found["skipped"] = self.skipped
        return found
