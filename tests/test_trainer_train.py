"""What the training command settles before Ray starts."""

import pytest

from trainer import presets, train
from trainer.errors import UserError


def test_resolve_config_names_presets_and_keys():
    assert train.resolve_config("demo", ["seed=5"]).seed == 5
    with pytest.raises(UserError, match=r"--preset: expected one of \['demo', 'paper'\]. Received 'big'"):
        train.resolve_config("big", [])
    with pytest.raises(UserError, match="unknown key 'unet.depth'.*unet.filters"):
        train.resolve_config("demo", ["unet.depth=3"])


def test_a_new_run_gets_its_config_and_the_same_command_may_continue_it(tmp_path):
    config = presets.PRESETS["demo"]
    train.settle_config(str(tmp_path), config, [])
    assert presets.from_json((tmp_path / "config.json").read_bytes()) == config
    train.settle_config(str(tmp_path), config, [])


def test_a_changed_config_is_refused_unless_its_key_is_allowed(tmp_path):
    train.settle_config(str(tmp_path), presets.PRESETS["demo"], [])
    changed = presets.override(presets.PRESETS["demo"], ["loss.hole=5", "seed=1"])
    with pytest.raises(UserError, match="loss.hole is 6.0, asked for 5.0, seed is 0, asked for 1"):
        train.settle_config(str(tmp_path), changed, [])
    with pytest.raises(UserError, match="seed is 0, asked for 1"):
        train.settle_config(str(tmp_path), changed, ["loss.hole"])
    assert presets.from_json((tmp_path / "config.json").read_bytes()) == presets.PRESETS["demo"]
    train.settle_config(str(tmp_path), changed, ["loss.hole", "seed"])
    assert presets.from_json((tmp_path / "config.json").read_bytes()) == changed


def test_another_number_of_workers_is_no_change_of_config(tmp_path):
    train.settle_config(str(tmp_path), presets.PRESETS["demo"], [])
    other = presets.override(presets.PRESETS["demo"], ["scaling.workers=4", "checkpoint.every=7", "log_every=3"])
    train.settle_config(str(tmp_path), other, [])


def test_an_unknown_key_cannot_be_allowed(tmp_path):
    with pytest.raises(UserError, match="unknown key 'loss.holes'"):
        train.settle_config(str(tmp_path), presets.PRESETS["demo"], ["loss.holes"])
