"""The paper's loss terms and their weighted sum (arXiv 1804.07723, section 3.3, equations 3 to 7), and two more.

Shapes: `output`, `target`, `composite` are [B, H, W, C] in [0, 1]; `mask` is [B, H, W, 1] of {0, 1}, 1 = valid.
Features are lists of [B, h, w, c], one per layer of the perceptual network. Every term is a float32
scalar, computed in float32 from inputs of any float dtype, and a mean over the batch.

`TERMS` is the table of terms. A new one takes a field of `LossConfig`, its weight, and a row of `TERMS`, both under
the same name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from trainer.config import LossConfig

LOG_FLOOR = 1e-5  # of `hole_log_loss`: 50 dB, where a flat hole that is filled exactly would weigh without bound


def composite_image(output, target, mask):
    """I_comp: the target where the mask is valid, the output in holes, [B, H, W, C] float32."""
    return ops.where(_float32(mask) > 0.5, _float32(target), _float32(output))


def hole_loss(output, target, mask):
    """L_hole = ||(1 - M) (output - target)||_1 / (C H W): by the whole image, not by the hole's size."""
    return ops.mean((1.0 - _float32(mask)) * _distance(output, target))


def valid_loss(output, target, mask):
    """L_valid = ||M (output - target)||_1 / (C H W)."""
    return ops.mean(_float32(mask) * _distance(output, target))


def hole_mean_loss(output, target, mask):
    """Mean over images of the mean |output - target| in the holes of each; not the paper's. 0 for one without holes."""
    return ops.mean(_mean_in_holes(_distance(output, target), mask))


def hole_log_loss(output, target, mask):
    """Mean over images of log10 of the mean squared error in the holes of each: -0.1 times PSNR; not the paper's.

    Images count the same, whether they are filled well or badly. `LOG_FLOOR` is added to each mean.
    """
    errors = _mean_in_holes(ops.square(_float32(output) - _float32(target)), mask)
    return ops.mean(ops.log(errors + LOG_FLOOR)) / math.log(10)


def _mean_in_holes(x, mask):
    """Means of [B, H, W, C] over the holes of each image, [B]; 0 for an image without holes."""
    holes = 1.0 - _float32(mask)
    count = ops.sum(holes, axis=(1, 2, 3)) * x.shape[-1]
    return ops.sum(holes * x, axis=(1, 2, 3)) / ops.maximum(count, 1.0)


def perceptual_loss(features, target_features):
    """Half of L_perceptual: sum over layers of the mean |f - f_target|. The paper adds output's and composite's."""
    return sum(ops.mean(_distance(x, y)) for x, y in zip(features, target_features, strict=True))


def gram_matrix(features):
    """K F^T F with K = 1 / (C H W): [B, H, W, C] to [B, C, C] float32."""
    _, height, width, channels = ops.shape(features)
    x = ops.reshape(_float32(features), (-1, height * width, channels))
    return ops.matmul(ops.transpose(x, (0, 2, 1)), x) / ops.cast(channels * height * width, "float32")


def style_loss(features, target_features):
    """L_style of output or composite: sum over layers of 1 / (C C) ||K (F^T F - F_target^T F_target)||_1."""
    pairs = zip(features, target_features, strict=True)
    return sum(ops.mean(ops.abs(gram_matrix(x) - gram_matrix(y))) for x, y in pairs)  # a mean over C C entries


def total_variation_loss(composite, mask):
    """L_tv: |difference| of neighbors, over pairs with both pixels in R, divided by N(composite).

    R is the hole dilated by one pixel, diagonals included; horizontal and vertical pairs count.
    """
    x = _float32(composite)
    region = ops.max_pool(1.0 - _float32(mask), 3, strides=1, padding="same", data_format="channels_last")
    vertical = ops.abs(x[:, 1:] - x[:, :-1]) * region[:, 1:] * region[:, :-1]
    horizontal = ops.abs(x[:, :, 1:] - x[:, :, :-1]) * region[:, :, 1:] * region[:, :, :-1]
    return (ops.sum(vertical) + ops.sum(horizontal)) / ops.cast(ops.size(x), "float32")


class Batch(NamedTuple):
    """What the terms of one batch are computed from, in float32.

    Attributes:
        features: of "target" and of those of "output" and "composite" that a term of positive weight compares.
    """

    output: Any
    target: Any
    mask: Any
    composite: Any
    features: dict[str, list]


class Term(NamedTuple):
    """One row of `TERMS`.

    Attributes:
        compute: the term before weighting, of a `Batch`.
        features: which images' VGG-16 features it compares with the target's, of "output" and "composite".
    """

    compute: Callable[[Batch], Any]
    features: tuple[str, ...] = ()


# By the name of the weight in `LossConfig`; in the order of the sum.
TERMS = {
    "valid": Term(lambda b: valid_loss(b.output, b.target, b.mask)),
    "hole": Term(lambda b: hole_loss(b.output, b.target, b.mask)),
    "perceptual": Term(
        lambda b: sum(perceptual_loss(b.features[name], b.features["target"]) for name in ("output", "composite")),
        features=("output", "composite"),
    ),
    "style_output": Term(lambda b: style_loss(b.features["output"], b.features["target"]), features=("output",)),
    "style_composite": Term(
        lambda b: style_loss(b.features["composite"], b.features["target"]), features=("composite",)
    ),
    "total_variation": Term(lambda b: total_variation_loss(b.composite, b.mask)),
    "hole_mean": Term(lambda b: hole_mean_loss(b.output, b.target, b.mask)),
    "hole_log": Term(lambda b: hole_log_loss(b.output, b.target, b.mask)),
}


def needs_features(config: LossConfig) -> bool:
    """Whether any term of positive weight compares VGG-16 features."""
    return bool(_compared(config))


def total_loss(output, target, mask, features, config: LossConfig):
    """L_total, the weighted sum of the terms (equation 7; weights 1, 6, 0.05, 120, 120, 0.1 by default).

    Output and composite go through the perceptual network as one batch, the target in a call of its own
    without gradient.

    Args:
        output: [B, H, W, 3], the network's.
        target: [B, H, W, 3], the ground truth.
        mask: [B, H, W, 1].
        features: from `trainer.model.vgg.build_features`, or any function of images [N, H, W, 3] to a list of
            [N, h, w, c]. May be None unless `needs_features(config)`.
        config: the weights. A term of weight 0 is not computed.

    Returns:
        The total, and a dict of the terms before weighting, under the names of `TERMS`; terms of weight 0 are
        absent.

    Raises:
        ValueError: for shapes that do not fit together, or features of None where they are needed.
    """
    _check_shapes(output, target, mask)
    output, target, mask = _float32(output), _float32(target), _float32(mask)
    composite = composite_image(output, target, mask)
    wanted = _compared(config)
    compared = {name: x for name, x in (("output", output), ("composite", composite)) if name in wanted}
    batch = Batch(output, target, mask, composite, _features(compared, target, features) if compared else {})
    terms = {name: term.compute(batch) for name, term in TERMS.items() if config.weights[name]}
    return sum(config.weights[name] * term for name, term in terms.items()), terms


def _compared(config: LossConfig) -> set[str]:
    """The images whose features are compared with the target's."""
    return {image for name, weight in config.weights.items() if weight for image in TERMS[name].features}


def _features(compared: dict[str, Any], target, features) -> dict[str, list]:
    if features is None:
        raise ValueError("total_loss: expected a perceptual network for the weights given. Received features=None.")
    expected = [ops.stop_gradient(x) for x in features(target)]
    batched = features(ops.concatenate(list(compared.values()), axis=0))
    split = [ops.split(x, len(compared), axis=0) for x in batched]
    return {"target": expected, **{name: [parts[i] for parts in split] for i, name in enumerate(compared)}}


def _check_shapes(output, target, mask):
    shapes = [tuple(x.shape) for x in (output, target, mask)]
    fits = all(len(shape) == 4 for shape in shapes) and shapes[2][3] == 1
    sizes = zip(*(shape[:3] for shape in shapes), strict=True)
    if not fits or shapes[0][3] != shapes[1][3] or any(len(set(size) - {None}) > 1 for size in sizes):
        raise ValueError(
            "total_loss: expected output and target [B, H, W, C] and mask [B, H, W, 1] of one size. "
            f"Received shapes {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )


def _distance(x, y):
    return ops.abs(_float32(x) - _float32(y))


def _float32(x):
    return ops.cast(x, "float32")
