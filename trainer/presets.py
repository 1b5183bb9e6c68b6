"""Named configs, ``--set`` overrides and the JSON form of a `TrainConfig`.

config = override(PRESETS["demo"], ["initial.steps=50", "unet.filters=16,32,64,64,64"])
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_type_hints

from trainer.config import (
    CheckpointConfig,
    DataConfig,
    LossConfig,
    PhaseConfig,
    TrainConfig,
    UNetConfig,
    ValidationConfig,
)
from trainer.errors import UserError

PRESETS = {
    # A small network that two CPU workers train in about three minutes, on the terms that need no
    # VGG-16, which would take most of a step. It is for few steps on few photographs: of the 28 that
    # tests/benchmarks/learning.py had, 600 steps with mean, std and learning rate as they are here gave 20.21 dB
    # in holes (120 held-out pairs), and 20.62 with these weights of the loss besides; images as they are, 4e-3, and
    # the paper's weights of valid and total variation gave 19.53.
    "demo": TrainConfig(
        unet=UNetConfig(
            image_size=128,
            filters=(32, 64, 128, 128, 128),
            kernels=(7, 5, 3, 3, 3),
            mean=(0.45, 0.45, 0.45),
            std=(0.25, 0.25, 0.25),
        ),
        loss=LossConfig(valid=0.3, perceptual=0.0, style_output=0.0, style_composite=0.0, total_variation=0.0),
        initial=PhaseConfig(steps=600, learning_rate=1e-2, schedule="cosine", warmup_steps=50),
        finetune=PhaseConfig(steps=0, learning_rate=2e-4, freeze_encoder_bn=True),
        data=DataConfig(crop_scale=(0.4, 1.0)),
        checkpoint=CheckpointConfig(every=100),
        validation=ValidationConfig(every=200, examples=24),
        global_batch_size=16,
        precision="mixed_bfloat16",
        clip_norm=1.0,
        log_every=20,
    ),
    # Section 4 of the paper: network, losses, learning rates, batch size of 6. It gives days of
    # training, not steps: the steps are ours.
    "paper": TrainConfig(
        initial=PhaseConfig(steps=500_000, learning_rate=2e-4),
        finetune=PhaseConfig(steps=50_000, learning_rate=5e-5, freeze_encoder_bn=True),
    ),
}


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Every value under its dotted key: ``{"unet.image_size": 512, ...}``."""
    flat = {}
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": v for inner, v in value.items()})
        else:
            flat[key] = value
    return flat


@contextlib.contextmanager
def _inside(group: str) -> Iterator[None]:
    """Names the phase in the message of a `PhaseConfig`, which does not know which one it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(group) else f"{group}.{error}") from None


def _name_of(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _parse(key: str, text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if get_args(kind):
            item = get_args(kind)[0]
            return tuple(item(part) for part in text.strip("()").split(",") if part.strip())
        return kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{key}: expected {_name_of(kind)}. Received {text!r}.") from None


def override(config: TrainConfig, assignments: Iterable[str]) -> TrainConfig:
    """``config`` with ``a.b=value`` texts applied together, then checked once.

    The steps of a phase take the place of its epochs, and the other way round.

    Raises:
        ValueError: an unknown key (the message lists the valid ones) or a value that does not fit.
    """
    valid = flatten(config)
    changes: dict[str, dict] = {"": {}}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected key=value. Received {assignment!r}.")
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"unknown key {key!r}.{hint} Valid keys: {', '.join(valid)}.")
        group, _, name = key.rpartition(".")
        owner = getattr(config, group) if group else config
        changes.setdefault(group, {})[name] = _parse(key, text, get_type_hints(type(owner))[name])
    top = changes.pop("")
    for group, values in changes.items():
        if values.get("steps"):
            values.setdefault("epochs", 0.0)
        if values.get("epochs"):
            values.setdefault("steps", 0)
        with _inside(group):
            top[group] = dataclasses.replace(getattr(config, group), **values)
    return dataclasses.replace(config, **top)


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
    for name in ("initial", "finetune"):
        phase = getattr(config, name)
        if phase.epochs:
            # 0.1 x 30 is a little more than 3: what lies within rounding of a whole step is one.
            steps = math.ceil(round(phase.epochs * images / config.global_batch_size, 6))
            phases[name] = dataclasses.replace(phase, steps=max(1, steps), epochs=0.0)
    return dataclasses.replace(config, **phases)


def to_json(config: TrainConfig) -> bytes:
    return json.dumps(dataclasses.asdict(config), indent=1, sort_keys=True).encode()


def _fits(value: Any, kind: Any) -> bool:
    if items := get_args(kind):
        return isinstance(value, list) and all(_fits(item, items[0]) for item in value)
    return type(value) is kind or (kind is float and type(value) is int)


def from_json(data: bytes) -> TrainConfig:
    """Inverse of `to_json`. A key that is missing, as an older version would leave it, takes its default.

    Raises:
        ValueError: the text is not JSON, has an unknown key, or a value that does not fit its key.
    """

    def build(cls, values, group):
        if not isinstance(values, dict):
            raise ValueError(f"expected the fields of {cls.__name__}. Received {values!r}.")
        hints = get_type_hints(cls)
        if unknown := values.keys() - hints.keys():
            raise ValueError(f"unknown config keys {sorted(unknown)}; was it written by a newer version?")
        fields = {}
        for key, value in values.items():
            kind = hints[key]
            if dataclasses.is_dataclass(kind):
                value = build(kind, value, key)
            elif not _fits(value, kind):
                raise ValueError(f"{group}.{key}: expected {_name_of(kind)}. Received {value!r}.".removeprefix("."))
            fields[key] = tuple(value) if isinstance(value, list) else value
        with _inside(group) if group else contextlib.nullcontext():
            return cls(**fields)

    return build(TrainConfig, json.loads(data), "")
