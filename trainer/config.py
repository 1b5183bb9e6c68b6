"""What a training run is made of: frozen dataclasses that check themselves.

A wrong value is refused when it is set, so at launch. The resolved config is written to
``config.json`` of the run and read back from there by inference. Presets and overrides: `presets`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from trainer.metrics import validation_metrics
from trainer.network_config import LossConfig, UNetConfig
from trainer.network_config import require as _require

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
SCHEDULES = ("constant", "cosine")
DEVICES = ("cpu", "gpu")


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One phase of training.

    Attributes:
        steps: optimizer steps; 0 leaves the phase out.
        epochs: passes over the images, in place of steps; the launch turns them into steps (`presets.resolve_epochs`).
        learning_rate: Adam's, at the start of the phase.
        schedule: ``constant``, or ``cosine`` down to 0 over the phase.
        warmup_steps: steps over which the rate first rises linearly from 0.
        freeze_encoder_bn: the encoder's BatchNorm statistics, gamma and beta stay as they are.
    """

    steps: int = 0
    epochs: float = 0.0
    learning_rate: float = 2e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    freeze_encoder_bn: bool = False

    def __post_init__(self):
        _require(self.steps >= 0, "steps", "0 or more", self.steps)
        _require(0 <= self.epochs < math.inf, "epochs", "0 or more", self.epochs)
        _require(not (self.steps and self.epochs), "epochs", f"0 beside steps={self.steps}", self.epochs)
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
        mask_flip: mirror masks left to right and upside down, each half of them.
        mask_turn: turn masks by 0, 90, 180 or 270 degrees.
        mask_dilate: holes grow by a number of pixels up to this (the paper's authors name 9 to 49); more holes than
            the masks were made with.
        mask_shift: masks move by up to this share of their side; what comes in is valid, so fewer holes.
        mask_crop: a mask is a square of at least this share of its side, enlarged; 1: all of it.
        shuffle_buffer: records of a shard that are shuffled among themselves; shards are shuffled besides.
        streams: places of the dataset that are read in turn. A number of workers that divides it reads each shard
            once; any other gives the same examples and reads more.
        cache_gb: gigabytes (1e9 bytes) of a host's disk for shards from buckets.
    """

    split: str = "train"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    mask_flip: bool = True
    mask_turn: bool = True
    mask_dilate: int = 0
    mask_shift: float = 0.0
    mask_crop: float = 1.0
    shuffle_buffer: int = 2048
    streams: int = 16
    cache_gb: float = 16.0

    def __post_init__(self):
        low, high = self.crop_scale if len(self.crop_scale) == 2 else (0, 0)
        _require(0 < low <= high <= 1, "data.crop_scale", "(low, high) with 0 < low <= high <= 1", self.crop_scale)
        _require(self.mask_dilate >= 0, "data.mask_dilate", "0 or more", self.mask_dilate)
        _require(0 <= self.mask_shift < 1, "data.mask_shift", "a share, 0 or more, less than 1", self.mask_shift)
        _require(0 < self.mask_crop <= 1, "data.mask_crop", "a share, more than 0, at most 1", self.mask_crop)
        _require(self.shuffle_buffer >= 1, "data.shuffle_buffer", "1 or more", self.shuffle_buffer)
        _require(1 <= self.streams <= 4096, "data.streams", "1 .. 4096", self.streams)
        _require(0 < self.cache_gb < math.inf, "data.cache_gb", "more than 0", self.cache_gb)


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """Ray workers: how many, and what each one holds.

    Attributes:
        workers: worker processes; each computes ``global_batch_size / workers`` examples of a step.
        min_workers: go on with as few as this while machines are missing, and with more again when they are back;
            0: wait for all of them.
        cpus_per_worker: cores reserved for a worker, and TensorFlow's threads in it.
        device: ``cpu``, or ``gpu`` for one GPU per worker.
        max_failures: how often a worker group that died is started again from the newest checkpoint.
        xla: compile parts of the step with XLA; for GPUs, where TensorFlow picks the parts.
    """

    workers: int = 2
    min_workers: int = 0
    cpus_per_worker: int = 1
    device: str = "cpu"
    max_failures: int = 3
    xla: bool = False

    def __post_init__(self):
        _require(self.workers >= 1, "scaling.workers", "1 or more", self.workers)
        _require(0 <= self.min_workers <= self.workers, "scaling.min_workers", "0 .. workers", self.min_workers)
        _require(self.cpus_per_worker >= 1, "scaling.cpus_per_worker", "1 or more", self.cpus_per_worker)
        _require(self.device in DEVICES, "scaling.device", f"one of {DEVICES}", self.device)
        _require(self.max_failures >= 0, "scaling.max_failures", "0 or more", self.max_failures)
        # TensorFlow picks no parts for CPUs, where a step compiled as a whole was slower: 1.0 images/s against 1.4.
        _require(not self.xla or self.device == "gpu", "scaling.xla", "false unless scaling.device=gpu", self.xla)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint every ``every`` steps and at the end; the newest ``keep`` and the best stay.

    Attributes:
        background: write them while training goes on.
        best: metric of the validation by which the best is chosen.
    """

    every: int = 1000
    keep: int = 3
    background: bool = True
    best: str = "psnr"

    def __post_init__(self):
        _require(self.every >= 1, "checkpoint.every", "1 or more", self.every)
        _require(self.keep >= 1, "checkpoint.keep", "1 or more", self.keep)
        _require(self.best in validation_metrics(), "checkpoint.best", f"one of {validation_metrics()}", self.best)


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Scores on held-out records, after every ``every`` steps and at the end.

    Attributes:
        every: steps; 0 leaves validation out.
        examples: how many pairs of an image and a mask; fewer where there are fewer masks.
        split: of the datasets that pairs are taken from.
        pictures: how many of the pairs are drawn into the picture grid.
    """

    every: int = 1000
    examples: int = 120
    split: str = "val"
    pictures: int = 4

    def __post_init__(self):
        _require(self.every >= 0, "validation.every", "0 or more", self.every)
        _require(self.examples >= 1, "validation.examples", "1 or more", self.examples)
        _require(self.pictures >= 0, "validation.pictures", "0 or more", self.pictures)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes.

    Attributes:
        global_batch_size: examples of one optimizer step, over all workers.
        precision: Keras dtype policy of the network: float32, mixed_bfloat16, or mixed_float16 with a loss scale.
        clip_norm: gradients whose norm, over all variables, is greater are scaled down to it; 0: none are.
        ema_decay: of an average of the weights, which validation and export then use; 0: there is none.
        skip_nonfinite: how many steps with a loss that is not finite may be left out before training stops.
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
    global_batch_size: int = 6
    precision: str = "float32"
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    skip_nonfinite: int = 0
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
        for workers in range(self.scaling.min_workers or self.scaling.workers, self.scaling.workers):
            _require(
                self.global_batch_size % workers == 0,
                "global_batch_size",
                f"a multiple of each number of workers from scaling.min_workers={self.scaling.min_workers} to "
                f"scaling.workers={self.scaling.workers}",
                self.global_batch_size,
            )
        _require(0 <= self.clip_norm < math.inf, "clip_norm", "0 or more", self.clip_norm)
        _require(0 <= self.ema_decay < 1, "ema_decay", "0 or more, less than 1", self.ema_decay)
        _require(self.skip_nonfinite >= 0, "skip_nonfinite", "0 or more", self.skip_nonfinite)
        some = self.total_steps >= 1 or self.initial.epochs or self.finetune.epochs
        _require(some, "initial.steps + finetune.steps", "1 or more", self.total_steps)

    @property
    def total_steps(self) -> int:
        return self.initial.steps + self.finetune.steps

    @property
    def per_worker_batch_size(self) -> int:
        return self.global_batch_size // self.scaling.workers

    def phase_at(self, step: int) -> str:
        """Name of the phase that computes step number ``step`` (0-based)."""
        return "initial" if step < self.initial.steps else "finetune"
