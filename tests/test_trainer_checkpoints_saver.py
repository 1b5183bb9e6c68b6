"""Saving behind the training: what is copied, what waits, when errors are told, who is the only writer."""

from __future__ import annotations

import contextlib
import os
import threading
import types

import numpy as np
import pytest
import tenacity

from trainer import checkpoints, presets, storage
from trainer.checkpoints import files
from trainer.checkpoints.files import is_whole
from trainer.checkpoints.pointers import Score
from trainer.checkpoints.saver import Saver
from trainer.errors import UserError
from trainer.storage import retry

CONFIG = presets.override(presets.PRESETS["demo"], ["checkpoint.keep=2"])
BOUND = 200  # seconds for what takes none: it ends a test that would hang


@pytest.fixture(params=["folder", "bucket"])
def run(request, tmp_path):
    return str(tmp_path / "run") if request.param == "folder" else request.getfixturevalue("bucket") + "/run"


class Clock:
    """Time as the retries see it: it passes while they sleep, at once."""

    def __init__(self):
        self.waits: list[float] = []

    @property
    def now(self) -> float:
        return sum(self.waits)


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(tenacity, "time", types.SimpleNamespace(monotonic=lambda: found.now))
    monkeypatch.setattr(tenacity.nap, "time", types.SimpleNamespace(sleep=found.waits.append))
    return found


def make(step):
    return {"model": {"w": np.full(4, step, "float32"), "n": np.int64(step)}, "optimizer": {"m": np.zeros((2, step))}}


def psnr(value):
    return Score(metric="psnr", value=value, higher_is_better=True)


def fail_first(monkeypatch, function, times, error, after=False):
    """Lets `storage`'s ``function`` raise ``error`` in its first calls, before or ``after`` it did its work."""
    original, calls = getattr(storage, function), []

    def failing(*arguments, **options):
        calls.append(arguments[0])
        if len(calls) > times:
            return original(*arguments, **options)
        if after:
            original(*arguments, **options)
        raise error

    monkeypatch.setattr(storage, function, failing)
    return calls


@pytest.mark.parametrize("background", ["true", "false"])
def test_checkpoints_and_pointers_are_those_of_the_last_steps(run, background):
    config = presets.override(CONFIG, [f"checkpoint.background={background}"])
    with Saver(run, config) as saver:
        assert saver.swept == () and checkpoints.load_newest(run) is None
        for step, score in ((1, psnr(3.0)), (2, None), (3, psnr(2.0)), (4, psnr(float("nan")))):
            saver.save(make(step), {"step": step, "random": [step]}, score)
        saver.wait()
        saved = saver.finished()
        assert saver.finished() == []
    assert [x.step for x in saved] == [1, 2, 3, 4] and [x.best for x in saved] == [True, False, False, False]
    assert all(x.latest for x in saved) and all(x.seconds > 0 for x in saved)
    assert [x.deleted for x in saved] == [(), (), (), (saved[1].pin.address.rpartition("/")[2],)]
    assert [step for step, _ in files.newest_first(run)] == [4, 3, 1]
    assert checkpoints.find(run, "best") == saved[0].pin and checkpoints.find_latest(run) == saved[3].pin
    checkpoint = checkpoints.load_newest(run).checkpoint
    assert checkpoint.state == {"step": 4, "random": [4]} and checkpoint.config == config
    for part, arrays in make(4).items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(checkpoint.variables[part][name], array, strict=True)


def test_training_goes_on_with_its_variables_while_they_are_written(tmp_path, monkeypatch):
    create, go = storage.create, threading.Event()

    def create_later(*arguments):
        assert go.wait(BOUND)
        create(*arguments)

    monkeypatch.setattr(storage, "create", create_later)
    variables, state = make(1), {"step": 1, "random": [1]}
    with Saver(str(tmp_path), CONFIG) as saver:
        assert saver.save(variables, state) == 0 and saver.finished() == []  # nothing can have been written yet
        variables["optimizer"]["m"][:] = -1
        variables["model"]["late"] = np.zeros(1)
        state["random"].append(2)
        wait = saver.wait
        monkeypatch.setattr(saver, "wait", lambda: go.set() or wait())
        waited = saver.save(make(2), {"step": 2})  # one upload at a time
        assert waited > 0 and [x.step for x in saver.finished()] == [1]
    first, second = (checkpoints.load_checkpoint(checkpoints.find(str(tmp_path), step)) for step in (1, 2))
    assert first.state == {"step": 1, "random": [1]} and second.state == {"step": 2}
    assert first.variables["model"].keys() == {"w", "n"}
    np.testing.assert_array_equal(first.variables["optimizer"]["m"], np.zeros((2, 1)))


def test_without_background_saving_is_done_when_save_returns(tmp_path, monkeypatch):
    fail_first(monkeypatch, "create", 1, ConnectionError("refused"))
    saver = Saver(str(tmp_path), presets.override(CONFIG, ["checkpoint.background=false"]))
    waited = saver.save(make(1), {"step": 1})
    assert waited >= 0.125  # the least that it sleeps before another attempt
    assert checkpoints.find_latest(str(tmp_path)) == saver.finished()[0].pin
    monkeypatch.setattr(storage, "create", lambda *_: 1 / 0)
    saver._patience = 0
    with pytest.raises(ZeroDivisionError):
        saver.save(make(2), {"step": 2})


@pytest.mark.parametrize("told_by", ["save", "wait", "close", "with"])
def test_errors_of_an_upload_are_told(tmp_path, monkeypatch, clock, told_by):
    run = str(tmp_path)
    with Saver(run, CONFIG) as saver:
        saver.save(make(1), {"step": 1})
    calls = fail_first(monkeypatch, "create", 10**9, ConnectionError("the store is down"))
    saver = Saver(run, CONFIG, patience_s=60)
    saver.save(make(2), {"step": 2})
    with pytest.raises(ConnectionError, match="the store is down"):
        if told_by == "save":
            saver.save(make(3), {"step": 3})
        elif told_by == "with":
            with saver:
                pass
        else:
            getattr(saver, told_by)()
    assert clock.now >= 60 and len(calls) == 1 + len(clock.waits) > 8
    saver.close()  # told once
    assert checkpoints.find_latest(run) == checkpoints.find(run, 1)


def test_the_error_that_ends_training_is_the_one_to_tell(tmp_path, monkeypatch):
    fail_first(monkeypatch, "create", 10**9, ConnectionError("the store is down"))
    with pytest.raises(FloatingPointError, match="loss is NaN"), Saver(str(tmp_path), CONFIG, patience_s=0) as saver:
        saver.save(make(1), {"step": 1})
        raise FloatingPointError("loss is NaN")


@pytest.mark.parametrize(
    ("function", "after"),
    [(name, after) for name in ("create", "replace", "read_versioned", "delete") for after in (False, True)]
    + [("find", False)],
)
def test_refusals_are_outlasted_even_if_the_work_was_done(run, monkeypatch, function, after):
    saver = Saver(run, CONFIG)
    for step in (1, 2):
        saver.save(make(step), {"step": step}, psnr(-step))
    saver.wait()
    calls = fail_first(monkeypatch, function, 2, OSError("503"), after)
    saver.save(make(3), {"step": 3}, psnr(3.0))
    saver.close()
    monkeypatch.undo()
    assert len(calls) > (0 if after else 2)  # who finds its work done does not do it again
    saved = saver.finished()[-1]
    assert saved.latest and saved.best and is_whole(saved.pin)
    assert checkpoints.find_latest(run) == checkpoints.find(run, "best") == saved.pin
    assert [step for step, _ in files.newest_first(run)] == [3, 2]


def test_a_file_of_somebody_else_is_no_lost_answer(tmp_path):
    address = str(tmp_path / "file")
    storage.create(address, b"theirs")
    retry.create(address, b"theirs", 0)
    with pytest.raises(storage.AlreadyExists):
        retry.create(address, b"ours", 5)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (UserError("no rights"), 1),
        (storage.NotFound("no bucket"), 1),
        (storage.Conflict("other generation"), 1),
        (TypeError("a mistake of ours"), 1),
        (OSError("no space left"), 2),
        (storage.Outage("no answer"), 2),
        (storage.Denied("no rights any more"), 1),
    ],
)
def test_refusals_alone_are_tried_again(error, attempts):
    calls = []

    def action():
        calls.append(0)
        if len(calls) == 1:
            raise error

    with contextlib.nullcontext() if attempts == 2 else pytest.raises(type(error)):
        retry.persist(action, 60)
    assert len(calls) == attempts


def test_waits_grow_and_end_with_patience(clock):
    def action():
        raise ConnectionError(f"at {clock.now}")

    with pytest.raises(ConnectionError) as caught:
        retry.persist(action, 120)
    waits = clock.waits
    assert str(caught.value) == f"at {sum(waits)}" and sum(waits[:-1]) < 120 <= sum(waits)
    assert all(0.125 <= wait <= most for wait, most in zip(waits, [0.25, 0.5, 1, 2, 4, *[8] * 999], strict=False))
    assert max(waits) > 4


def test_a_new_saver_takes_over_and_sweeps(run, monkeypatch):
    old = Saver(run, CONFIG)
    old.save(make(1), {"step": 1})
    old.wait()
    create, began, go = storage.create, threading.Event(), threading.Event()

    def stall(address, data):
        if address.endswith("optimizer.npz") and not began.is_set():
            began.set()
            assert go.wait(BOUND)
        create(address, data)

    monkeypatch.setattr(storage, "create", stall)
    old.save(make(9), {"step": 9}, psnr(99.0))  # slow, not dead
    assert began.wait(BOUND)
    new = Saver(run, CONFIG)
    assert [name[:13] for name in new.swept] == ["step-00000009"]
    go.set()
    new.save(make(2), {"step": 2}, psnr(1.0))
    with pytest.raises(UserError, match=f"{run} is being written by another process, which started later"):
        old.close()
    new.close()
    assert checkpoints.find_latest(run) == checkpoints.find(run, "best") == new.finished()[-1].pin
    assert checkpoints.load_newest(run).checkpoint.state == {"step": 2}
    # What the slow one still wrote goes with the next start.
    last = Saver(run, CONFIG)
    assert [name[:13] for name in last.swept] == ["step-00000009"]
    last.close()
    assert len(storage.folders(run + "/checkpoints")) == 2


def test_what_cannot_be_stored_is_refused_at_once(tmp_path):
    with Saver(str(tmp_path), CONFIG) as saver:
        with pytest.raises(ValueError, match="expected parts"):
            saver.save({"model": {}}, {"step": 1})
        with pytest.raises(TypeError, match="JSON"):
            saver.save(make(1), {"step": 1, "random": np.zeros(2)})


def test_a_folder_that_cannot_be_written_is_told_at_launch(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        Saver(f"{tmp_path}/file", CONFIG)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    "where", ["checkpoints", "checkpoints/step-00000001-aaaaaaaa", "checkpoints/step-00000001-aaaaaaaa/x"]
)
def test_a_link_in_the_folder_of_checkpoints_is_refused_and_what_it_leads_to_stays(where, complete, tmp_path):
    """The sweep deletes folders without a manifest, retention those with one: neither follows a link."""
    names = ["model.npz", "step-00000001-aaaaaaaa/model.npz"] + ["manifest.json"] * complete
    for name in names:
        storage.create(f"{tmp_path}/victim/{name}", b"theirs")
    link = tmp_path / "run" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=f"{link} is a link"), Saver(f"{tmp_path}/run", CONFIG) as saver:
        for step in (2, 3, 4, 5):
            saver.save({"model": {"w": np.zeros(3)}, "optimizer": {}}, {"step": step})
    assert storage.find(f"{tmp_path}/victim") == sorted(f"{tmp_path}/victim/{name}" for name in names)
    assert link.is_symlink()


def test_a_link_that_comes_during_a_training_is_not_followed(tmp_path):
    config = presets.override(CONFIG, ["checkpoint.keep=1", "checkpoint.background=false"])
    storage.create(f"{tmp_path}/victim/manifest.json", b"theirs")
    with Saver(f"{tmp_path}/run", config) as saver:
        saver.save({"model": {"w": np.zeros(3)}, "optimizer": {}}, {"step": 2})
        os.symlink(tmp_path / "victim", tmp_path / "run" / "checkpoints" / "step-00000001-aaaaaaaa")
        with pytest.raises(UserError, match="step-00000001-aaaaaaaa is a link"):
            saver.save({"model": {"w": np.zeros(3)}, "optimizer": {}}, {"step": 3})
    assert storage.read(f"{tmp_path}/victim/manifest.json") == b"theirs"


def test_a_saver_sweeps_the_drafts_of_killed_processes_from_its_run(tmp_path):
    drafts = [".config.json.0123abcd", "checkpoints/.latest.json.0123abcd", "logs/.events.out.0123abcd"]
    for name in [*drafts, ".env.20240101", "notes/.a.20240101"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    Saver(str(tmp_path), CONFIG).close()
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".env.20240101", "checkpoints/.latest.json.lock", "checkpoints/latest.json", "notes/.a.20240101"]
