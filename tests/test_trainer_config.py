"""Configs that validate themselves, presets against the paper's numbers, and overrides."""

from __future__ import annotations

import dataclasses
import pickle
import re

import pytest

from trainer.config import (
    LossConfig,
    PhaseConfig,
    TrainConfig,
    UNetConfig,
)
from trainer.model.losses import needs_features
from trainer.presets import PRESETS, flatten, override, resolve_epochs

# Tables of arXiv 1804.07723 (sections 3.3 and 4, appendix), written down once more, by hand.
PAPER = {
    "unet.image_size": 512,
    "unet.filters": (64, 128, 256, 512, 512, 512, 512, 512),
    "unet.kernels": (7, 5, 5, 3, 3, 3, 3, 3),
    "unet.head": "none",
    "unet.refine": 0,
    "unet.residual": False,
    "unet.mean": (0, 0, 0),
    "unet.std": (1, 1, 1),
    "loss.valid": 1,
    "loss.hole": 6,
    "loss.perceptual": 0.05,
    "loss.style_output": 120,
    "loss.style_composite": 120,
    "loss.total_variation": 0.1,
    "loss.hole_mean": 0,
    "loss.hole_log": 0,
    "initial.learning_rate": 0.0002,
    "initial.freeze_encoder_bn": False,
    "initial.schedule": "constant",
    "initial.warmup_steps": 0,
    "finetune.learning_rate": 0.00005,
    "finetune.freeze_encoder_bn": True,
    "finetune.schedule": "constant",
    "finetune.warmup_steps": 0,
    "global_batch_size": 6,
}


def test_paper_preset_is_the_paper():
    flat = flatten(PRESETS["paper"])
    assert {key: flat[key] for key in PAPER} == PAPER
    assert PRESETS["paper"].unet.stride == 256


def test_demo_preset_keeps_what_the_demo_promises():
    demo = PRESETS["demo"]
    assert (demo.unet.image_size, demo.scaling.workers, demo.scaling.device) == (128, 2, "cpu")
    assert demo.precision == "mixed_bfloat16"
    assert demo.total_steps % demo.checkpoint.every == 0


def test_small_preset_lies_between_the_demo_and_the_paper():
    demo, small, paper = (PRESETS[name] for name in ("demo", "small", "paper"))
    for of in (
        lambda config: config.unet.image_size,
        lambda config: config.unet.kernel_values,
        lambda config: config.total_steps * config.examples_per_step,
    ):
        assert of(demo) < of(small) < of(paper)
    assert not needs_features(small.loss)  # which would be most of a step


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("global_batch_size=12", "global_batch_size", 12),
        ("precision=float32", "precision", "float32"),
        ("initial.learning_rate=1e-3", "initial.learning_rate", 0.001),
        ("initial.schedule=constant", "initial.schedule", "constant"),
        ("finetune.freeze_encoder_bn=false", "finetune.freeze_encoder_bn", False),
        ("finetune.freeze_encoder_bn=TRUE", "finetune.freeze_encoder_bn", True),
        ("unet.filters=1,2,3,4,5", "unet.filters", (1, 2, 3, 4, 5)),
        ("unet.filters=(1, 2, 3, 4, 5)", "unet.filters", (1, 2, 3, 4, 5)),
        ("data.crop_scale=0.25,0.5", "data.crop_scale", (0.25, 0.5)),
        ("data.split=a=b", "data.split", "a=b"),
        ("loss.hole=3", "loss.hole", 3.0),
        ("scaling.workers=4", "scaling.workers", 4),
        ("checkpoint.keep=1", "checkpoint.keep", 1),
        ("validation.every=0", "validation.every", 0),
        ("clip_norm=1.5", "clip_norm", 1.5),
        ("ema_decay=0.999", "ema_decay", 0.999),
    ],
)
def test_override_changes_one_value(assignment, key, value):
    before, after = flatten(PRESETS["demo"]), flatten(override(PRESETS["demo"], [assignment]))
    assert after == before | {key: value} and type(after[key]) is type(value)


def test_overrides_are_checked_together():
    # Each of these alone would not fit the other's present value.
    assignments = ["unet.filters=8,8", "unet.kernels=3,3", "global_batch_size=9", "scaling.workers=3"]
    config = override(PRESETS["demo"], assignments)
    assert (config.unet.filters, config.unet.kernels, config.per_worker_batch_size) == ((8, 8), (3, 3), 3)
    assert override(PRESETS["demo"], ["seed=1", "seed=2"]).seed == 2
    assert override(PRESETS["demo"], []) == PRESETS["demo"]


@pytest.mark.parametrize("key", ["initial.step", "unet", "color", ""])
def test_unknown_keys_list_the_valid_ones(key):
    with pytest.raises(ValueError) as caught:
        override(PRESETS["demo"], [f"{key}=1"])
    assert repr(key) in str(caught.value)
    assert all(valid in str(caught.value) for valid in flatten(PRESETS["demo"]))


def test_unknown_key_names_a_near_one():
    with pytest.raises(ValueError, match="Did you mean initial.steps\\?"):
        override(PRESETS["demo"], ["initial.step=1"])
    with pytest.raises(ValueError, match="expected key=value. Received 'seed'"):
        override(PRESETS["demo"], ["seed"])


@pytest.mark.parametrize(
    "assignment",
    [
        "unet.filters=",
        "unet.filters=8,0,8,8,8",
        "unet.filters=8,x,8,8,8",
        "unet.kernels=3,3",
        "unet.kernels=7,5,4,3,3",
        "unet.kernels=7,5,-1,3,3",
        "unet.image_size=100",
        "unet.image_size=0",
        "unet.image_size=-32",
        "unet.bn_epsilon=0",
        "unet.mean=0,0",
        "unet.mean=0,inf,0",
        "unet.std=1,0,1",
        "unet.head=tanh",
        "loss.vgg=elsewhere",
        "loss.vgg=torchvision:relative/path",
        "loss.hole=-1",
        "loss.hole=nan",
        "loss.hole=inf",
        "initial.steps=-1",
        "initial.steps=1.5",
        "finetune.steps=-1",
        "finetune.learning_rate=0",
        "initial.learning_rate=nan",
        "initial.learning_rate=inf",
        "initial.schedule=linear",
        "initial.warmup_steps=-1",
        "initial.freeze_encoder_bn=maybe",
        "data.crop_scale=0.5",
        "data.crop_scale=0,1",
        "data.crop_scale=0.9,0.5",
        "data.crop_scale=0.5,1.1",
        "data.crop_scale=nan,1",
        "data.shuffle_buffer=0",
        "data.streams=4097",
        "data.streams=many",
        "scaling.workers=0",
        "scaling.min_workers=3",
        "scaling.min_workers=-1",
        "scaling.cpus_per_worker=0",
        "scaling.device=tpu",
        "scaling.max_failures=-1",
        "scaling.xla=true",
        "initial.epochs=-1",
        "initial.epochs=inf",
        "validation.every=-1",
        "validation.examples=0",
        "validation.pictures=-1",
        "clip_norm=-1",
        "clip_norm=nan",
        "ema_decay=1",
        "ema_decay=-0.1",
        "skip_nonfinite=-1",
        "checkpoint.every=0",
        "checkpoint.every_minutes=-1",
        "checkpoint.every_minutes=inf",
        "checkpoint.keep=0",
        "global_batch_size=0",
        "accumulate=0",
        "global_batch_size=15",
        "precision=float16",
        "seed=-1",
        "seed=9223372036854775808",
        "seed=one",
        "log_every=0",
    ],
)
def test_wrong_values_are_refused_by_name(assignment):
    key, _, text = assignment.partition("=")
    with pytest.raises(ValueError) as caught:
        override(PRESETS["demo"], [assignment])
    assert re.match(rf"{re.escape(key)}(\[\d\])?: expected .*\. Received ", str(caught.value))


def test_what_no_single_key_decides():
    with pytest.raises(ValueError, match="initial.steps \\+ finetune.steps"):
        TrainConfig()
    with pytest.raises(ValueError, match="loss: expected one or more positive weights"):
        override(PRESETS["demo"], [f"loss.{name}=0" for name in LossConfig().weights])


def test_image_size_message_names_one_that_works():
    with pytest.raises(ValueError, match="a multiple of 32 .*96 would work"):
        override(PRESETS["demo"], ["unet.image_size=100"])
    assert override(PRESETS["demo"], ["unet.image_size=96"]).unet.image_size == 96


def test_phases_follow_each_other():
    config = TrainConfig(initial=PhaseConfig(steps=3), finetune=PhaseConfig(steps=2))
    assert [config.phase_at(step) for step in range(5)] == ["initial"] * 3 + ["finetune"] * 2
    assert config.total_steps == 5
    only = TrainConfig(finetune=PhaseConfig(steps=2))
    assert only.phase_at(0) == "finetune"


def test_epochs_become_steps():
    config = override(PRESETS["demo"], ["initial.epochs=3", "finetune.epochs=0.1", "global_batch_size=6"])
    assert (config.initial.steps, config.initial.epochs) == (0, 3)  # in place of the preset's steps
    resolved = resolve_epochs(config, images=20)
    # 60 examples are 10 batches of 6; 2 are one.
    assert (resolved.initial.steps, resolved.finetune.steps, resolved.total_steps) == (10, 1, 11)
    assert (resolved.initial.epochs, resolved.finetune.epochs) == (0, 0)
    assert resolve_epochs(resolved, images=99) == resolved
    assert resolve_epochs(override(config, ["initial.epochs=0.7"]), images=30).initial.steps == 4  # 21 examples
    assert resolve_epochs(override(config, ["initial.epochs=0.3"]), images=20).initial.steps == 1  # 6, but for rounding
    assert override(config, ["initial.steps=5"]).initial == dataclasses.replace(config.initial, steps=5, epochs=0)


def test_steps_and_epochs_of_one_phase_contradict_each_other():
    with pytest.raises(ValueError, match="initial.epochs: expected 0 beside steps=5. Received 2"):
        override(PRESETS["demo"], ["initial.epochs=2", "initial.steps=5"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: PhaseConfig(steps=-1),
        lambda: PhaseConfig(steps="4"),
        lambda: PhaseConfig(steps=True),
        lambda: PhaseConfig(steps=4, epochs=1.0),
        lambda: PhaseConfig(step=4),
        lambda: UNetConfig(filters=[8, 8], kernels=(3, 3)),  # a list could not be hashed
        lambda: UNetConfig(image_size=100),
        lambda: TrainConfig(initial={"steps": 4}),
        lambda: dataclasses.replace(PRESETS["demo"], seed=-1),
        lambda: dataclasses.replace(PRESETS["demo"].data, crop_scale=(0.9, 0.5)),
    ],
)
def test_wrong_values_are_refused_when_a_config_is_made(make):
    with pytest.raises(ValueError):
        make()


def test_configs_are_dataclasses_like_others():
    demo = PRESETS["demo"]
    assert pickle.loads(pickle.dumps(demo)) == demo  # as Ray and Beam send them
    assert dataclasses.replace(demo, seed=1) != demo == dataclasses.replace(demo)
    assert repr(PhaseConfig(steps=3)) == (
        "PhaseConfig(steps=3, epochs=0.0, learning_rate=0.0002, schedule='constant', warmup_steps=0, "
        "freeze_encoder_bn=False)"
    )


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["demo"].seed = 1
