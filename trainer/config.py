"""What a training run is made of: frozen dataclasses that check themselves.

A wrong value is refused when it is set, so at launch. The resolved config is written to
``config.json`` of the run and read back from there by inference. Presets and overrides: `presets`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any

PRECISIONS = ("float32", "mixed_bfloat16")
SCHEDULES = ("constant", "cosine")
DEVICES = ("cpu", "gpu")
HEADS = ("none", "sigmoid")


def _require(condition: bool, key: str, expected: str, received: Any) -> None:
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
            output is turned back. The paper's has the image as it is.
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
        _require(
            len(self.filters) >= 1 and min(self.filters) >= 1,
            "unet.filters",
            "one or more positive integers",
            self.filters,
        )
        _require(
            len(self.kernels) == len(self.filters) and all(k >= 1 and k % 2 for k in self.kernels),
            "unet.kernels",
            f"{len(self.filters)} odd sizes, one per entry of unet.filters",
            self.kernels,
        )
        fits = self.image_size // self.stride * self.stride
        _require(
            self.image_size >= self.stride and fits == self.image_size,
            "unet.image_size",
            f"a multiple of {self.stride} (2 to the power of {self.depth} levels; "
            f"{max(fits, self.stride)} would work)",
            self.image_size,
        )
        _require(0 < self.bn_epsilon < math.inf, "unet.bn_epsilon", "more than 0", self.bn_epsilon)
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        _require(finite and len(self.mean) == 3, "unet.mean", "three numbers", self.mean)
        _require(finite and len(self.std) == 3 and min(self.std) > 0, "unet.std", "three positive numbers", self.std)
        _require(self.head in HEADS, "unet.head", f"one of {HEADS}", self.head)

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
            ``torchvision:FILE`` (see `trainer.vgg_weights`).
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
            _require(0 <= weight < math.inf, f"loss.{name}", "a weight of 0 or more", weight)
        _require(any(weights.values()), "loss", "one or more positive weights", weights)
        # Workers run in other folders: a relative path would name another file there.
        _require(
            self.vgg in ("bundled", "keras") or re.match(r"(keras|torchvision):(/|gs://)", self.vgg) is not None,
            "loss.vgg",
            "bundled, keras, keras:FILE or torchvision:FILE with FILE a full path or gs://",
            self.vgg,
        )

    @property
    def needs_features(self) -> bool:
        """Whether any term compares VGG-16 features."""
        return any((self.perceptual, self.style_output, self.style_composite))


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One phase of training.

    Attributes:
        steps: optimizer steps; 0 leaves the phase out.
        learning_rate: Adam's, at the start of the phase.
        schedule: ``constant``, or ``cosine`` down to 0 over the phase.
        warmup_steps: steps over which the rate first rises linearly from 0.
        freeze_encoder_bn: the encoder's BatchNorm statistics, gamma and beta stay as they are.
    """

    steps: int = 0
    learning_rate: float = 2e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    freeze_encoder_bn: bool = False

    def __post_init__(self):
        _require(self.steps >= 0, "steps", "0 or more", self.steps)
        _require(0 < self.learning_rate < math.inf, "learning_rate", "more than 0", self.learning_rate)
        _require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}", self.schedule)
        _require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How records become training examples.

    Attributes:
        split: the dataset's split, the first part of its shards' names.
        crop_scale: side of the random square crop, as a share of the image's shorter side (low, high).
        flip: mirror half of the images left to right.
        shuffle_buffer: records held in memory to shuffle within; shards are shuffled besides.
    """

    split: str = "train"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    shuffle_buffer: int = 2048

    def __post_init__(self):
        low, high = self.crop_scale if len(self.crop_scale) == 2 else (0, 0)
        _require(0 < low <= high <= 1, "data.crop_scale", "(low, high) with 0 < low <= high <= 1", self.crop_scale)
        _require(self.shuffle_buffer >= 1, "data.shuffle_buffer", "1 or more", self.shuffle_buffer)


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """Ray workers: how many, and what each one holds.

    Attributes:
        workers: worker processes; each computes ``global_batch_size / workers`` examples of a step.
        cpus_per_worker: cores reserved for a worker, and TensorFlow's threads in it.
        device: ``cpu``, or ``gpu`` for one GPU per worker.
        max_failures: how often a worker group that died is started again from the newest checkpoint.
    """

    workers: int = 2
    cpus_per_worker: int = 1
    device: str = "cpu"
    max_failures: int = 3

    def __post_init__(self):
        _require(self.workers >= 1, "scaling.workers", "1 or more", self.workers)
        _require(self.cpus_per_worker >= 1, "scaling.cpus_per_worker", "1 or more", self.cpus_per_worker)
        _require(self.device in DEVICES, "scaling.device", f"one of {DEVICES}", self.device)
        _require(self.max_failures >= 0, "scaling.max_failures", "0 or more", self.max_failures)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint every ``every`` steps and at the end; the newest ``keep`` stay."""

    every: int = 1000
    keep: int = 3

    def __post_init__(self):
        _require(self.every >= 1, "checkpoint.every", "1 or more", self.every)
        _require(self.keep >= 1, "checkpoint.keep", "1 or more", self.keep)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes.

    Attributes:
        global_batch_size: examples of one optimizer step, over all workers.
        precision: Keras dtype policy of the network: float32 or mixed_bfloat16.
        seed: of weights, data order and augmentation.
        log_every: steps between two progress lines.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    initial: PhaseConfig = field(default_factory=PhaseConfig)
    finetune: PhaseConfig = field(default_factory=PhaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    global_batch_size: int = 6
    precision: str = "float32"
    seed: int = 0
    log_every: int = 10

    def __post_init__(self):
        _require(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}", self.precision)
        _require(self.log_every >= 1, "log_every", "1 or more", self.log_every)
        _require(0 <= self.seed < 2**63, "seed", "0 or more, of 63 bits", self.seed)
        _require(
            self.global_batch_size >= 1 and self.global_batch_size % self.scaling.workers == 0,
            "global_batch_size",
            f"a positive multiple of scaling.workers={self.scaling.workers}",
            self.global_batch_size,
        )
        _require(self.total_steps >= 1, "initial.steps + finetune.steps", "1 or more", self.total_steps)

    @property
    def total_steps(self) -> int:
        return self.initial.steps + self.finetune.steps

    @property
    def per_worker_batch_size(self) -> int:
        return self.global_batch_size // self.scaling.workers

    def phase_at(self, step: int) -> str:
        """Name of the phase that computes step number ``step`` (0-based)."""
        return "initial" if step < self.initial.steps else "finetune"
