"""FID, the Frechet Inception distance between two sets of images (Heusel et al., NeurIPS 2017, arXiv 1706.08500).

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))                                            (its equation 6)

of the means and covariances of the images' features. It is not a mean over images, and with few of them it is biased
upwards: fewer images than the 2,048 features leave the covariances rank-deficient. So it compares methods on the same
images; values for different numbers of images, or from other weights, are not comparable.

The weights are not part of this project and are never downloaded; their file is given by address. It is the one of the
package pytorch-fid, ``pt_inception-2015-12-05-6726825d.pth``, or an ``.npz`` of the same arrays under the same names.
The values are then those of pytorch-fid: images in [0, 1], resized to 299 x 299 bilinearly without antialiasing, then
scaled to [-1, 1].

The network is Inception-v3 (Szegedy et al., arXiv 1512.00567) as in TensorFlow's classifier of 2015-12-05, up to its
last pooling. Torchvision's Inception-v3 differs: here averages at the border do not count the padding, and the pooling
of the last block is a maximum. The names of the arrays are those of torchvision's state dict all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from trainer import weight_files
from trainer.errors import UserError

CLASSES = 1008  # of the classifier of 2015; torchvision's network has arrays of the same shapes, but 1,000 classes
SIDE = 299  # pixels: images of any size are resized to this
FEATURES = 2048
EPSILON = 1e-3  # of batch normalization


class Conv(NamedTuple):
    """A convolution, batch normalization without scale and ReLU; ``padding`` is ``same`` or, with ``valid``, none."""

    name: str
    filters: int
    height: int
    width: int
    stride: int = 1
    padding: str = "same"


# A step is a convolution, a pooling of 3 x 3 pixels, or branches (chains of steps) whose results are concatenated.
HALVE, MEAN, MAXIMUM = "halve", "mean", "maximum"
Step = Any


def _wide(name: str, pooled: int) -> tuple:
    """35 x 35 pixels."""
    fives = (Conv(f"{name}.branch5x5_1", 48, 1, 1), Conv(f"{name}.branch5x5_2", 64, 5, 5))
    twice = ((64, 1, 1), (96, 3, 3), (96, 3, 3))
    threes = tuple(Conv(f"{name}.branch3x3dbl_{i}", *shape) for i, shape in enumerate(twice, 1))
    return (Conv(f"{name}.branch1x1", 64, 1, 1),), fives, threes, (MEAN, Conv(f"{name}.branch_pool", pooled, 1, 1))


def _middle(name: str, inner: int) -> tuple:
    """17 x 17 pixels: 7 x 7 kernels as rows and columns."""
    once = ((inner, 1, 1), (inner, 1, 7), (192, 7, 1))
    twice = ((inner, 1, 1), (inner, 7, 1), (inner, 1, 7), (inner, 7, 1), (192, 1, 7))
    return (
        (Conv(f"{name}.branch1x1", 192, 1, 1),),
        tuple(Conv(f"{name}.branch7x7_{i}", *shape) for i, shape in enumerate(once, 1)),
        tuple(Conv(f"{name}.branch7x7dbl_{i}", *shape) for i, shape in enumerate(twice, 1)),
        (MEAN, Conv(f"{name}.branch_pool", 192, 1, 1)),
    )


def _small(name: str, pooling: str) -> tuple:
    """8 x 8 pixels: rows beside columns."""

    def fork(branch: str) -> tuple:
        return (Conv(f"{name}.{branch}a", 384, 1, 3),), (Conv(f"{name}.{branch}b", 384, 3, 1),)

    deep = (
        Conv(f"{name}.branch3x3dbl_1", 448, 1, 1),
        Conv(f"{name}.branch3x3dbl_2", 384, 3, 3),
        fork("branch3x3dbl_3"),
    )
    return (
        (Conv(f"{name}.branch1x1", 320, 1, 1),),
        (Conv(f"{name}.branch3x3_1", 384, 1, 1), fork("branch3x3_2")),
        deep,
        (pooling, Conv(f"{name}.branch_pool", 192, 1, 1)),
    )


STEPS: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", 32, 3, 3, 2, "valid"),
    Conv("Conv2d_2a_3x3", 32, 3, 3, 1, "valid"),
    Conv("Conv2d_2b_3x3", 64, 3, 3),
    HALVE,
    Conv("Conv2d_3b_1x1", 80, 1, 1),
    Conv("Conv2d_4a_3x3", 192, 3, 3, 1, "valid"),
    HALVE,
    _wide("Mixed_5b", 32),
    _wide("Mixed_5c", 64),
    _wide("Mixed_5d", 64),
    (
        (Conv("Mixed_6a.branch3x3", 384, 3, 3, 2, "valid"),),
        (
            Conv("Mixed_6a.branch3x3dbl_1", 64, 1, 1),
            Conv("Mixed_6a.branch3x3dbl_2", 96, 3, 3),
            Conv("Mixed_6a.branch3x3dbl_3", 96, 3, 3, 2, "valid"),
        ),
        (HALVE,),
    ),
    _middle("Mixed_6b", 128),
    _middle("Mixed_6c", 160),
    _middle("Mixed_6d", 160),
    _middle("Mixed_6e", 192),
    (
        (Conv("Mixed_7a.branch3x3_1", 192, 1, 1), Conv("Mixed_7a.branch3x3_2", 320, 3, 3, 2, "valid")),
        (
            Conv("Mixed_7a.branch7x7x3_1", 192, 1, 1),
            Conv("Mixed_7a.branch7x7x3_2", 192, 1, 7),
            Conv("Mixed_7a.branch7x7x3_3", 192, 7, 1),
            Conv("Mixed_7a.branch7x7x3_4", 192, 3, 3, 2, "valid"),
        ),
        (HALVE,),
    ),
    _small("Mixed_7b", MEAN),
    _small("Mixed_7c", MAXIMUM),
)


def _walk(steps: tuple[Step, ...], x, do: Callable[[Any, Conv | str], Any], join: Callable[[list], Any]):
    """Applies the steps to ``x``: ``do`` one step, ``join`` the results of branches."""
    for step in steps:
        if isinstance(step, (Conv, str)):
            x = do(x, step)
        else:
            x = join([_walk(branch, x, do, join) for branch in step])
    return x


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the weight arrays by name."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(channels: int, step: Conv | str) -> int:
        if isinstance(step, str):
            return channels
        shapes[f"{step.name}.conv.weight"] = (step.filters, channels, step.height, step.width)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{step.name}.bn.{name}"] = (step.filters,)
        return step.filters

    _walk(STEPS, 3, note, sum)
    return shapes


class Inception:
    """The feature network of FID.

    Args:
        arrays: float, by name, of the shapes that `expected_shapes` gives; others are ignored.

    Raises:
        ValueError: an array is missing or has another shape.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        for name, shape in expected_shapes().items():
            if name not in arrays or arrays[name].shape != shape:
                found = str(arrays[name].shape) if name in arrays else f"arrays without it: {sorted(arrays)[:3]}"
                raise ValueError(f"FID: expected {name} {shape}. Received {found}.")
        names = {name.partition(".conv.")[0] for name in expected_shapes() if ".conv." in name}
        self._layers = {name: _fold(name, arrays) for name in names}

    def __call__(self, images):
        """Features float32 [B, 2048] of images [B, H, W, 3] in [0, 1]."""
        if len(images.shape) != 4 or images.shape[3] != 3:
            raise ValueError(f"FID: expected images [B, H, W, 3]. Received {tuple(images.shape)}.")
        x = ops.cast(images, "float32")
        # No antialiasing: published FID values were computed without.
        x = ops.image.resize(x, (SIDE, SIDE), "bilinear", antialias=False, data_format="channels_last")
        return ops.mean(_walk(STEPS, 2 * x - 1, self._do, lambda parts: ops.concatenate(parts, axis=-1)), axis=(1, 2))

    def _do(self, x, step: Conv | str):
        if step == HALVE:
            return ops.max_pool(x, 3, 2, "valid", data_format="channels_last")
        if isinstance(step, str):
            pool = ops.max_pool if step == MAXIMUM else ops.average_pool
            return pool(x, 3, 1, "same", data_format="channels_last")
        kernel, bias = self._layers[step.name]
        return ops.relu(ops.conv(x, kernel, step.stride, step.padding, data_format="channels_last") + bias)


def _fold(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [height, width, in, out] and bias [out] of a convolution with its normalization folded in."""
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    kernel, scale, shift, mean, variance = (np.asarray(arrays[f"{name}.{part}"], np.float64) for part in parts)
    scale = scale / np.sqrt(variance + EPSILON)
    kernel = kernel.transpose(2, 3, 1, 0) * scale
    return kernel.astype(np.float32), (shift - mean * scale).astype(np.float32)


def load_inception(address: str, crc32c: str | None = None) -> Inception:
    """Reads the weights file; raises `UserError` if it holds something else."""
    arrays = weight_files.read_state_dict(weight_files.fetch(address, crc32c), address)
    try:
        if (found := getattr(arrays.get("fc.bias"), "shape", None)) != (CLASSES,):
            raise ValueError(f"FID: expected the 2015 network, with fc.bias ({CLASSES},). Received {found}.")
        return Inception(arrays)
    except ValueError as error:
        raise UserError(f"{address}: {error}") from None


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The distance between features float [N, D] and [M, D], N and M at least 2; 0 for equal sets.

    With centered features A / sqrt(N - 1) and B / sqrt(M - 1) the last trace is the sum of the singular values of
    A B^T, whose squares are the eigenvalues of C1 C2. This needs no matrix square root and, for few images, no
    D x D matrix.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise ValueError(f"FID: expected two [N, D] of one D, N of 2 or more. Received {one.shape} and {other.shape}.")
    means = one.mean(axis=0), other.mean(axis=0)
    roots = [_root(features - mean) for features, mean in zip((one, other), means, strict=True)]
    traces = [float(np.sum(root * root)) for root in roots]
    common = float(np.sum(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False)))
    # Rounding can leave it below 0.
    return max(0.0, float(np.sum((means[0] - means[1]) ** 2)) + sum(traces) - 2 * common)


def _root(centered: np.ndarray) -> np.ndarray:
    """R [min(N, D), D] with R^T R = the covariance of [N, D]."""
    scaled = centered / np.sqrt(len(centered) - 1)
    return np.asarray(np.linalg.qr(scaled, mode="r")) if len(scaled) > scaled.shape[1] else scaled
