"""The options of the training command, and the config it resolves before Ray starts."""

import pytest

from trainer import presets, runs, train
from trainer.errors import UserError

REQUIRED = ["--images", "i", "--masks", "m", "--run", "r"]


def test_resolve_config_names_keys_and_values():
    assert presets.resolve_config("demo", ["seed=5"]).seed == 5
    with pytest.raises(UserError, match="unknown key 'unet.depth'.*unet.filters"):
        presets.resolve_config("demo", ["unet.depth=3"])
    with pytest.raises(UserError, match="seed: expected .* Received"):
        presets.resolve_config("demo", ["seed=-1"])


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="--preset: invalid choice: 'big' .*demo.*paper"):
        train.parse_arguments(["--preset", "big", *REQUIRED])


def test_an_unknown_key_cannot_be_allowed_to_change():
    options = ["--preset", "demo", *REQUIRED, "--allow-config-change"]
    assert train.parse_arguments([*options, "loss.hole", "--allow-config-change", "seed"]).allow_config_change == [
        "loss.hole",
        "seed",
    ]
    with pytest.raises(UserError, match="--allow-config-change: invalid choice: 'loss.holes' .*loss.hole"):
        train.parse_arguments([*options, "loss.holes"])


def test_a_changed_config_is_told_with_the_option_that_permits_it(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.batches.check_datasets", lambda *_, **__: (10, 10))
    monkeypatch.setattr("trainer.training.validation.find_held_out", lambda *_: (None, ""))
    runs.settle_config(str(tmp_path), presets.PRESETS["demo"])
    options = ["--preset", "demo", *REQUIRED[:4], "--run", str(tmp_path), "--set", "seed=1"]
    with pytest.raises(UserError, match="seed is 0, asked for 1. --allow-config-change KEY permits it"):
        train.check(train.parse_arguments(options))
    plan = train.check(train.parse_arguments([*options, "--allow-config-change", "seed"]))
    assert (plan.config.seed, plan.image_count, plan.run) == (1, 10, str(tmp_path))
