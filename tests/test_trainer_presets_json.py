"""The JSON form of a config: what is written, what is read back, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from trainer.config import (
    CheckpointConfig,
    DataConfig,
    LossConfig,
    PhaseConfig,
    ScalingConfig,
    TrainConfig,
    UNetConfig,
    ValidationConfig,
)
from trainer.presets import PRESETS, from_json, to_json

FAR_FROM_THE_DEFAULTS = TrainConfig(
    unet=UNetConfig(image_size=24, filters=(3, 5, 7), kernels=(1, 3, 5)),
    loss=LossConfig(valid=0.0, hole=1e-9, perceptual=1.0, style_output=2.0, style_composite=3.0),
    initial=PhaseConfig(steps=7, learning_rate=0.1, schedule="cosine", warmup_steps=3, freeze_encoder_bn=True),
    finetune=PhaseConfig(steps=5),
    data=DataConfig(split="val", crop_scale=(0.1, 0.2), flip=False, shuffle_buffer=1),
    scaling=ScalingConfig(workers=3, cpus_per_worker=4, device="gpu", max_failures=0, xla=True),
    checkpoint=CheckpointConfig(every=9, keep=8),
    validation=ValidationConfig(every=0, examples=3, split="test", pictures=0),
    global_batch_size=9,
    precision="mixed_float16",
    clip_norm=0.5,
    ema_decay=0.99,
    skip_nonfinite=4,
    seed=2**63 - 1,
    log_every=6,
)
# What commit 383277e wrote for it, key by key.
EARLIER = {
    "checkpoint": {"background": True, "best": "psnr", "every": 9, "keep": 8},
    "clip_norm": 0.5,
    "data": {
        "cache_gb": 16.0,
        "crop_scale": [0.1, 0.2],
        "flip": False,
        "mask_crop": 1.0,
        "mask_dilate": 0,
        "mask_flip": True,
        "mask_shift": 0.0,
        "mask_turn": True,
        "shuffle_buffer": 1,
        "split": "val",
        "streams": 16,
    },
    "ema_decay": 0.99,
    "finetune": {"epochs": 0.0, "freeze_encoder_bn": False, "learning_rate": 0.0002, "schedule": "constant"}
    | {"steps": 5, "warmup_steps": 0},
    "global_batch_size": 9,
    "initial": {"epochs": 0.0, "freeze_encoder_bn": True, "learning_rate": 0.1, "schedule": "cosine"}
    | {"steps": 7, "warmup_steps": 3},
    "log_every": 6,
    "loss": {"hole": 1e-09, "perceptual": 1.0, "style_composite": 3.0, "style_output": 2.0, "total_variation": 0.1}
    | {"valid": 0.0, "vgg": "bundled"},
    "precision": "mixed_float16",
    "scaling": {"cpus_per_worker": 4, "device": "gpu", "max_failures": 0, "min_workers": 0, "workers": 3, "xla": True},
    "seed": 9223372036854775807,
    "skip_nonfinite": 4,
    "unet": {
        "bn_epsilon": 1e-05,
        "filters": [3, 5, 7],
        "head": "none",
        "image_size": 24,
        "kernels": [1, 3, 5],
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    },
    "validation": {"every": 0, "examples": 3, "pictures": 0, "split": "test"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    config = PRESETS[name]
    assert from_json(to_json(config)) == config
    assert hash(from_json(to_json(config))) == hash(config)  # lists in place of tuples could not be hashed


def test_json_round_trip_of_values_far_from_the_defaults():
    assert from_json(to_json(FAR_FROM_THE_DEFAULTS)) == FAR_FROM_THE_DEFAULTS
    assert json.loads(to_json(FAR_FROM_THE_DEFAULTS))["initial"]["schedule"] == "cosine"


def test_json_of_earlier_commits_is_read_and_written_byte_for_byte():
    data = json.dumps(EARLIER, indent=1, sort_keys=True).encode()
    assert from_json(data) == FAR_FROM_THE_DEFAULTS

    def known(new, old):  # without keys that came later
        return {key: known(new[key], old[key]) if isinstance(old[key], dict) else new[key] for key in old}

    written = to_json(FAR_FROM_THE_DEFAULTS)
    assert written == json.dumps(json.loads(written), indent=1, sort_keys=True).encode()
    assert json.dumps(known(json.loads(written), EARLIER), indent=1, sort_keys=True).encode() == data


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(color=1), "unknown key 'color'. Was it written by a newer version"),
        (lambda c: c["unet"].update(filter=1), "unknown key 'unet.filter'. Did you mean unet.filters"),
        (lambda c: c.update(unet=[1]), r"unet: expected the fields of UNetConfig. Received \[1\]"),
        (lambda c: c.update(global_batch_size="6"), "global_batch_size: expected an integer. Received '6'"),
        (lambda c: c.update(seed=1.5), "seed: expected an integer. Received 1.5"),
        (lambda c: c.update(log_every=True), "log_every: expected an integer. Received True"),
        (lambda c: c["unet"].update(filters=64), "unet.filters: expected a list. Received 64"),
        (lambda c: c["unet"].update(filters=["64"]), r"unet.filters\[0\]: expected an integer. Received '64'"),
        (
            lambda c: c["unet"].update(filters=[]),
            r"unet.filters: expected one or more positive integers. Received \(\)",
        ),
        (lambda c: c["data"].update(flip="no"), "data.flip: expected true or false. Received 'no'"),
        (lambda c: c["data"].update(split=1), "data.split: expected a text. Received 1"),
        (lambda c: c["loss"].update(hole=None), "loss.hole: expected a number. Received None"),
        (lambda c: c["loss"].update(hole=-1), "loss.hole: expected 0 or more. Received -1"),
        (lambda c: c["finetune"].update(steps=-1), "finetune.steps: expected 0 or more. Received -1"),
        (lambda c: c["initial"].update(epochs=1), "initial.epochs: expected 0 beside steps=1. Received 1.0"),
        (lambda c: c["loss"].update(dict.fromkeys(LossConfig().weights, 0)), "loss: expected one or more positive"),
        (lambda c: c.update(seed=-1, clip_norm=-1), "clip_norm: .*Received -1. seed: .*Received -1"),
    ],
)
def test_json_of_something_else_is_refused(edit, message):
    fields = json.loads(to_json(TrainConfig(initial=PhaseConfig(steps=1))))
    edit(fields)
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps(fields).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"3", b'"text"', b"\xff\xfe"])
def test_what_is_not_a_json_object_is_refused(data):
    with pytest.raises(ValueError):
        from_json(data)


def test_keys_of_later_versions_take_their_defaults():
    fields = json.loads(to_json(PRESETS["demo"]))
    del fields["log_every"], fields["data"]["flip"]
    assert from_json(json.dumps(fields).encode()) == dataclasses.replace(PRESETS["demo"], log_every=10)
