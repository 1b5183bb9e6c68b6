"""The options of the training command, and the config it resolves before Ray starts."""

import dataclasses
import json
import os

import pytest

from networks import write_run
from trainer import presets, runs, storage, train
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
        train.parser().parse_args(["--preset", "big", *REQUIRED])


def test_an_unknown_key_cannot_be_allowed_to_change():
    options = ["--preset", "demo", *REQUIRED, "--allow-config-change"]
    assert train.parser().parse_args([*options, "loss.hole", "--allow-config-change", "seed"]).allow_config_change == [
        "loss.hole",
        "seed",
    ]
    with pytest.raises(UserError, match="--allow-config-change: invalid choice: 'loss.holes' .*loss.hole"):
        train.parser().parse_args([*options, "loss.holes"])


@pytest.mark.parametrize("inside", ["set", "run/checkpoints", "run/checkpoints/step-1", "half", "run/config.json"])
def test_a_run_does_not_begin_in_something_else(inside, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.batches.check_datasets", lambda *_, **__: (10, 10))
    monkeypatch.setattr("trainer.training.validation.find_held_out", lambda *_: (None, ""))
    for name in ("set/manifest.json", "set/a.tfrecord", "half/a.tfrecord", "run/config.json"):
        storage.create(f"{tmp_path}/{name}", b"{}")
    for name in ("config.json", "state.json"):
        storage.create(f"{tmp_path}/run/checkpoints/step-1/{name}", b"{}")
    arguments = train.parser().parse_args(["--preset", "demo", *REQUIRED[:4], "--run", f"{tmp_path}/{inside}"])
    before = storage.find(str(tmp_path))
    with pytest.raises(UserError, match=f"--run: expected a new folder, or .* run. Received {tmp_path}/{inside}, a"):
        train.check(arguments)
    with pytest.raises(UserError, match="--run: expected a new folder, or the folder of a run"):
        train.check(train.parser().parse_args(["--preset", "demo", *REQUIRED[:4], "--run", "i"]))
    assert storage.find(str(tmp_path)) == before


def test_a_changed_config_is_told_with_the_option_that_permits_it(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.batches.check_datasets", lambda *_, **__: (10, 10))
    monkeypatch.setattr("trainer.training.validation.find_held_out", lambda *_: (None, ""))
    runs.settle_config(str(tmp_path), presets.PRESETS["demo"])
    options = ["--preset", "demo", *REQUIRED[:4], "--run", str(tmp_path), "--set", "seed=1"]
    with pytest.raises(UserError, match="seed is 0, asked for 1. --allow-config-change KEY permits it"):
        train.check(train.parser().parse_args(options))
    plan = train.check(train.parser().parse_args([*options, "--allow-config-change", "seed"]))
    assert (plan.config.seed, plan.image_count, plan.run) == (1, 10, str(tmp_path))


RECORDS = {"masks": runs.Records(address="m", split="train", crc32c="AAAAAA==")}


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """A run of two steps that has all of them, and the command that made it."""
    monkeypatch.setattr("trainer.data.batches.check_datasets", lambda *_, **__: (10, 10))
    monkeypatch.setattr(train, "records_of", lambda _: RECORDS)
    monkeypatch.setattr("trainer.training.validation.find_held_out", lambda *_: (None, ""))
    small = ["unet.image_size=32", "unet.filters=4,6,8", "unet.kernels=5,3,3", "initial.steps=2", "finetune.steps=0"]
    run, config = str(tmp_path / "run"), presets.resolve_config("demo", small)
    write_run(run, config)
    (tmp_path / "run/config.json").unlink()  # of another preset
    runs.settle_config(run, config)
    folder = os.path.dirname(storage.find(f"{run}/exports")[0])
    files = {storage.relative(file, folder): storage.checksum(file) for file in storage.find(folder)}
    runs.write_summary(run, {}, folder, files, {"step": 2})
    return ["--preset", "demo", *REQUIRED[:4], "--run", run, *(word for key in small for word in ("--set", key))]


class Started(Exception):
    """Workers were asked for."""


def start(*_):
    raise Started


def test_a_run_that_is_complete_needs_no_workers(complete, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trainer.training.ray_workers.run_on_ray", start)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train.main(complete) == 0
    assert capsys.readouterr().out == f"training is complete: step 2 of 2 in {tmp_path}/run\n"
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    with pytest.raises(Started):
        train.main([*complete, "--set", "initial.steps=3", "--allow-config-change", "initial.steps"])


def test_a_run_is_complete_for_its_own_records_alone(complete, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.training.ray_workers.run_on_ray", start)
    runs.settle_data(f"{tmp_path}/run", RECORDS)
    assert train.main(complete) == 0
    others = {"masks": dataclasses.replace(RECORDS["masks"], crc32c="BBBBBB==")}
    monkeypatch.setattr(train, "records_of", lambda _: others)
    with pytest.raises(UserError, match="run was started with other masks: m, split train, crc32c A.* Asked for m, "):
        train.main(complete)


def test_a_complete_run_of_which_more_was_exported_is_complete(complete, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.training.ray_workers.run_on_ray", start)
    (folder,) = (tmp_path / "run/exports").iterdir()
    card = json.loads((folder / "card.json").read_bytes())
    (folder / "model.onnx").write_bytes(b"exported since")
    (folder / "card.json").write_text(json.dumps({**card, "files": {**card["files"], "model.onnx": "AAAAAA=="}}))
    assert train.main(complete) == 0
    (folder / "card.json").unlink()
    with pytest.raises(Started):
        train.main(complete)


@pytest.mark.parametrize("lost", ["summary.json", "exports/*/*", "checkpoints/*/model.npz"])
def test_a_run_that_lacks_something_gets_workers(complete, tmp_path, monkeypatch, lost):
    """Whatever is damaged, training makes it again: the newest checkpoint, too."""
    monkeypatch.setattr("trainer.training.ray_workers.run_on_ray", start)
    files = sorted(path for path in (tmp_path / "run").glob(lost) if path.is_file())
    files[-1].write_bytes(b"damaged")
    with pytest.raises(Started):
        train.main(complete)


def test_what_a_training_prints_stays_in_its_folder(complete, tmp_path, monkeypatch, capsys):
    def work(config, job, address, verbose, log):
        log.show("initial step 1/2")
        log.add("10.0.0.7-421", ["a worker says", "something"])
        raise UserError("image a.png is damaged")

    monkeypatch.setattr("trainer.training.ray_workers.run_on_ray", work)
    (tmp_path / "run/summary.json").unlink()
    with pytest.raises(UserError):
        train.main(complete)
    (folder,) = (tmp_path / "run/logs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"driver.log", "10.0.0.7-421.log"}
    first, *rest = (folder / "driver.log").read_text().splitlines()
    assert first.startswith("10 images, 10 masks; ") and rest == ["initial step 1/2", "error: image a.png is damaged"]
    assert capsys.readouterr().out.splitlines() == [first, rest[0]]
    assert (folder / "10.0.0.7-421.log").read_text() == "a worker says\nsomething\n"
