"""Holes filled by interpolation: what `UNetConfig.residual` lets the network begin from.

The pull-push algorithm (Gortler et al., "The Lumigraph", SIGGRAPH 1996) with some passes of Jacobi's
method, so that the result nears the membrane, the smoothest surface through the edge of a hole:

    pull    each level has the means of the valid pixels in squares of 2 x 2 of the one before, down to one pixel: a
            partial convolution (arXiv 1804.07723, equations 1 and 2) whose kernel is constant
    push    from the last level to the first, holes take the value of the level below, then `PASSES` times the mean of
            their four neighbors

Linear in the image, without weights and, in training, without a gradient.
"""

from __future__ import annotations

import keras
from keras import ops

LEVELS = 12  # of halving: beyond 4096 pixels the last level has more than one
PASSES = 2


def interpolate_holes(image, mask):
    """Fills holes from the valid pixels around them.

    Args:
        image: [B, H, W, C] of any float dtype; what it holds in holes changes nothing.
        mask: [B, H, W, 1] of {0, 1}, 1 = valid.

    Returns:
        [B, H, W, C] float32, the image where it is valid. 0 in an image without any valid pixel.
    """
    x, valid = ops.cast(image, "float32"), ops.cast(mask, "float32") > 0.5
    levels = [(ops.where(valid, x, 0.0), valid)]
    while len(levels) <= LEVELS and tuple(levels[-1][0].shape[1:3]) != (1, 1):
        levels.append(_pull(*levels[-1]))
    filled = levels.pop()[0]
    for x, valid in reversed(levels):
        filled = _push(filled, x, valid)
    return ops.stop_gradient(filled)


def _pull(x, valid):
    """The level below: means of valid pixels, 0 where there are none."""
    weight = ops.cast(valid, "float32")
    mean = ops.average_pool(ops.concatenate([x, weight], -1), 2, 2, padding="same", data_format="channels_last")
    x, weight = mean[..., :-1], mean[..., -1:]
    return x / ops.where(weight > 0, weight, 1.0), weight > 0


def _push(below, x, valid):
    """This level with its holes filled; `below` has half its size, rounded up."""
    hole = ops.cast(ops.logical_not(valid), "float32")
    filled = x + hole * _doubled(below, like=x)
    quarter = 0.25 * hole
    for _ in range(PASSES):
        filled = x + quarter * _neighbors(filled)
    return filled


def _doubled(x, like):
    """Each pixel as a square of 2 x 2, cut to the size of `like`. `ops.repeat` takes more operations of a graph."""
    twice = ops.concatenate([x, x], -1)
    twice = ops.concatenate([twice, twice], 2)
    (_, rows, columns, channels), (height, width) = ops.shape(x), ops.shape(like)[1:3]
    return ops.reshape(twice, (-1, 2 * rows, 2 * columns, channels))[:, :height, :width]


def _neighbors(x):
    """Sums of the four neighbors; a pixel at the border of the image is its own neighbor beyond it."""
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
    return x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]


@keras.saving.register_keras_serializable(package="pconv")
class InterpolateHoles(keras.layers.Layer):
    """`interpolate_holes` as a branch (see `trainer.model.layers`), in float32 under every dtype policy.

    Call arguments:
        inputs: one branch, the image [B, H, W, C] and its mask [B, H, W, 1].

    Returns:
        The pair (filled image [B, H, W, C], mask [B, H, W, 1] of ones; of zeros in an image without any valid pixel).
    """

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs):
        image, mask = inputs
        known = ops.max(ops.cast(mask, "float32"), axis=(1, 2), keepdims=True)
        return interpolate_holes(image, mask), ops.broadcast_to(known, ops.shape(mask))

    def compute_output_shape(self, input_shape):
        return tuple(tuple(shape) for shape in input_shape)
