"""The pointers of a run, who may move them, and what is deleted: never what they name, never what is being written."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest

from trainer import checkpoints, presets, storage
from trainer.checkpoints import files, pointers
from trainer.checkpoints.files import is_whole, write_checkpoint
from trainer.checkpoints.pointers import Score
from trainer.errors import UserError

NAN = float("nan")


@pytest.fixture(params=["folder", "bucket"])
def run(request, tmp_path):
    return str(tmp_path / "run") if request.param == "folder" else request.getfixturevalue("bucket") + "/run"


def write(run, step, writer=None):
    variables = {"model": {"w": np.full(3, step)}, "optimizer": {}}
    return write_checkpoint(run, variables, {"step": step}, writer=writer)


def save(run, step, keep=9, value=None):
    variables = {"model": {"w": np.full(3, step)}, "optimizer": {}}
    score = None if value is None else Score(metric="psnr", value=value, higher_is_better=True)
    return checkpoints.save_checkpoint(run, variables, {"step": step}, keep, score=score)


def move(run, pin, step, writer=None):
    return pointers.move_latest(run, pin, step, writer, is_whole)


def score(value, metric="psnr", higher=True):
    return Score(metric=metric, value=value, higher_is_better=higher)


def steps_in(run):
    return [step for step, _ in reversed(files.newest_first(run))]


def name_of(pin):
    return pin.address.rpartition("/")[2]


def test_latest_goes_forward_only(run):
    pins = {step: write(run, step) for step in (100, 200, 300)}
    assert checkpoints.find_latest(run) is None
    assert move(run, pins[200], 200) and checkpoints.find_latest(run) == pins[200]
    assert not move(run, pins[100], 100) and checkpoints.find_latest(run) == pins[200]
    assert move(run, pins[200], 200)  # an answer was lost
    assert move(run, pins[300], 300) and checkpoints.find_latest(run) == pins[300]
    again = write(run, 300)
    assert move(run, again, 300) and checkpoints.find_latest(run) == again


@pytest.mark.parametrize("file", ["model.npz", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["change", "delete"])
def test_latest_goes_back_from_what_cannot_be_read(run, file, harm):
    good, bad = write(run, 100), write(run, 200)
    move(run, bad, 200)
    storage.delete(f"{bad.address}/{file}") if harm == "delete" else storage.overwrite(f"{bad.address}/{file}", b"x")
    assert move(run, good, 100) and checkpoints.find_latest(run) == good


def test_a_slow_writer_compares_again_with_what_a_faster_one_wrote(run, monkeypatch):
    """Between its reading and its writing, each attempt is overtaken: first by an earlier step, then by a later one."""
    pins = {step: write(run, step) for step in (50, 100, 200)}
    read, overtaken = pointers._read_for_writing, []

    def read_slowly(*arguments):
        found = read(*arguments)
        if len(overtaken) < 2:
            step = [50, 200][len(overtaken)]
            data = {"checkpoint": name_of(pins[step]), "step": step, "crc32c": pins[step].crc32c}
            storage.replace(run + "/checkpoints/latest.json", json.dumps(data).encode(), found[2])
            overtaken.append(step)
        return found

    monkeypatch.setattr(pointers, "_read_for_writing", read_slowly)
    assert not move(run, pins[100], 100)
    assert overtaken == [50, 200] and checkpoints.find_latest(run) == pins[200]


def test_of_many_writers_the_latest_step_stays(run):
    pins = {step: write(run, step) for step in range(1, 9)}
    order = [3, 8, 1, 5, 2, 7, 4, 6]
    threads = [threading.Thread(target=move, args=(run, pins[step], step)) for step in order]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert checkpoints.find_latest(run) == pins[8]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([score(20.0), score(22.0), score(21.0)], 1),
        ([score(20.0), score(20.0)], 0),  # not better: the earlier one stays
        ([score(0.2, "l1", False), score(0.3, "l1", False), score(0.1, "l1", False)], 2),
        ([score(NAN), score(5.0), score(NAN), score(4.0)], 1),
        ([score(30.0), score(0.5, "ssim"), score(NAN, "l1", False)], 1),  # another metric cannot be compared
    ],
)
def test_best_moves_to_what_is_better(run, scores, best):
    pins = [write(run, step) for step in range(len(scores))]
    for step, (pin, value) in enumerate(zip(pins, scores, strict=True)):
        pointers.move_best(run, pin, step, value, None)
    pointer = pointers.read(run, "best")
    assert pointer.pin(run) == pins[best] == checkpoints.find(run, "best")
    assert (pointer.step, pointer.metric, pointer.value) == (best, scores[best].metric, scores[best].value)
    assert checkpoints.find_latest(run) is None


@pytest.mark.parametrize("higher", [True, False])
def test_nan_is_worse_than_any_number(higher):
    values = [-float("inf"), -1.0, 0.0, 5.0]
    assert all(score(value, higher=higher).beats(NAN) for value in values)
    assert not any(score(NAN, higher=higher).beats(value) for value in [*values, NAN])
    assert score(5.0, higher=higher).beats(0.0) == higher == (not score(0.0, higher=higher).beats(5.0))
    assert not score(5.0, higher=higher).beats(5.0)


def test_a_number_replaces_a_best_that_is_nan(run):
    """Earlier versions, or other programs, may have left one."""
    pin = write(run, 1)
    data = {"checkpoint": name_of(pin), "step": 1, "crc32c": pin.crc32c, "metric": "psnr", "value": NAN}
    storage.create(run + "/checkpoints/best.json", json.dumps(data).encode())
    better = write(run, 2)
    assert pointers.move_best(run, better, 2, score(5.0), None)
    assert checkpoints.find(run, "best") == better


def test_what_readers_of_the_files_see(run):
    pin = save(run, 7, value=21.5)
    expected = {"checkpoint": name_of(pin), "step": 7, "crc32c": pin.crc32c, "writer": None}
    assert json.loads(storage.read(run + "/checkpoints/latest.json")) == expected
    assert json.loads(storage.read(run + "/checkpoints/best.json")) == {**expected, "metric": "psnr", "value": 21.5}


def test_pointers_of_before_writers_had_names_are_read(run):
    pin = write(run, 100)
    data = {"checkpoint": name_of(pin), "step": 100, "crc32c": pin.crc32c}
    storage.create(run + "/checkpoints/latest.json", json.dumps(data).encode())
    assert checkpoints.find_latest(run) == pin
    writer = pointers.claim(run)
    assert checkpoints.find_latest(run) == pin and move(run, write(run, 200), 200, writer)


def test_only_the_last_to_claim_moves_pointers(run):
    first = pointers.claim(run)
    assert checkpoints.find_latest(run) is None
    old = write(run, 100, first)
    assert move(run, old, 100, first) and pointers.move_best(run, old, 100, score(1.0), first)
    late = write(run, 300, first)
    second = pointers.claim(run)
    for use in (
        lambda: move(run, late, 300, first),
        lambda: pointers.move_best(run, late, 300, score(9.0), first),
        lambda: write(run, 400, first),
        lambda: files.prune(run, 1, first),
        lambda: files.sweep(run, first),
    ):
        with pytest.raises(UserError, match=f"{run} is being written by another process, which started later"):
            use()
    assert checkpoints.find_latest(run) == old == checkpoints.find(run, "best")
    pin = write(run, 200, second)
    assert move(run, pin, 200, second) and pointers.move_best(run, pin, 200, score(2.0), second)
    save(run, 250)  # a program that takes no turns leaves them as they are
    assert pointers.read(run, "latest").writer == second == pointers.read(run, "best").writer


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"{}", b'{"checkpoint": 1, "crc32c": "a"}', b"\xff"])
def test_a_broken_pointer_is_named_and_the_next_checkpoint_heals_it(tmp_path, data):
    run = str(tmp_path)
    storage.create(f"{run}/checkpoints/latest.json", data)
    for use in (lambda: checkpoints.find_latest(run), lambda: checkpoints.find(run, "latest")):
        with pytest.raises(storage.Corrupt, match=f"{tmp_path}/checkpoints/latest.json is not a pointer"):
            use()
    assert save(run, 5) == checkpoints.find_latest(run)


@pytest.mark.parametrize(
    "name",
    ["../../other/checkpoints/{}", "/other/{}", "gs://other/{}", "{}/../{}", "{}\n", "{}\0", "", "..", "notes"]
    + ["step-00000005-\x1b[31m00", "step-1-00000000"],
)
def test_a_pointer_names_a_checkpoint_of_its_run_and_nothing_else(tmp_path, name):
    run, other = str(tmp_path / "run"), str(tmp_path / "other")
    pin = save(other, 5)  # it is whole, and it is another run's
    data = {"checkpoint": name.replace("{}", name_of(pin)), "step": 5, "crc32c": pin.crc32c}
    storage.create(f"{run}/checkpoints/latest.json", json.dumps(data).encode())
    with pytest.raises(storage.Corrupt, match="latest.json is not a pointer to a checkpoint") as caught:
        checkpoints.find(run)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("change", [{"step": 6}, {"step": -5}, {"step": 10**30}, {"step": None}, {"crc32c": None}])
def test_a_pointer_agrees_with_the_name_of_its_checkpoint(tmp_path, change):
    pin = save(str(tmp_path), 5)
    data = {"checkpoint": name_of(pin), "step": 5, "crc32c": pin.crc32c} | change
    storage.overwrite(f"{tmp_path}/checkpoints/latest.json", json.dumps(data).encode())
    with pytest.raises(storage.Corrupt, match="latest.json is not a pointer to a checkpoint"):
        checkpoints.find(str(tmp_path))


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_and_the_best_are_kept(run, keep):
    values = {5: 20.0, 10: 23.0, 100: 21.0, 1000: 22.0, 2000: None}
    pins = {step: save(run, step, keep, value) for step, value in values.items()}
    assert steps_in(run) == [10, *[1000, 2000][-keep:]]
    assert checkpoints.find_latest(run) == pins[2000] and checkpoints.find(run, "best") == pins[10]
    assert all(is_whole(pins[step]) for step in steps_in(run))
    save(run, 3000, 1, 24.0)
    assert steps_in(run) == [3000]
    # Nothing is left of the others, folders and drafts neither.
    assert storage.folders(run + "/checkpoints") == [name for _, name in files.newest_first(run)]


def test_deleting_spares_what_is_newer_than_the_pointer_and_what_is_unfinished(run):
    """Two that were written and wait for the pointer, one of them of its very step; and one that is being uploaded."""
    for step in (100, 200):
        save(run, step)
    waiting = [write(run, 200), write(run, 300)]
    storage.create(run + "/checkpoints/step-00000050-00000000/model.npz", b"half")
    storage.create(run + "/checkpoints/notes/manifest.json", b"somebody's")
    names = files.prune(run, 1)
    assert [name[:13] for name in names] == ["step-00000100"]
    assert all(is_whole(pin) for pin in waiting) and is_whole(checkpoints.find_latest(run))
    assert storage.exists(run + "/checkpoints/step-00000050-00000000/model.npz")
    assert storage.exists(run + "/checkpoints/notes/manifest.json")


def test_what_is_newer_than_the_pointer_takes_no_place_of_those_kept(run):
    for step in (100, 150, 200):
        save(run, step)
    write(run, 300)
    files.prune(run, 2)
    assert steps_in(run) == [150, 200, 300]


def test_killed_while_deleting_leaves_no_folder_that_looks_whole(run, monkeypatch):
    variables = {"model": {"w": np.zeros(3)}, "optimizer": {}}
    old = checkpoints.save_checkpoint(run, variables, {"step": 100}, 1, config=presets.PRESETS["demo"])
    deleted = []

    def delete(address):
        deleted.append(address)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "delete", delete)
        save(run, 200, keep=1)
    assert deleted == [old.address + "/manifest.json"]


def test_a_new_writer_sweeps_what_is_unfinished_and_nothing_else(run):
    kept = save(run, 100)
    named = save(run, 200)
    storage.delete(named.address + "/manifest.json")  # broken, but a pointer names it
    for step in (1, 300):
        storage.create(f"{run}/checkpoints/step-{step:08d}-00000000/model.npz", b"half")
    storage.create(run + "/checkpoints/notes/file", b"somebody's")
    if not storage.is_remote(run):
        os.makedirs(run + "/checkpoints/step-00000400-00000000")
        with open(run + "/checkpoints/step-00000400-00000000/.model.npz.0123abcd", "wb") as draft:
            draft.write(b"half")
    swept = files.sweep(run, pointers.claim(run))
    steps = (1, 300) if storage.is_remote(run) else (1, 300, 400)
    assert swept == [f"step-{step:08d}-00000000" for step in steps]
    assert storage.folders(run + "/checkpoints") == ["notes", name_of(kept), name_of(named)]


def test_a_writer_that_starts_while_another_sweeps_loses_nothing(run, monkeypatch):
    """The first has listed what there is, folder of the second included, when it learns that its turn is over."""
    first = pointers.claim(run)
    find = storage.find

    def find_then_lose(address):
        second = pointers.claim(run)
        storage.create(run + "/checkpoints/step-00000100-00000000/model.npz", b"of the " + second.encode())
        return find(address)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "find", find_then_lose)
        with pytest.raises(UserError, match="another process"):
            files.sweep(run, first)
    assert storage.exists(run + "/checkpoints/step-00000100-00000000/model.npz")


def test_a_writer_whose_files_were_swept_does_not_finish_its_checkpoint(run, monkeypatch):
    first, create = pointers.claim(run), storage.create

    def create_slowly(address, data):
        create(address, data)
        if address.endswith("model.npz"):
            files.sweep(run, pointers.claim(run))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", create_slowly)
        with pytest.raises(UserError, match="another process"):
            write(run, 100, first)
    assert steps_in(run) == [] and checkpoints.find_latest(run) is None
