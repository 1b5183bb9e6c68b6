"""Training configuration: frozen, self-validating dataclasses.

Field types carry the limits of single values and pydantic checks them; rules between fields stand in
``__post_init__``. A wrong value raises ValueError (pydantic's ``ValidationError``) when the config is made, so at
launch. The resolved config is written to the run's ``config.json``. Presets, overrides and JSON: `presets`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.metrics import validation_metrics

PHASES = ("initial", "finetune")  # in order
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
MAX_STREAMS = 4096

# No unknown fields; no conversion of types in Python and JSON, where only an int may stand for a float.
_STRICT = ConfigDict(extra="forbid", strict=True)

_Count = Annotated[int, Field(ge=0, le=2**53)]
_PositiveInt = Annotated[int, Field(ge=1, le=2**53)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]  # fraction in [0, 1)
_UpToOne = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]  # fraction in (0, 1]


def _require(condition: bool, key: str, expected: str, received: Any) -> None:
    """Raises `ValueError` naming the field ``key`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{key}: expected {expected}. Received {received!r}.")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
            output is mapped back. The paper feeds images as they are; 0.45 and 0.25 learned more in few steps.
        head: what follows the last partial convolution. ``none`` is the paper's; ``sigmoid`` is LeakyReLU 0.2, a
            1x1 convolution to 3 channels and a sigmoid, as some implementations have it.
        refine: channels of one more stage at the full size of the image, before the last partial convolution; 0: none.
            The paper has none: at full size its network is one linear layer, and fine structure beside the edge of a
            hole has to come through features of half the size.
        residual: predict what to add to holes that are interpolated (`trainer.model.interpolation`), in place of the
            image itself, as the paper does: a short training spends nothing on what interpolation knows. The stages
            that see the image see the interpolated one, too.
    """

    image_size: Annotated[int, Field(ge=1, le=2**14)] = 512
    filters: tuple[_PositiveInt, ...] = (64, 128, 256, 512, 512, 512, 512, 512)
    kernels: tuple[_PositiveInt, ...] = (7, 5, 5, 3, 3, 3, 3, 3)
    bn_epsilon: _Positive = 1e-5
    mean: tuple[_Finite, _Finite, _Finite] = (0.0, 0.0, 0.0)
    std: tuple[_Positive, _Positive, _Positive] = (1.0, 1.0, 1.0)
    head: Literal["none", "sigmoid"] = "none"
    refine: _Count = 0
    residual: bool = False

    def __post_init__(self) -> None:
        _require(len(self.filters) >= 1, "filters", "one or more positive integers", self.filters)
        _require(
            len(self.kernels) == len(self.filters) and all(kernel % 2 for kernel in self.kernels),
            "kernels",
            f"{len(self.filters)} odd sizes, one per entry of unet.filters",
            self.kernels,
        )
        _require(self.head == "none" or not self.residual, "head", "none with unet.residual=true", self.head)
        fits = self.image_size // self.stride * self.stride
        _require(
            fits == self.image_size,
            "image_size",
            f"a multiple of {self.stride} (2 to the power of {self.depth} levels; {max(fits, self.stride)} would work)",
            self.image_size,
        )

    @property
    def normalizes(self) -> bool:
        """Whether `mean` and `std` change the image at all."""
        return any(self.mean) or any(std != 1 for std in self.std)

    @property
    def depth(self) -> int:
        return len(self.filters)

    @property
    def kernel_values(self) -> int:
        """Number of the values in all kernels of partial convolutions, nearly all weights of the network."""
        inputs = (3, *self.filters[:-1])  # of the encoder's levels
        encoder = sum(size**2 * a * b for size, a, b in zip(self.kernels, inputs, self.filters, strict=True))
        views = 6 if self.residual else 3  # channels of the image, and of the interpolated one
        skips, outputs = (views, *self.filters[:-1]), (self.refine or 3, *self.filters[:-1])
        decoder = sum(9 * (a + b) * c for a, b, c in zip(self.filters, skips, outputs, strict=True))
        return encoder + decoder + (9 * (self.refine + views) * 3 if self.refine else 0)

    @property
    def stride(self) -> int:
        """Input sizes are multiples of this many pixels."""
        return 2**self.depth


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LossConfig:
    """Weights of the terms of the total loss; the defaults are the paper's (section 3.3).

    Every field but `vgg` is the weight of the term of that name in `trainer.model.losses.TERMS`. A term of weight 0
    is not computed.

    Attributes:
        hole_mean, hole_log: terms that the paper has not: every image counts the same, however small its holes are.
            `hole` divides by the whole image, so it hardly sees small ones.
        vgg: source of VGG-16's weights: ``bundled``, ``keras`` (downloaded by Keras), ``keras:FILE`` or
            ``torchvision:FILE`` (see `trainer.model.vgg`).
    """

    valid: _NonNegative = 1.0
    hole: _NonNegative = 6.0
    perceptual: _NonNegative = 0.05
    style_output: _NonNegative = 120.0
    style_composite: _NonNegative = 120.0
    total_variation: _NonNegative = 0.1
    hole_mean: _NonNegative = 0.0
    hole_log: _NonNegative = 0.0
    vgg: str = "bundled"

    def __post_init__(self) -> None:
        if not any(self.weights.values()):
            raise ValueError(f"expected one or more positive weights. Received {self.weights}.")
        # Workers run in other folders: a relative path would name another file there.
        _require(
            self.vgg in ("bundled", "keras") or re.match(r"(keras|torchvision):(/|[a-z0-9]+://)", self.vgg) is not None,
            "vgg",
            "bundled, keras, keras:FILE or torchvision:FILE with FILE a full path or an address such as gs://B/FILE",
            self.vgg,
        )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term by its name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "vgg"}


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PhaseConfig:
    """One phase of training.

    Attributes:
        steps: optimizer steps; 0 skips the phase.
        epochs: passes over the images, instead of steps; the launch turns them into steps (`presets.resolve_epochs`).
        learning_rate: Adam's, at the start of the phase.
        schedule: ``constant``, or ``cosine`` decay to 0 over the phase.
        warmup_steps: steps over which the rate first rises linearly from 0.
        freeze_encoder_bn: the encoder's BatchNorm statistics, gamma and beta stay as they are.
    """

    steps: _Count = 0
    epochs: _NonNegative = 0.0
    learning_rate: _Positive = 2e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: _Count = 0
    freeze_encoder_bn: bool = False

    def __post_init__(self) -> None:
        _require(not (self.steps and self.epochs), "epochs", f"0 beside steps={self.steps}", self.epochs)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """How records become training examples.

    Attributes:
        split: the dataset's split, the first part of its shards' names.
        crop_scale: side of the random square crop, as a fraction of the image's shorter side (low, high).
        flip: mirror half of the images left to right.
        mask_flip: mirror half of the masks left to right, and half of them upside down.
        mask_turn: turn masks by 0, 90, 180 or 270 degrees.
        mask_dilate: holes grow by up to this many pixels (the paper's authors name 9 to 49), so there is more hole
            than the masks were made with.
        mask_shift: masks move by up to this fraction of their side; what comes in is valid, so there is less hole.
        mask_crop: a mask is a square of at least this fraction of its side, enlarged; 1: all of it.
        shuffle_buffer: records of a shard that are shuffled among themselves; the order of shards is shuffled, too.
        streams: positions in the dataset that are read in turn. A number of workers that divides it reads each shard
            once; any other gives the same examples and reads more. ``auto`` fits them to the workers and shards that a
            run begins with, and keeps them when it continues with others; the launch turns it into a number.
        cache_gb: gigabytes (1e9 bytes) of a host's disk for shards from buckets.
    """

    split: str = "train"
    crop_scale: tuple[_UpToOne, _UpToOne] = (0.5, 1.0)
    flip: bool = True
    mask_flip: bool = True
    mask_turn: bool = True
    mask_dilate: _Count = 0
    mask_shift: _BelowOne = 0.0
    mask_crop: _UpToOne = 1.0
    shuffle_buffer: _PositiveInt = 2048
    streams: Annotated[int, BeforeValidator(lambda x: 0 if x == "auto" else x), Field(ge=0, le=MAX_STREAMS)] = 16
    cache_gb: _Positive = 16.0

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        _require(low <= high, "crop_scale", "(low, high) with 0 < low <= high <= 1", self.crop_scale)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ScalingConfig:
    """Ray workers: how many, and the resources of each.

    Attributes:
        workers: worker processes; each computes ``global_batch_size / workers`` examples of a step.
        min_workers: continue with as few as this while machines are missing, and with more again when they are back;
            0: wait for all of them.
        cpus_per_worker: cores reserved for a worker, and TensorFlow's threads in it.
        device: ``cpu``, or ``gpu`` for one GPU per worker.
        max_failures: how often a worker group that died is restarted from the newest checkpoint.
        xla: compile parts of the step with XLA; for GPUs, where TensorFlow picks the parts.
        collective: how workers exchange gradients: ``nccl`` between GPUs, ``ring`` (gRPC) anywhere; ``auto``: nccl if
            the device is gpu.
        pack_mb: megabytes (10^6 bytes) of gradients that are exchanged at a time, while others are still computed.
        exchange_dtype: ``bfloat16`` halves what is exchanged, and rounds each worker's gradients to 8 bits.
    """

    workers: _PositiveInt = 2
    min_workers: _Count = 0
    cpus_per_worker: _PositiveInt = 1
    device: Literal["cpu", "gpu"] = "cpu"
    max_failures: _Count = 3
    xla: bool = False
    collective: Literal["auto", "nccl", "ring"] = "auto"
    pack_mb: _Positive = 8.0
    exchange_dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def resolved_collective(self) -> Literal["nccl", "ring"]:
        """``collective`` with ``auto`` decided."""
        if self.collective == "auto":
            return "nccl" if self.device == "gpu" else "ring"
        return self.collective

    def __post_init__(self) -> None:
        _require(self.min_workers <= self.workers, "min_workers", "0 .. scaling.workers", self.min_workers)
        # TensorFlow picks no parts for CPUs, where a step compiled as a whole was slower: 1.0 images/s against 1.4.
        _require(not self.xla or self.device == "gpu", "xla", "false unless scaling.device=gpu", self.xla)
        fits = self.collective != "nccl" or self.device == "gpu"
        _require(fits, "collective", "ring or auto unless scaling.device=gpu", self.collective)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CheckpointConfig:
    """A checkpoint every ``every`` steps and at the end; the newest ``keep`` and the best are kept.

    Attributes:
        every_minutes: one also as often as it takes for a machine that is lost to cost no more training than so many
            minutes, the time of writing included; where the storage is too slow for that, training waits for it.
            0: by steps alone.
        background: write them while training continues.
        best: validation metric by which the best is chosen.
    """

    every: _PositiveInt = 1000
    every_minutes: _NonNegative = 0.0
    keep: _PositiveInt = 3
    background: bool = True
    best: str = "psnr"

    def __post_init__(self) -> None:
        _require(self.best in validation_metrics(), "best", f"one of {validation_metrics()}", self.best)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ValidationConfig:
    """Scores on held-out records, after every ``every`` steps and at the end.

    Attributes:
        every: steps between two validations; 0: no validation.
        examples: how many pairs of an image and a mask; fewer where there are fewer masks.
        split: of the datasets that pairs are taken from.
        pictures: how many of the pairs are shown in the picture grid.
    """

    every: _Count = 1000
    examples: _PositiveInt = 120
    split: str = "val"
    pictures: _Count = 4


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainConfig:
    """Everything that decides what a run computes.

    Attributes:
        global_batch_size: examples that are computed at a time, over all workers.
        accumulate: an optimizer step is of so many times ``global_batch_size``, computed one part after the other: as
            one of a batch so many times as large, in the memory of the smaller one. BatchNorm alone takes the
            statistics of each part, and their mean for inference.
        precision: Keras dtype policy of the network: float32, mixed_bfloat16, or mixed_float16 with a loss scale. On a
            CPU without instructions for bfloat16, mixed_bfloat16 is computed in float32.
        clip_norm: maximum norm of the gradient over all variables; larger ones are scaled down to it. 0: no clipping.
        ema_decay: decay of an exponential moving average of the weights, which validation and export then use;
            0: no average.
        skip_nonfinite: how many steps with a non-finite loss may be skipped before training stops.
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
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    global_batch_size: _PositiveInt = 6
    accumulate: _PositiveInt = 1
    precision: Precision = "float32"
    clip_norm: _NonNegative = 0.0
    ema_decay: _BelowOne = 0.0
    skip_nonfinite: _Count = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    log_every: _PositiveInt = 10

    def __post_init__(self) -> None:
        most, fewest = self.scaling.workers, self.scaling.min_workers or self.scaling.workers
        numbers = f"scaling.workers={most}"
        if fewest < most:
            numbers = f"each number of workers from scaling.min_workers={fewest} to {numbers}"
        divides = all(self.global_batch_size % workers == 0 for workers in range(fewest, most + 1))
        _require(divides, "global_batch_size", f"a multiple of {numbers}", self.global_batch_size)
        some = self.total_steps or self.initial.epochs or self.finetune.epochs
        _require(bool(some), "initial.steps + finetune.steps", "1 or more", self.total_steps)

    @property
    def total_steps(self) -> int:
        return self.initial.steps + self.finetune.steps

    @property
    def examples_per_step(self) -> int:
        """Examples of one optimizer step, over all workers."""
        return self.global_batch_size * self.accumulate

    @property
    def per_worker_batch_size(self) -> int:
        """Examples that one worker computes at a time."""
        return self.global_batch_size // self.scaling.workers

    def phase_at(self, step: int) -> str:
        """Name of the phase that computes step number ``step`` (0-based)."""
        return "initial" if step < self.initial.steps else "finetune"
