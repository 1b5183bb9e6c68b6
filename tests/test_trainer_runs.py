"""A run's folder: its config.json, what of it may change, and folders that are not runs."""

import pytest

from trainer import presets, runs
from trainer.errors import ConfigChanged, NotFound, UserError

DEMO = presets.PRESETS["demo"]


def test_a_new_run_gets_its_config_and_the_same_config_may_continue_it(tmp_path):
    runs.settle_config(str(tmp_path), DEMO)
    assert presets.from_json((tmp_path / "config.json").read_bytes()) == DEMO
    runs.settle_config(str(tmp_path), DEMO)
    assert runs.read_config(str(tmp_path)) == DEMO


def test_a_changed_config_is_refused_unless_its_key_is_allowed(tmp_path):
    runs.settle_config(str(tmp_path), DEMO)
    changed = presets.override(DEMO, ["loss.hole=5", "seed=1"])
    with pytest.raises(ConfigChanged, match="loss.hole is 6.0, asked for 5.0, seed is 0, asked for 1"):
        runs.settle_config(str(tmp_path), changed)
    with pytest.raises(ConfigChanged, match="seed is 0, asked for 1"):
        runs.settle_config(str(tmp_path), changed, ["loss.hole"])
    assert presets.from_json((tmp_path / "config.json").read_bytes()) == DEMO
    runs.settle_config(str(tmp_path), changed, ["loss.hole", "seed"])
    assert presets.from_json((tmp_path / "config.json").read_bytes()) == changed


def test_another_number_of_workers_is_no_change_of_config(tmp_path):
    runs.settle_config(str(tmp_path), DEMO)
    other = presets.override(DEMO, ["scaling.workers=4", "checkpoint.every=7", "log_every=3"])
    runs.settle_config(str(tmp_path), other)


def test_folders_that_are_not_runs(tmp_path):
    with pytest.raises(NotFound, match="run .*/absent does not exist"):
        runs.read_config(str(tmp_path / "absent"))
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="has no config.json: it is not the folder of a training run"):
        runs.read_config(str(tmp_path))
    (tmp_path / "config.json").write_bytes(b"{}}")
    for read in (runs.read_config, lambda run: runs.compare_config(run, DEMO)):
        with pytest.raises(UserError, match="config.json is not a config: "):
            read(str(tmp_path))
