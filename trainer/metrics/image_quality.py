"""PSNR, SSIM and L1 of single images, over the whole image or over its holes only.

`output` and `target` are [B, H, W, C] in [0, 1], of any float dtype; `mask` is [B, H, W, 1] of {0, 1}, 1 = valid.
Each function returns [B] in float64; JAX computes in float32 unless it is given float64. With a mask only hole
pixels count, and an image without holes scores NaN.
"""

from __future__ import annotations

import math

import keras
from keras import ops

# Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004:
# an 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03.
SIGMA, RADIUS = 1.5, 5
C1, C2 = 0.01**2, 0.03**2


def l1(output, target, mask=None):
    """Mean |output - target|; the paper's "l1 %" is 100 times this."""
    x, y, mask = _prepare(output, target, mask)
    return _mean(ops.abs(x - y), mask)


def psnr(output, target, mask=None):
    """Peak signal-to-noise ratio in dB, -10 log10(MSE) for a peak of 1; infinite for equal images.

    The mean squared error is over all pixels and channels, or with a mask over all channels of the hole pixels.
    """
    x, y, mask = _prepare(output, target, mask)
    return _decibels(_mean(ops.square(x - y), mask))


def compare(output, target, mask) -> dict:
    """All metrics that validation computes, by their names in `METRICS`; ``{name}_holes`` is over the holes only.

    The values are those of the functions of this module, but each pixel is compared only once.
    """
    x, y, mask = _prepare(output, target, mask)
    similarity = _similarity(x, y)
    difference = ops.abs(x - y)
    squares = ops.square(difference)
    return {
        "psnr": _decibels(_mean(squares, None)),
        "psnr_holes": _decibels(_mean(squares, mask)),
        "ssim": _mean(_inside(similarity), None),
        "ssim_holes": _mean(similarity, mask),
        "l1": _mean(difference, None),
        "l1_holes": _mean(difference, mask),
    }


def ssim(output, target, mask=None):
    """Structural similarity (Wang et al., 2004), mean over channels; 1 for equal images.

    Agrees with scikit-image's `structural_similarity(channel_axis=-1, data_range=1, gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False)`: without a mask, the mean excludes the 5 pixels at each
    border, whose windows are cut off. With a mask it is the mean over the hole pixels of the full map,
    with images reflected at the border.

    Raises:
        ValueError: images are smaller than 11 x 11 pixels.
    """
    x, y, mask = _prepare(output, target, mask)
    similarity = _similarity(x, y)
    return _mean(_inside(similarity) if mask is None else similarity, mask)


def _decibels(error):
    return -10.0 * ops.log10(error)


def _inside(similarity):
    """Without the pixels whose windows the border cuts off."""
    return similarity[:, RADIUS:-RADIUS, RADIUS:-RADIUS]


def _similarity(x, y):
    """SSIM of every pixel and channel."""
    height, width = x.shape[1:3]
    if min(height, width) < 2 * RADIUS + 1:
        raise ValueError(
            f"ssim: expected height and width of {2 * RADIUS + 1} pixels or more. Received {height} x {width}."
        )
    # Variances are differences of nearly equal numbers; centered at 0 instead of 0.5 they keep more bits of float32.
    x, y = x - 0.5, y - 0.5
    mean_x, mean_y, xx, yy, xy = (_blur(image) for image in (x, y, x * x, y * y, x * y))
    variances = (xx - mean_x * mean_x) + (yy - mean_y * mean_y)
    covariance = xy - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    similarity = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return similarity / ((mean_x * mean_x + mean_y * mean_y + C1) * (variances + C2))


def _blur(x):
    """Gaussian blur of each channel, images mirrored at the border (edge pixels repeated)."""
    weights = [math.exp(-0.5 * (i / SIGMA) ** 2) for i in range(-RADIUS, RADIUS + 1)]
    height, width = x.shape[1:3]
    x = ops.pad(x, ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), mode="symmetric")
    # Sums of shifted slices, not a convolution: GPUs may convolve float32 at TF32's 10 bits.
    x = sum(w / sum(weights) * x[:, i : i + height] for i, w in enumerate(weights))
    return sum(w / sum(weights) * x[:, :, i : i + width] for i, w in enumerate(weights))


def _prepare(output, target, mask):
    x, y = ops.convert_to_tensor(output), ops.convert_to_tensor(target)
    dtypes = [keras.backend.standardize_dtype(image.dtype) for image in (x, y)]
    shapes = [tuple(x.shape), tuple(y.shape)]
    fits = len(shapes[0]) == 4 and shapes[0] == shapes[1] and all("float" in dtype for dtype in dtypes)
    dtype = "float64" if "float64" in dtypes or keras.backend.backend() != "jax" else "float32"
    if mask is not None:
        mask = ops.cast(mask, dtype)
        shapes.append(tuple(mask.shape))
        fits = fits and shapes[2] == (*shapes[0][:3], 1)
    if not fits:
        raise ValueError(
            "metrics: expected floats output and target [B, H, W, C] of one shape and mask [B, H, W, 1]. "
            f"Received {dtypes[0]} and {dtypes[1]}, shapes {shapes}."
        )
    return ops.cast(x, dtype), ops.cast(y, dtype), mask


def _mean(values, mask):
    if mask is None:
        return ops.mean(values, axis=(1, 2, 3))
    holes = 1 - mask
    return ops.sum(values * holes, axis=(1, 2, 3)) / (ops.sum(holes, axis=(1, 2, 3)) * values.shape[-1])
