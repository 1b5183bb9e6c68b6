"""LPIPS, a perceptual distance between images, learned from human judgments (Zhang et al., CVPR 2018,
arXiv 1801.03924).

The weights are not part of this project and are never downloaded; their file is given by address. It holds the arrays
of two PyTorch state dicts under their own names: torchvision's ``alexnet`` or ``vgg16``, and the linear layers of the
package lpips, version 0.1, for the same network. Saved by PyTorch, or as an ``.npz``:

    state = {**alexnet(weights="IMAGENET1K_V1").state_dict(), **torch.load("lpips/weights/v0.1/alex.pth")}
    torch.save(state, "lpips_alex.pth")
    numpy.savez("lpips_alex.npz", **{name: tensor.cpu().numpy() for name, tensor in state.items()})

    features.N.weight [out, in, height, width], features.N.bias [out], linK.model.1.weight [1, channels, 1, 1]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from keras import ops

from trainer import weight_files
from trainer.errors import UserError

# Normalization of images in [-1, 1], as in the package lpips.
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
MIN_SIDE = 32  # pixels: smaller images do not reach the last layer of either network


@dataclass(frozen=True)
class Conv:
    """A convolution with ReLU: its number in ``features``, size and stride; ``tap``: its output enters the distance."""

    number: int
    kernel: int
    stride: int = 1
    tap: bool = True


# Layers by network; an int is the size of a max pooling with stride 2.
NETWORKS: dict[str, tuple[Conv | int, ...]] = {
    "alex": (Conv(0, 11, 4), 3, Conv(3, 5), 3, Conv(6, 3), Conv(8, 3), Conv(10, 3)),
    "vgg": (
        *(Conv(0, 3, tap=False), Conv(2, 3), 2),
        *(Conv(5, 3, tap=False), Conv(7, 3), 2),
        *(Conv(10, 3, tap=False), Conv(12, 3, tap=False), Conv(14, 3), 2),
        *(Conv(17, 3, tap=False), Conv(19, 3, tap=False), Conv(21, 3), 2),
        *(Conv(24, 3, tap=False), Conv(26, 3, tap=False), Conv(28, 3)),
    ),
}
# Channels in and out of each convolution.
CHANNELS = {
    "alex": {0: (3, 64), 3: (64, 192), 6: (192, 384), 8: (384, 256), 10: (256, 256)},
    "vgg": dict(
        zip(
            (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
            ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512))
            + 5 * ((512, 512),),
            strict=True,
        )
    ),
}


def expected_shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the weight arrays of a network by name."""
    convs = [layer for layer in NETWORKS[network] if isinstance(layer, Conv)]
    shapes: dict[str, tuple[int, ...]] = {}
    for conv in convs:
        inputs, outputs = CHANNELS[network][conv.number]
        shapes[f"features.{conv.number}.weight"] = (outputs, inputs, conv.kernel, conv.kernel)
        shapes[f"features.{conv.number}.bias"] = (outputs,)
    for place, conv in enumerate(conv for conv in convs if conv.tap):
        shapes[f"lin{place}.model.1.weight"] = (1, CHANNELS[network][conv.number][1], 1, 1)
    return shapes


class Lpips:
    """The distance, with the weights of one network.

    Args:
        arrays: by name, as above; others are ignored.

    Raises:
        ValueError: the arrays are those of neither network.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        found = {name: array.shape for name, array in arrays.items()}
        fits = [name for name in NETWORKS if expected_shapes(name).items() <= found.items()]
        if not fits:
            raise ValueError(f"LPIPS: expected the arrays of one of {tuple(NETWORKS)}. Received {sorted(found)[:6]}.")
        self.network = fits[0]
        names = expected_shapes(self.network)
        self._arrays = {name: np.asarray(arrays[name], np.float32) for name in names}

    def __call__(self, output, target):
        """Distances float32 [B] of images [B, H, W, 3] in [0, 1], at least 32 x 32 pixels; 0 for equal ones."""
        shapes = [tuple(output.shape), tuple(target.shape)]
        if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][3] != 3 or min(shapes[0][1:3]) < MIN_SIDE:
            raise ValueError(f"LPIPS: expected two [B, H, W, 3] of {MIN_SIDE} pixels or more. Received {shapes}.")
        total = 0.0
        for place, (x, y) in enumerate(zip(self._features(output), self._features(target), strict=True)):
            weights = self._arrays[f"lin{place}.model.1.weight"].reshape(-1)
            total = total + ops.mean(ops.sum(ops.square(_unit(x) - _unit(y)) * weights, axis=-1), axis=(1, 2))
        return total

    def _features(self, image) -> list:
        x = (2 * ops.cast(image, "float32") - 1 - SHIFT) / SCALE
        found = []
        for layer in NETWORKS[self.network]:
            if isinstance(layer, int):
                x = ops.max_pool(x, layer, 2, "valid", data_format="channels_last")
                continue
            kernel = self._arrays[f"features.{layer.number}.weight"].transpose(2, 3, 1, 0)
            # PyTorch's padding is the same on both sides, whatever the stride.
            edge = 2 if layer.stride == 4 else layer.kernel // 2
            x = ops.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
            x = ops.conv(x, kernel, layer.stride, "valid", data_format="channels_last")
            x = ops.relu(x + self._arrays[f"features.{layer.number}.bias"])
            if layer.tap:
                found.append(x)
        return found


def _unit(x):
    return x / (ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)) + 1e-10)


def load_lpips(address: str, crc32c: str | None = None) -> Lpips:
    """Reads the weights file; raises `UserError` if it holds something else."""
    arrays = weight_files.read_state_dict(weight_files.fetch(address, crc32c), address)
    try:
        return Lpips(arrays)
    except ValueError as error:
        raise UserError(f"{address}: {error}") from None
