"""Masks made of stored ones while training: turned, mirrored, moved, enlarged, with larger holes.

All of it rearranges or spreads pixels, none mixes them: a mask stays binary. What is drawn follows from numbers that
the caller gives, who makes them from (seed, example number).

Flips and quarter turns keep every pixel, and so the hole ratio and whether holes touch the border. The others do not,
which is why they are off unless asked for: afterwards a record's ``mask/hole_ratio`` no longer describes the mask.

Masks are [H, W] here: with a channel of one, TensorFlow's `reverse` takes five times as long.
"""

from __future__ import annotations

import tensorflow as tf

from trainer.config import DataConfig

DRAWS = 7  # numbers that one mask takes


def hole_ratio(mask: tf.Tensor) -> tf.Tensor:
    """Share of holes of masks [..., H, W, 1] of {0, 1}: float32 [...]. As they are now, whatever their records say."""
    return 1 - tf.reduce_mean(tf.cast(mask, tf.float32), axis=(-3, -2, -1))


def dilate_holes(mask: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
    """Makes a hole of every pixel with a hole within ``radius`` pixels of it in both directions (a square).

    Args:
        mask: uint8 [H, W]; 0 = hole.
        radius: int32 scalar, 0 or more. What lies outside the mask is no hole.
    """

    def along(x: tf.Tensor, axis: int) -> tf.Tensor:
        # A window has a hole if the number of holes before its end is more than that before its begin.
        size = tf.shape(x)[axis]
        place = tf.range(size)
        before = tf.pad(tf.cumsum(x, axis), [[int(axis == k), 0] for k in range(2)])
        ends, begins = tf.minimum(place + radius + 1, size), tf.maximum(place - radius, 0)
        return tf.cast(tf.gather(before, ends, axis=axis) > tf.gather(before, begins, axis=axis), tf.int32)

    grown = along(along(tf.cast(mask == 0, tf.int32), 0), 1)
    return tf.where(grown > 0, tf.zeros_like(mask), mask)


def cut(mask: tf.Tensor, top: tf.Tensor, left: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    """The square of ``side`` pixels at (top, left), enlarged to the size of the mask by nearest neighbour.

    Args:
        mask: uint8 [S, S] of {0, 255}.
        top, left: int32 scalars; the square may reach beyond the mask, where all is valid.
        side: int32 scalar, 1 .. S; S: moved, not enlarged.
    """
    size = tf.shape(mask)[0]
    offset = (2 * tf.range(size) + 1) * side // (2 * size)  # the source pixel under each centre

    def rows(mask: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        found = tf.gather(mask, tf.clip_by_value(index, 0, size - 1))
        within = (index >= 0) & (index < size)
        return tf.where(within[:, None], found, tf.constant(255, tf.uint8))

    # Rows are gathered four times as fast as columns, transposing included.
    return tf.transpose(rows(tf.transpose(rows(mask, top + offset)), left + offset))


def turn(mask: tf.Tensor, upside_down: tf.Tensor, mirrored: tf.Tensor, transposed: tf.Tensor) -> tf.Tensor:
    """A square mask [S, S] after any of three flips; their eight combinations are the square's symmetries."""
    mask = tf.cond(upside_down, lambda: tf.reverse(mask, [0]), lambda: mask)
    mask = tf.cond(mirrored, lambda: tf.reverse(mask, [1]), lambda: mask)
    return tf.cond(transposed, lambda: tf.transpose(mask), lambda: mask)


def augment_mask(mask: tf.Tensor, draws: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """A mask as the config's ``mask_*`` values let it vary.

    Args:
        mask: uint8 [S, S] of {0, 255}; 0 = hole.
        draws: float32 [DRAWS], uniform in [0, 1).

    Returns:
        uint8 [S, S] of {0, 255}.
    """
    a, b, c, scale, y, x, spread = tf.unstack(draws)
    shape, size = mask.shape, tf.shape(mask)[0]

    def pick(draw: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        return tf.minimum(tf.cast(draw * tf.cast(count, tf.float32), tf.int32), count - 1)

    if config.mask_dilate:
        mask = dilate_holes(mask, pick(spread, tf.constant(config.mask_dilate + 1)))
    if config.mask_crop < 1 or config.mask_shift:
        smallest = tf.maximum(tf.cast(tf.cast(size, tf.float32) * config.mask_crop, tf.int32), 1)
        side = smallest + pick(scale, size - smallest + 1)
        shift = tf.cast(tf.cast(size, tf.float32) * config.mask_shift, tf.int32)
        room = size - side + 2 * shift + 1
        mask = cut(mask, pick(y, room) - shift, pick(x, room) - shift, side)
    if config.mask_flip or config.mask_turn:
        # A quarter turn one way or the other is a transposition and one flip, half a turn is both flips.
        if config.mask_flip and config.mask_turn:
            flips = a < 0.5, b < 0.5, c < 0.5
        elif config.mask_flip:
            flips = a < 0.5, b < 0.5, tf.constant(False)
        else:
            flips = (a < 0.5), (a < 0.5) ^ (c < 0.5), c < 0.5
        mask = turn(mask, *flips)
    return tf.ensure_shape(mask, shape)
