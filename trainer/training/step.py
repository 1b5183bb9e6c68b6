"""One optimizer step under a distribution strategy, of one part or of several."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.config import LossConfig, ScalingConfig, TrainConfig
from trainer.model import losses
from trainer.model.layers import BatchNormalization
from trainer.training import exchange
from trainer.training.carried import LossScale, WeightAverage
from trainer.training.devices import num_devices


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
    """What a step computed; tensors, so that reading one waits for the step.

    Attributes:
        terms: loss terms by name, means over all workers: float32 scalars.
        gradient_norm: norm of the gradient of all workers before clipping: float32 scalar.
        health: bool [3], see `Health`.
        times: float64 [2], Unix seconds at which this worker first needed the others, and at which it had their
            gradients; None if it is the only one.
    """

    terms: dict[str, tf.Tensor]
    gradient_norm: tf.Tensor
    health: tf.Tensor
    times: tf.Tensor | None = None


class Health(NamedTuple):
    """The values of `StepResult.health`.

    Attributes:
        sound: loss and gradient are finite, or only the gradient is not and a lower loss scale will mend it.
        updated: the step changed the weights.
        sound_here: this worker's own loss is finite.
    """

    sound: bool
    updated: bool
    sound_here: bool


def _time_of(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
    """Unix seconds, float64 scalar, at which ``x``, a small tensor, and ``others`` are computed."""
    with tf.control_dependencies(others):
        x = tf.identity(x)
    with tf.device("CPU:0"):  # a copy waits for what was only launched on a GPU so far
        copy = tf.identity(x)
    with tf.control_dependencies([copy]):
        return tf.timestamp()


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
    scaling: ScalingConfig | None = None,
    accumulate: int = 1,
) -> StepFunction:
    """A compiled step: target [B, H, W, 3] and mask [B, H, W, 1] of this worker in, `StepResult` out.

    A worker of several devices gives it what `devices.divide_batch` makes of them.

    A step whose loss or gradient is not finite on any worker changes nothing on all of them, BatchNorm's
    statistics included. Keras's own ``fit`` does not run under a multi-worker strategy (keras-team/keras#20585);
    a step called through ``strategy.run`` does. The set of trainable variables is read now: make a new step after
    freezing or unfreezing layers.

    Args:
        clip_norm: maximum norm of the gradient of all workers; 0 does not clip.
        average: updated after the weights.
        loss_scale: for float16; a gradient overflow then lowers the scale and counts as sound.
        scaling: how several workers exchange gradients; as by default.
        accumulate: equal parts of the batch, first rows first, that are computed one after the other; see
            `_Accumulation`.
    """
    with strategy.scope():
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
    add = exchange.make_sum(strategy, scaling or ScalingConfig(), model.trainable_variables)
    step = _TrainStep(strategy, model, optimizer, features, config, clip_norm, average, loss_scale, add)
    return tf.function(step.run) if accumulate == 1 else _Accumulation(step, accumulate)


@dataclass(eq=False)
class _TrainStep:
    """The parts of one step; see `make_train_step`."""

    strategy: tf.distribute.Strategy
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    features: keras.Model | None
    config: LossConfig
    clip_norm: float
    average: WeightAverage | None
    loss_scale: LossScale | None
    add: exchange.Sum

    def __post_init__(self):
        self.variables = self.model.trainable_variables
        self.statistics = [v for layer in self.model.layers if layer.trainable for v in layer.non_trainable_variables]
        several = self.strategy.num_replicas_in_sync > 1
        for layer in self.model.layers:
            if isinstance(layer, BatchNormalization):
                layer.mean_over_replicas = self.mean_over_replicas if several else None
        self.names: list[str] = []  # of the loss terms, known once the step is traced
        self.measures = self.strategy.num_replicas_in_sync > num_devices(self.strategy)
        self.needed: tf.Tensor | None = None  # while it is traced: when other workers are first needed

    def mean_over_replicas(self, x):
        if self.measures and self.needed is None:
            self.needed = _time_of(x)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, x)

    def run(self, target, mask):
        scale, before = self.scale(), self.read_statistics()
        found = self.strategy.run(self.compute_gradients, (target, mask, scale))
        return self.finish(found, scale, lambda: None, lambda: self.set_statistics(before))

    def scale(self):
        return tf.identity(self.loss_scale.value) if self.loss_scale else tf.constant(1.0)

    def finish(self, found, scale, keep, undo):
        """Updates the weights, or leaves them: ``keep`` and ``undo`` see to BatchNorm's statistics."""
        local, loss_scale = self.strategy.experimental_local_results, self.loss_scale
        values, gradients, norm, here, times = found
        values, norm = local(values)[0], local(norm)[0]
        here = tf.reduce_all(tf.stack(local(here)))
        loss_finite, gradient_finite = tf.reduce_all(tf.math.is_finite(values)), tf.math.is_finite(norm)
        finite = loss_finite & gradient_finite

        def update():
            keep()  # first: the average of the weights is one of the statistics, too
            self.apply(gradients)

        tf.cond(finite, update, undo)
        sound = finite
        if loss_scale:
            loss_scale.update(gradient_finite)
            sound = loss_finite & (gradient_finite | (scale > 1))
        terms = dict(zip(self.names, tf.unstack(values), strict=True))
        times = local(times)[0] if self.measures else None
        return StepResult(terms, norm, tf.stack([sound, finite, here]), times)

    def compute_gradients(self, target, mask, scale):
        """Of one replica: loss values and clipped gradients of all replicas, the norm, whether its own are finite.

        And last, `StepResult.times`.
        """
        self.needed = None
        values, gradients = self.differentiate(target, mask, scale)
        return self.exchange(values, gradients, scale)

    def differentiate(self, target, mask, scale):
        """Of one replica: its loss values, and its gradients of the loss divided by the number of replicas, scaled."""
        with tf.GradientTape() as tape:
            output = self.model([target * mask, mask], training=True)
            total, terms = losses.total_loss(output, target, mask, self.features, self.config)
            # Summed over replicas later; every term is a mean over the batch.
            scaled = total * (scale / self.strategy.num_replicas_in_sync)
        self.names[:] = ["total", *terms]
        return tf.stack([total, *terms.values()]), tape.gradient(scaled, self.variables)

    def exchange(self, values, gradients, scale):
        """Of one replica: what `compute_gradients` returns, from what `differentiate` does."""
        if self.measures and self.needed is None:  # no statistics were exchanged
            self.needed = _time_of(values, *gradients)
        values_sum, *gradients = self.add(values / self.strategy.num_replicas_in_sync, gradients)
        if self.loss_scale:
            gradients = [gradient / scale for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        here = tf.reduce_all(tf.math.is_finite(values))
        times = tf.stack([self.needed, _time_of(norm)]) if self.measures else tf.zeros(0)
        return values_sum, gradients, norm, here, times

    def apply(self, gradients):
        optimizer = self.optimizer
        rate = tf.convert_to_tensor(optimizer.learning_rate)

        def update(variable, gradient):
            optimizer.update_step(gradient, variable, rate)

        # Not `optimizer.apply`: it would sum the gradients again, and could not be skipped where they are not finite.
        for gradient, variable in zip(gradients, self.variables, strict=True):
            self.strategy.extended.update(variable.value, update, args=(gradient,), group=False)
        optimizer.iterations.assign_add(1)
        if self.average is not None:
            self.average.update(tf.convert_to_tensor(optimizer.iterations))

    def read_statistics(self):
        return [tf.identity(variable.value) for variable in self.statistics]

    def set_statistics(self, values):
        for variable, value in zip(self.statistics, values, strict=True):
            variable.assign(value)


class _Accumulation:
    """A step whose batch is computed in equal parts, so that memory has to hold the activations of one part only.

    Losses and gradients are means over all parts; they are exchanged between workers, checked, clipped and applied
    once, as those of the whole batch would be. BatchNorm is where the two differ: it normalizes each part by the
    statistics of that part, over all workers. Its moving statistics take one step with the mean of the parts' means
    and of their variances.
    """

    def __init__(self, step: _TrainStep, parts: int):
        self._step, self._parts = step, parts
        self._begin, self._add, self._finish = map(tf.function, (self._zeros, self._add_part, self._update))

    def __call__(self, target, mask) -> StepResult:
        sums = self._begin()
        for part in range(self._parts):
            sums = self._add(*sums, target, mask, tf.constant(part))
        return self._finish(*sums)

    def _zeros(self):
        """The values, gradients and statistics of no part, and no time."""
        step, count = self._step, 1 + sum(map(bool, self._step.config.weights.values()))

        def make():
            return tf.zeros(count), [tf.zeros(x.shape) for x in step.variables], tf.zeros((), tf.float64)

        *sums, needed = step.strategy.run(make)
        return *sums, [tf.zeros(x.shape) for x in step.statistics], needed

    def _add_part(self, values, gradients, statistics, needed, target, mask, part):
        step = self._step
        scale, before = step.scale(), step.read_statistics()

        def add(values, gradients, needed, target, mask):
            size = target.shape[0] // self._parts
            target, mask = (x[part * size : (part + 1) * size] for x in (target, mask))
            step.needed = None
            more, others = step.differentiate(target, mask, scale / self._parts)
            if step.needed is not None:
                needed = tf.where(part == 0, step.needed, needed)
            return values + more / self._parts, [x + y for x, y in zip(gradients, others, strict=True)], needed

        values, gradients, needed = step.strategy.run(add, (values, gradients, needed, target, mask))
        self._synchronizes = step.needed is not None
        statistics = [x + y / self._parts for x, y in zip(statistics, step.read_statistics(), strict=True)]
        step.set_statistics(before)  # each part begins where the step did
        return values, gradients, statistics, needed

    def _update(self, values, gradients, statistics, needed):
        step = self._step
        scale = step.scale()

        def exchange(values, gradients, needed):
            step.needed = needed if self._synchronizes else None
            return step.exchange(values, gradients, scale)

        found = step.strategy.run(exchange, (values, gradients, needed))
        return step.finish(found, scale, lambda: step.set_statistics(statistics), lambda: None)


def make_sum(strategy: tf.distribute.Strategy) -> Callable[[np.ndarray], np.ndarray]:
    """A function that sums float64 arrays over all workers; all of them must call it together.

    Where each element is nonzero on one worker at most, the sum is exact.
    """
    if strategy.num_replicas_in_sync == num_devices(strategy):  # this is the only worker
        return lambda values: np.array(values, np.float64)

    def add(values):
        # A copy on this worker's device: a tensor from outside has none yet.
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))

    @tf.function
    def add_all(values):
        return strategy.experimental_local_results(strategy.run(add, (values,)))[0]

    return lambda values: add_all(tf.constant(values, tf.float64)).numpy()
