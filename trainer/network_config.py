"""The network and its loss as configs: frozen dataclasses that check themselves when they are made."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

HEADS = ("none", "sigmoid")


def require(condition: bool, key: str, expected: str, received: Any) -> None:
    """Raises `ValueError` naming ``key`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{key}: expected {expected}. Received {received!r}.")


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The network of the paper's appendix; one entry of each tuple per encoder level.

    The decoder mirrors the encoder (3x3 kernels), so depth is ``len(filters)`` and one pass halves
    the image ``depth`` times.

    Attributes:
        image_size: height and width of training crops, in pixels.
        filters: output channels of each encoder level, from the image down.
        kernels: kernel size of each encoder level; odd.
        bn_epsilon: added to the variance by BatchNorm; the default is PyTorch's, the paper's framework.
        mean, std: of each channel of RGB in [0, 1]. The network computes with (image - mean) / std, and its
            output is turned back. The paper's has the image as it is; 0.45 and 0.25 learned more in few steps.
        head: what follows the last partial convolution. ``none`` is the paper's; ``sigmoid`` is LeakyReLU 0.2, a
            1x1 convolution to 3 channels and a sigmoid, as some implementations have it.
    """

    image_size: int = 512
    filters: tuple[int, ...] = (64, 128, 256, 512, 512, 512, 512, 512)
    kernels: tuple[int, ...] = (7, 5, 5, 3, 3, 3, 3, 3)
    bn_epsilon: float = 1e-5
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    head: str = "none"

    def __post_init__(self):
        require(
            len(self.filters) >= 1 and min(self.filters) >= 1,
            "unet.filters",
            "one or more positive integers",
            self.filters,
        )
        require(
            len(self.kernels) == len(self.filters) and all(k >= 1 and k % 2 for k in self.kernels),
            "unet.kernels",
            f"{len(self.filters)} odd sizes, one per entry of unet.filters",
            self.kernels,
        )
        fits = self.image_size // self.stride * self.stride
        require(
            self.image_size >= self.stride and fits == self.image_size,
            "unet.image_size",
            f"a multiple of {self.stride} (2 to the power of {self.depth} levels; {max(fits, self.stride)} would work)",
            self.image_size,
        )
        require(0 < self.bn_epsilon < math.inf, "unet.bn_epsilon", "more than 0", self.bn_epsilon)
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        require(finite and len(self.mean) == 3, "unet.mean", "three numbers", self.mean)
        require(finite and len(self.std) == 3 and min(self.std) > 0, "unet.std", "three positive numbers", self.std)
        require(self.head in HEADS, "unet.head", f"one of {HEADS}", self.head)

    @property
    def normalizes(self) -> bool:
        """Whether `mean` and `std` are any but those that leave the image as it is."""
        return any(self.mean) or any(std != 1 for std in self.std)

    @property
    def depth(self) -> int:
        return len(self.filters)

    @property
    def stride(self) -> int:
        """Input sizes are multiples of this many pixels."""
        return 2**self.depth


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the six terms of the paper's total loss (section 3.3). A term of weight 0 is not computed.

    Attributes:
        vgg: where VGG-16's weights come from: ``bundled``, ``keras`` (downloaded by Keras), ``keras:FILE`` or
            ``torchvision:FILE`` (see `trainer.model.vgg`).
    """

    valid: float = 1.0
    hole: float = 6.0
    perceptual: float = 0.05
    style_output: float = 120.0
    style_composite: float = 120.0
    total_variation: float = 0.1
    vgg: str = "bundled"

    def __post_init__(self):
        weights = dataclasses.asdict(self)
        del weights["vgg"]
        for name, weight in weights.items():
            require(0 <= weight < math.inf, f"loss.{name}", "a weight of 0 or more", weight)
        require(any(weights.values()), "loss", "one or more positive weights", weights)
        # Workers run in other folders: a relative path would name another file there.
        require(
            self.vgg in ("bundled", "keras") or re.match(r"(keras|torchvision):(/|gs://)", self.vgg) is not None,
            "loss.vgg",
            "bundled, keras, keras:FILE or torchvision:FILE with FILE a full path or gs://",
            self.vgg,
        )

    @property
    def needs_features(self) -> bool:
        """Whether any term compares VGG-16 features."""
        return any((self.perceptual, self.style_output, self.style_composite))
