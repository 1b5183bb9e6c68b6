"""One optimizer step under a distribution strategy, and the learning rate it uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from trainer.config import LossConfig, TrainConfig
from trainer.model import losses
from trainer.model.layers import BatchNormalization
from trainer.training.ema import WeightAverage
from trainer.training.loss_scale import LossScale


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


class StepResult(NamedTuple):
    """What one step did; tensors that nobody has waited for yet.

    Attributes:
        terms: loss terms, means over all workers: float32 scalars.
        gradient_norm: of all workers' gradient, before it was clipped: float32 scalar.
        health: bool [3], see `Health`.
    """

    terms: dict[str, tf.Tensor]
    gradient_norm: tf.Tensor
    health: tf.Tensor


class Health(NamedTuple):
    """What `StepResult.health` holds.

    Attributes:
        sound: no value was infinite or NaN, or only gradients that a loss scale is about to put right.
        updated: the step changed the weights.
        sound_here: as ``sound``, of this worker's loss alone.
    """

    sound: bool
    updated: bool
    sound_here: bool


def _mean_over_replicas(x: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, x) if context.num_replicas_in_sync > 1 else x


StepFunction = Callable[[tf.Tensor, tf.Tensor], StepResult]


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    features: keras.Model | None,
    config: LossConfig,
    *,
    clip_norm: float = 0.0,
    average: WeightAverage | None = None,
    loss_scale: LossScale | None = None,
) -> StepFunction:
    """A compiled step: target [B, H, W, 3] and mask [B, H, W, 1] of this worker in, `StepResult` out.

    A step whose loss or gradient is not finite on any worker changes nothing on all of them, BatchNorm's
    statistics included. Keras's own ``fit`` does not run under a multi-worker strategy (keras-team/keras#20585);
    a step called through ``strategy.run`` does. Which variables train is read when this is called: make a new
    step after freezing layers.

    Args:
        clip_norm: greatest norm of the gradient of all workers; 0: any.
        average: moves along with the weights.
        loss_scale: for float16; an overflow of the gradient then lowers the scale and is no fault.
    """
    with strategy.scope():
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
    replicas = strategy.num_replicas_in_sync
    variables = model.trainable_variables
    statistics = [v for layer in model.layers if layer.trainable for v in layer.non_trainable_variables]
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.mean_over_replicas = _mean_over_replicas
    names: list[str] = []

    def replica_step(target, mask, scale):
        with tf.GradientTape() as tape:
            output = model([target * mask, mask], training=True)
            total, terms = losses.total_loss(output, target, mask, features, config)
            # Summed over replicas below; every term is a mean over the batch.
            scaled = total * (scale / replicas)
        names[:] = ["total", *terms]
        values = tf.stack([total, *terms.values()])
        context = tf.distribute.get_replica_context()
        sums = context.all_reduce(tf.distribute.ReduceOp.SUM, [values / replicas, *tape.gradient(scaled, variables)])
        gradients = [gradient / scale for gradient in sums[1:]] if loss_scale else sums[1:]
        norm = tf.linalg.global_norm(gradients)
        if clip_norm:
            factor = tf.minimum(1.0, clip_norm / tf.maximum(norm, 1e-30))
            gradients = [gradient * factor for gradient in gradients]
        return sums[0], gradients, norm, tf.reduce_all(tf.math.is_finite(values))

    def apply(gradients):
        rate = tf.convert_to_tensor(optimizer.learning_rate)

        def update(variable, gradient):
            optimizer.update_step(gradient, variable, rate)

        # Not `optimizer.apply`: it would sum the gradients again, and cannot be left out where they are not finite.
        for gradient, variable in zip(gradients, variables, strict=True):
            strategy.extended.update(variable.value, update, args=(gradient,), group=False)
        optimizer.iterations.assign_add(1)
        if average is not None:
            average.update(tf.convert_to_tensor(optimizer.iterations))

    def undo(before):
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(value)

    @tf.function
    def step(target, mask):
        scale = tf.identity(loss_scale.value) if loss_scale else tf.constant(1.0)
        before = [tf.identity(variable.value) for variable in statistics]
        values, gradients, norm, here = strategy.run(replica_step, (target, mask, scale))
        values, norm = (strategy.experimental_local_results(x)[0] for x in (values, norm))
        here = tf.reduce_all(tf.stack(strategy.experimental_local_results(here)))
        loss_finite, gradient_finite = tf.reduce_all(tf.math.is_finite(values)), tf.math.is_finite(norm)
        finite = loss_finite & gradient_finite
        tf.cond(finite, lambda: apply(gradients), lambda: undo(before))
        sound = finite
        if loss_scale:
            loss_scale.update(gradient_finite)
            sound = loss_finite & (gradient_finite | (scale > 1))
        terms = dict(zip(names, tf.unstack(values), strict=True))
        return StepResult(terms, norm, tf.stack([sound, finite, here]))

    return step
