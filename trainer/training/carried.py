"""What steps carry along beside the network and its optimizer: the loss scale, averages of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from trainer.errors import UserError

INITIAL_SCALE, GROWTH_STEPS, MIN_SCALE, MAX_SCALE = 2.0**15, 2000, 1.0, 2.0**24


class LossScale:
    """Dynamic loss scale for float16, whose gradients would otherwise underflow below 6e-8.

    The loss is multiplied by the scale before gradients are taken, and the gradients are divided by it. The scale
    halves when gradients overflow and doubles after ``growth_steps`` steps in a row without overflow; it stays in
    [`MIN_SCALE`, `MAX_SCALE`]. Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, section 3.2.

    Not ``keras.optimizers.LossScaleOptimizer``: that one checks a worker's gradients before they are summed over the
    workers, so one worker may skip a step on which the others wait for it; its scale has no bounds; and it cannot
    undo BatchNorm's statistics of a skipped step.

    Args:
        initial: the first scale; a power of two, so that scaling rounds nothing.
        growth_steps: steps in a row without overflow after which the scale doubles.
    """

    def __init__(self, initial: float = INITIAL_SCALE, growth_steps: int = GROWTH_STEPS):
        # One variable per process: all compute the same value from gradients that are already summed over workers.
        self.value = tf.Variable(initial, trainable=False, dtype=tf.float32)
        self._good = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._growth_steps = growth_steps

    def update(self, finite: tf.Tensor) -> None:
        """Adjusts the scale after a step; ``finite``: bool scalar, whether its gradients were finite."""
        good = tf.where(finite, self._good + 1, 0)
        grows = good >= self._growth_steps
        grown = tf.where(grows, tf.minimum(self.value * 2, MAX_SCALE), self.value)
        self.value.assign(tf.where(finite, grown, tf.maximum(self.value / 2, MIN_SCALE)))
        self._good.assign(tf.where(grows, tf.zeros_like(good), good))

    def state(self) -> list[float]:
        """The scale and the steps since the last change, as JSON for `restore`."""
        return [float(self.value), int(self._good)]

    def restore(self, state: list[float]) -> None:
        self.value.assign(state[0])
        self._good.assign(int(state[1]))


class WeightAverage:
    """Exponential moving average (EMA) of all variables of a model, in float32.

        average = decay * average + (1 - decay) * variable        after every step

    The averages start at the variables' values. So that they do not cling to that start, step t uses
    min(decay, (1 + t) / (10 + t)), as ``tf.train.ExponentialMovingAverage`` does with ``num_updates``.

    Not Keras's ``use_ema``: it averages trainable variables only, without BatchNorm's statistics, and has no warm-up.

    Args:
        model: the network, with its initial values.
        decay: in [0, 1).
    """

    def __init__(self, model: keras.Model, decay: float):
        self._variables, self._decay = model.variables, decay
        # Plain variables of this process, not of the strategy: all workers compute the same values.
        self._averages = [tf.Variable(np.asarray(v), trainable=False, dtype=tf.float32) for v in self._variables]

    def update(self, step: tf.Tensor) -> None:
        """Moves the averages; ``step``: int scalar, the number of steps done."""
        step = tf.cast(step, tf.float32)
        rate = 1 - tf.minimum(self._decay, (1 + step) / (10 + step))
        for average, variable in zip(self._averages, self._variables, strict=True):
            average.assign_add((tf.convert_to_tensor(variable) - average) * rate)

    def arrays(self) -> dict[str, np.ndarray]:
        """The averages by path of the variable they belong to."""
        return {v.path: a.numpy() for v, a in zip(self._variables, self._averages, strict=True)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Inverse of `arrays`; raises `UserError` if names or shapes differ from the model's."""
        ours = {v.path: tuple(v.shape) for v in self._variables}
        if ours != {name: array.shape for name, array in arrays.items()}:
            raise UserError("the averages of the checkpoint (ema) do not fit the config's network")
        for variable, average in zip(self._variables, self._averages, strict=True):
            average.assign(arrays[variable.path])
