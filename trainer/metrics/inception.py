"""The network that FID looks at pictures with: Inception-v3 (Szegedy et al., arXiv 1512.00567) as TensorFlow's
classifier of 2015-12-05 had it, up to its last pooling.

Torchvision's Inception-v3 is another one: here averages at the border do not count the padding, and the pooling of
the last block is a maximum. Names of the arrays are those of torchvision's state dict all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from keras import ops

SIDE = 299  # pixels, that pictures of any size are resized to
FEATURES = 2048
EPSILON = 1e-3  # of the batch normalization


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
    """What the steps make of ``x``, by ``do`` of one step and ``join`` of branches."""
    for step in steps:
        if isinstance(step, (Conv, str)):
            x = do(x, step)
        else:
            x = join([_walk(branch, x, do, join) for branch in step])
    return x


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays by name."""
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
    """Pictures' features.

    Args:
        arrays: float, by name and of the shapes that `expected_shapes` gives; others are ignored.

    Raises:
        ValueError: one is missing or has another shape.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        for name, shape in expected_shapes().items():
            if name not in arrays or arrays[name].shape != shape:
                found = f"{arrays[name].shape}" if name in arrays else f"none, but {sorted(arrays)[:3]}"
                raise ValueError(f"inception: expected {name} {shape}. Received {found}.")
        names = {name.partition(".conv.")[0] for name in expected_shapes() if ".conv." in name}
        self._layers = {name: _fold(name, arrays) for name in names}

    def __call__(self, pictures):
        """Features float32 [B, 2048] of pictures [B, H, W, 3] in [0, 1]."""
        if len(pictures.shape) != 4 or pictures.shape[3] != 3:
            raise ValueError(f"inception: expected pictures [B, H, W, 3]. Received {tuple(pictures.shape)}.")
        x = ops.cast(pictures, "float32")
        # Without antialiasing, as the networks' features were always taken for FID.
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
    """Kernel [height, width, in, out] and bias [out] of a convolution and its normalization as one."""
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    kernel, scale, shift, mean, variance = (np.asarray(arrays[f"{name}.{part}"], np.float64) for part in parts)
    scale = scale / np.sqrt(variance + EPSILON)
    kernel = kernel.transpose(2, 3, 1, 0) * scale
    return kernel.astype(np.float32), (shift - mean * scale).astype(np.float32)
