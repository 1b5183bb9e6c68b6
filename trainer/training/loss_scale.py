"""The scale of the loss under float16, whose gradients would otherwise vanish below 6e-8.

Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, section 3.2: the loss is multiplied
before gradients are taken, which are divided after. The scale falls when gradients overflow, and rises again.
"""

from __future__ import annotations

import tensorflow as tf

INITIAL, GROWTH_STEPS, LARGEST = 2.0**15, 2000, 2.0**24


class LossScale:
    """A scale that halves when gradients overflow and doubles after ``growth_steps`` steps without.

    Args:
        initial: the scale at first; a power of two, so that scaling rounds nothing.
        growth_steps: steps in a row without overflow.
    """

    def __init__(self, initial: float = INITIAL, growth_steps: int = GROWTH_STEPS):
        # One variable per process: each computes the same from what all have reduced together.
        self.value = tf.Variable(initial, trainable=False, dtype=tf.float32)
        self._good = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._growth_steps = growth_steps

    def update(self, finite: tf.Tensor) -> None:
        """Takes note of one step; ``finite``: bool, whether its gradients were."""
        good = tf.where(finite, self._good + 1, 0)
        grows = good >= self._growth_steps
        risen = tf.where(grows, tf.minimum(self.value * 2, LARGEST), self.value)
        self.value.assign(tf.where(finite, risen, tf.maximum(self.value / 2, 1.0)))
        self._good.assign(tf.where(grows, tf.zeros_like(good), good))

    def state(self) -> list[float]:
        """What `restore` takes: JSON."""
        return [float(self.value), int(self._good)]

    def restore(self, state: list[float]) -> None:
        self.value.assign(state[0])
        self._good.assign(int(state[1]))
