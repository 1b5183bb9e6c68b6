"""An exponential moving average of a network's variables, in float32 beside them.

    average = decay * average + (1 - decay) * variable        after every step

The averages begin as the variables are. So that they do not hold on to that beginning, step number t
uses min(decay, (1 + t) / (10 + t)), as ``tf.train.ExponentialMovingAverage`` does with ``num_updates``.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from trainer.errors import UserError


class WeightAverage:
    """Averages of all variables of a model, BatchNorm's statistics too.

    Args:
        model: the network; its variables have their first values.
        decay: 0 <= decay < 1.
    """

    def __init__(self, model: keras.Model, decay: float):
        self._variables, self._decay = model.variables, decay
        # Plain variables of this process, not of the strategy: all workers compute the same ones.
        self._averages = [tf.Variable(np.asarray(v), trainable=False, dtype=tf.float32) for v in self._variables]

    def update(self, step: tf.Tensor) -> None:
        """Moves the averages; ``step``: int scalar, how many steps were made."""
        step = tf.cast(step, tf.float32)
        rate = 1 - tf.minimum(self._decay, (1 + step) / (10 + step))
        for average, variable in zip(self._averages, self._variables, strict=True):
            average.assign_add((tf.convert_to_tensor(variable) - average) * rate)

    def arrays(self) -> dict[str, np.ndarray]:
        """The averages under the paths of the variables that they are of."""
        return {v.path: a.numpy() for v, a in zip(self._variables, self._averages, strict=True)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Inverse of `arrays`; raises `UserError` if they are of other variables."""
        ours = {v.path: tuple(v.shape) for v in self._variables}
        if ours != {name: array.shape for name, array in arrays.items()}:
            raise UserError("the averages of the checkpoint (ema) do not fit the config's network")
        for variable, average in zip(self._variables, self._averages, strict=True):
            average.assign(arrays[variable.path])
