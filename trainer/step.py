"""One optimizer step under a distribution strategy, and the learning rate it uses."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from trainer import losses
from trainer.config import LossConfig, TrainConfig

StepFunction = Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate of step number ``step`` (0-based, over both phases)."""
    if config.phase_at(step) == "initial":
        phase = config.initial
    else:
        phase, step = config.finetune, step - config.initial.steps
    rate = phase.learning_rate
    if step < phase.warmup_steps:
        return rate * (step + 1) / phase.warmup_steps
    if phase.schedule == "cosine":
        done = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
        return rate * 0.5 * (1 + math.cos(math.pi * done))
    return rate


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    features: keras.Model | None,
    config: LossConfig,
) -> StepFunction:
    """A compiled step: target [B, H, W, 3] and mask [B, H, W, 1] of this worker in, mean loss terms of all workers out.

    Keras's own ``fit`` does not run under a multi-worker strategy (keras-team/keras#20585); a step
    called through ``strategy.run`` does. Which variables train is read when the step is traced: make
    a new step after freezing layers.
    """
    replicas = strategy.num_replicas_in_sync

    def replica_step(target, mask):
        with tf.GradientTape() as tape:
            output = model([target * mask, mask], training=True)
            total, terms = losses.total_loss(output, target, mask, features, config)
            # The optimizer sums gradients over replicas; every term is a mean over the batch.
            scaled = total / replicas
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(scaled, variables), variables)
        names, values = ["total", *terms], tf.stack([total, *terms.values()])
        values = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, values)
        return dict(zip(names, tf.unstack(values), strict=True))

    return tf.function(lambda target, mask: strategy.run(replica_step, (target, mask)))
