"""Named configs, ``key=value`` overrides and the JSON form of a `TrainConfig`.

config = override(PRESETS["demo"], ["initial.steps=50", "unet.filters=16,32,64,64,64"])
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainer import documents
from trainer.config import (
    PHASES,
    CheckpointConfig,
    DataConfig,
    LossConfig,
    PhaseConfig,
    ScalingConfig,
    TrainConfig,
    UNetConfig,
    ValidationConfig,
)
from trainer.errors import UserError

PRESETS = {
    # A small network that two CPU cores train in minutes, on the term that needs no VGG-16, which would take most of a
    # step. Few steps on few photographs teach less than interpolation knows: after 12,000 of 16 a network that predicts
    # the image (tests/benchmarks/learning.py) was between 1.59 dB below it, at small holes, and 0.02 above (60 pairs).
    "demo": TrainConfig(
        unet=UNetConfig(
            image_size=128,
            filters=(32, 64, 128, 128, 128),
            kernels=(7, 5, 3, 3, 3),
            mean=(0.45, 0.45, 0.45),
            std=(0.25, 0.25, 0.25),
            residual=True,
        ),
        loss=LossConfig(valid=0.0, perceptual=0.0, style_output=0.0, style_composite=0.0, total_variation=0.0),
        initial=PhaseConfig(steps=240, learning_rate=3e-3, schedule="cosine", warmup_steps=50),
        finetune=PhaseConfig(steps=0, learning_rate=2e-4, freeze_encoder_bn=True),
        data=DataConfig(crop_scale=(0.4, 1.0)),
        checkpoint=CheckpointConfig(every=120),
        validation=ValidationConfig(every=120, examples=24),
        global_batch_size=8,
        precision="mixed_bfloat16",
        clip_norm=1.0,
        log_every=20,
    ),
    # For hundreds of photographs: the recipe of the starter model (tests/benchmarks/starter_gpu.py has what it was
    # chosen from), with one more level for squares of 256 alone. Its 20,000 steps on 293 photographs took an H100 152 s
    # on Keras's JAX backend, beside other work, after 141 s of compiling. PSNR in the holes of photographs kept aside
    # was then above interpolation by 0.99, 0.99, 1.12, 1.00, 0.61 and 0.43 dB, from the smallest holes to the largest.
    "small": TrainConfig(
        unet=UNetConfig(
            image_size=256,
            filters=(32, 64, 128, 256, 256, 256),
            kernels=(7, 5, 3, 3, 3, 3),
            mean=(0.45, 0.45, 0.45),
            std=(0.25, 0.25, 0.25),
            refine=32,
            residual=True,
        ),
        loss=LossConfig(
            valid=0.0,
            hole=0.0,
            perceptual=0.0,
            style_output=0.0,
            style_composite=0.0,
            total_variation=0.0,
            hole_log=1.0,
        ),
        initial=PhaseConfig(steps=20_000, learning_rate=3e-3, schedule="cosine", warmup_steps=100),
        finetune=PhaseConfig(steps=0, learning_rate=2e-4, freeze_encoder_bn=True),
        data=DataConfig(crop_scale=(0.35, 1.0)),
        scaling=ScalingConfig(workers=1, cpus_per_worker=2),
        global_batch_size=8,
        precision="mixed_bfloat16",
        clip_norm=1.0,
        ema_decay=0.999,
    ),
    # Section 4 of the paper: network, losses, learning rates, batch size of 6. It gives days of
    # training, not steps: the steps are ours.
    "paper": TrainConfig(
        initial=PhaseConfig(steps=500_000, learning_rate=2e-4),
        finetune=PhaseConfig(steps=50_000, learning_rate=5e-5, freeze_encoder_bn=True),
    ),
}


_ADAPTER = TypeAdapter(TrainConfig)


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, flatten(PRESETS["paper"]), n=1)
    return f"unknown key {key!r}." + (f" Did you mean {near[0]}?" if near else "")


def explain(error: ValidationError) -> str:
    """What pydantic found wrong with a config, as ``key: expected .... Received ....`` for each value."""
    return documents.explain(error, _unknown)


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Every value under its dotted key: ``{"unet.image_size": 512, ...}``."""
    flat = {}
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": v for inner, v in value.items()})
        else:
            flat[key] = value
    return flat


def override(config: TrainConfig, assignments: Iterable[str]) -> TrainConfig:
    """``config`` with ``a.b=value`` texts applied together, then validated once.

    A tuple is written as its values with commas between. Setting the steps of a phase clears its epochs, and the
    other way round.

    Raises:
        ValueError: an unknown key (the message lists the valid ones) or an invalid value.
    """
    valid, given = flatten(config), {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected key=value. Received {assignment!r}.")
        if key not in valid:
            raise ValueError(f"{_unknown(key)} Valid keys: {', '.join(valid)}.")
        given[key] = text
    for phase in PHASES:
        for key, other in ((f"{phase}.steps", f"{phase}.epochs"), (f"{phase}.epochs", f"{phase}.steps")):
            if given.get(key, "").strip("0.") and other not in given:
                given[other] = "0"
    values = dataclasses.asdict(config)
    for key, text in given.items():
        group, _, name = key.rpartition(".")
        parts = [part.strip() for part in text.strip("()").split(",") if part.strip()]
        (values[group] if group else values)[name] = parts if isinstance(valid[key], tuple) else text
    try:
        return _ADAPTER.validate_python(values, strict=False)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def resolve_config(preset: str, assignments: Iterable[str]) -> TrainConfig:
    """A preset with overrides, as commands have them from their options.

    Raises:
        UserError: see `override`.
    """
    try:
        return override(PRESETS[preset], assignments)
    except ValueError as error:
        raise UserError(str(error)) from None


def resolve_epochs(config: TrainConfig, images: int) -> TrainConfig:
    """``config`` with steps in place of epochs, which are passes over ``images``; the last pass is seen whole."""
    phases = {}
    for name in PHASES:
        phase = getattr(config, name)
        if phase.epochs:
            # 0.1 x 30 is a little more than 3: what lies within rounding of a whole step is one.
            steps = math.ceil(round(phase.epochs * images / config.examples_per_step, 6))
            phases[name] = dataclasses.replace(phase, steps=max(1, steps), epochs=0.0)
    return dataclasses.replace(config, **phases)


def to_json(config: TrainConfig) -> bytes:
    return json.dumps(dataclasses.asdict(config), indent=1, sort_keys=True).encode()


def from_json(data: bytes) -> TrainConfig:
    """Inverse of `to_json`. A missing key, as an older version would leave it, takes its default.

    Raises:
        ValueError: the text is not JSON, has an unknown key, or an invalid value.
    """
    return documents.parse(data, _ADAPTER, _unknown)
