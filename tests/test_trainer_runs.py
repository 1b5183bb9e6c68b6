"""A run's folder: its config.json, what of it may change, and folders that are not runs."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines import build_masks
from trainer import presets, runs, storage, train
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


def test_of_processes_that_start_at_the_same_moment_one_config_wins(tmp_path):
    """Whoever is late compares with what it finds, and never meets a conflict."""
    start, configs = threading.Barrier(6), [DEMO, presets.override(DEMO, ["seed=1"])]

    def settle(number):
        start.wait()
        try:
            runs.settle_config(str(tmp_path / str(number // 6)), configs[number % 2])
        except ConfigChanged as error:
            return error

    for turn in range(10):
        with ThreadPoolExecutor(6) as pool:
            outcomes = list(pool.map(settle, range(6 * turn, 6 * turn + 6)))
        winner = configs.index(runs.read_config(str(tmp_path / str(turn))))
        assert [outcome is None for outcome in outcomes] == [number % 2 == winner for number in range(6)]


def test_a_config_that_another_process_writes_meanwhile_is_compared_with(tmp_path, monkeypatch):
    replace, late = storage.replace, [presets.override(DEMO, ["seed=1"]), DEMO]

    def replace_late(address, data, generation):
        if late:
            storage.overwrite(address, presets.to_json(late.pop()))
        replace(address, data, generation)

    monkeypatch.setattr(storage, "replace", replace_late)
    runs.settle_config(str(tmp_path / "same"), DEMO)
    with pytest.raises(ConfigChanged, match="seed is 1, asked for 0"):
        runs.settle_config(str(tmp_path / "other"), DEMO)


def logs_of(run) -> dict[str, str]:
    # Names that begin with a dot are of files that are not written yet.
    return {path.name: path.read_text() for path in (run / "logs").glob("*/[!.]*")}


def test_logs_are_written_while_they_grow_and_in_files_of_bounded_size(tmp_path):
    with runs.RunLog(str(tmp_path), every=0.01, file_bytes=20) as log:
        log.add("worker/../1", ["first"])
        while logs_of(tmp_path) != {"worker_.._1.log": "first\n"}:
            pass
        log.add("worker/../1", ["second line", "third line"])
        log.add("worker/../1", ["fourth \udcff"])
    assert logs_of(tmp_path) == {
        "worker_.._1.log": "first\nsecond line\nthird line\n",
        "worker_.._1.1.log": "fourth ?\n",
    }


def test_logs_that_could_not_be_written_are_with_the_next(tmp_path, monkeypatch, capsys):
    written, real = [], storage.overwrite

    def overwrite(address, data):
        written.append(address)
        if len(written) <= 2:
            raise OSError(5, "injected")
        real(address, data)

    monkeypatch.setattr(storage, "overwrite", overwrite)
    log = runs.RunLog(str(tmp_path))
    log.add("driver", ["one"])
    assert isinstance(log._write(), OSError)
    log.add("driver", ["two"])
    with log:
        pass
    assert "could not write" in capsys.readouterr().err and logs_of(tmp_path) == {}
    assert log._write() is None and logs_of(tmp_path) == {"driver.log": "one\ntwo\n"}


def test_the_log_tells_what_ended_the_training(tmp_path):
    with pytest.raises(ZeroDivisionError), runs.RunLog(str(tmp_path)):
        raise ZeroDivisionError("division by zero")
    (text,) = logs_of(tmp_path).values()
    assert text.startswith("Traceback") and text.endswith("ZeroDivisionError: division by zero\n")


# Data


EARLIER = Path(__file__).parent / "written_by_383277e"


def records_of(images=EARLIER / "images", masks=EARLIER / "masks") -> dict[str, runs.Records]:
    return {
        "images": runs.Records.of(str(images), "image", "train"),
        "masks": runs.Records.of(str(masks), "mask", "train"),
    }


def other_masks(folder) -> Path:
    """The same number of masks, under the same names."""
    build_masks.main(["--output", f"{folder}/other", "--count=8", "--size=32", "--num-shards=2", "--seed=1"])
    return folder / "other"


def test_a_run_continues_on_the_records_that_it_was_started_with(tmp_path):
    run = str(tmp_path / "run")
    runs.settle_data(run, records_of())
    runs.settle_data(run, records_of())
    moved = shutil.copytree(EARLIER / "masks", tmp_path / "moved")
    runs.settle_data(run, records_of(masks=moved))  # the same records elsewhere
    assert json.loads(storage.read(f"{run}/data.json"))["masks"]["address"] == str(moved)
    other = records_of(masks=other_masks(tmp_path))
    with pytest.raises(
        ConfigChanged, match=r"was started with other masks: .*/moved, split train, crc32c .* Asked for .*/other"
    ):
        runs.settle_data(run, other)
    with pytest.raises(ConfigChanged, match="with other masks"):
        runs.compare_data(run, other, ["images"])
    runs.settle_data(run, other, ["masks"])
    runs.settle_data(run, other)
    with pytest.raises(ConfigChanged, match="with other masks"):
        runs.compare_data(run, records_of())


def test_runs_of_earlier_versions_get_their_data_when_they_continue(tmp_path):
    run = shutil.copytree(EARLIER / "run", tmp_path / "run")
    assert not (run / "data.json").exists()
    runs.compare_data(str(run), records_of())
    runs.settle_data(str(run), records_of())
    assert json.loads((run / "data.json").read_bytes())["images"]["split"] == "train"


def test_damaged_data_is_told(tmp_path):
    storage.create(f"{tmp_path}/data.json", b'{"masks": 1}')
    with pytest.raises(UserError, match="data.json is not the data of a run: masks"):
        runs.compare_data(str(tmp_path), records_of())


def test_training_on_other_records_is_refused_at_launch(tmp_path, capsys):
    """The same config on a run that is finished: it is not, for these records."""
    run = shutil.copytree(EARLIER / "run", tmp_path / "run")
    stored = presets.flatten(runs.read_config(str(run)))
    given = presets.flatten(presets.PRESETS["demo"])

    def text(value):
        return (
            ",".join(map(str, value))
            if isinstance(value, tuple)
            else str(value).lower()
            if value in (True, False)
            else value
        )

    sets = [f"--set={key}={text(value)}" for key, value in stored.items() if given[key] != value]
    images = ["--preset", "demo", *sets, "--run", str(run), "--images", str(EARLIER / "images"), "--dry-run"]
    assert train.main([*images, "--masks", str(EARLIER / "masks")]) == 0
    assert "continues  after step 4" in capsys.readouterr().out
    runs.settle_data(str(run), records_of())
    other = ["--masks", str(other_masks(tmp_path))]
    with pytest.raises(
        UserError, match=r"started with other masks: .*--allow-config-change images \(or masks\) permits it"
    ):
        train.main([*images, *other])
    assert train.main([*images, *other, "--allow-config-change", "masks"]) == 0
