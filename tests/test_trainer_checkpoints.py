"""Checkpoints on both storages: whole, verified, found through the pointer, never half there."""

from __future__ import annotations

import io
import json
import re

import keras
import numpy as np
import pytest

from trainer import checkpoints, storage
from trainer.command import UserError

FILES = ("manifest.json", "model.npz", "optimizer.npz", "state.json")


@pytest.fixture(params=["folder", "bucket"])
def run(request, tmp_path):
    return str(tmp_path / "run") if request.param == "folder" else request.getfixturevalue("bucket") + "/run"


def make_variables(step):
    rng = np.random.default_rng(step)
    model = {"encoder_1_conv/kernel": rng.normal(size=(3, 3, 2, 4)).astype("float32"), "a/empty": np.zeros((0, 2))}
    return {"model": model, "optimizer": {"adam/iteration": np.int64(step), "adam/m": rng.normal(size=5)}}


def make_state(step):
    return {"step": step, "phase": "initial", "examples": step * 16}


def save(run, step, keep=3):
    return checkpoints.save_checkpoint(run, make_variables(step), make_state(step), keep)


def steps_in(run):
    """Steps of the folders that have all their files."""
    found = {}
    for address in storage.find(run + "/checkpoints"):
        folder, slash, file = address[len(run + "/checkpoints/") :].partition("/")
        if slash:
            found.setdefault(folder, set()).add(file)
    assert all(files == set(FILES) for files in found.values())
    return sorted(int(folder.split("-")[1]) for folder in found)


def assert_is_step(checkpoint, step):
    assert checkpoint.state == make_state(step)
    for part, arrays in make_variables(step).items():
        assert checkpoint.variables[part].keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(checkpoint.variables[part][name], array, strict=True)


def test_round_trip(run):
    assert checkpoints.find_latest(run) is None
    pin = save(run, 100)
    assert checkpoints.find_latest(run) == pin
    checkpoint = checkpoints.load_checkpoint(pin)
    assert checkpoint.pin == pin
    assert_is_step(checkpoint, 100)
    assert re.fullmatch(re.escape(run) + "/checkpoints/step-00000100-[0-9a-f]{8}", pin.address)


def test_manifest_lists_every_file_with_size_and_checksum(run):
    pin = save(run, 1)
    listed = json.loads(storage.read(pin.address + "/manifest.json", pin.crc32c))["files"]
    assert sorted(file["name"] for file in listed) == sorted(set(FILES) - {"manifest.json"})
    for file in listed:
        data = storage.read(pin.address + "/" + file["name"])
        assert (file["bytes"], file["crc32c"]) == (len(data), storage.crc32c(data))


def test_the_pointer_moves_and_old_pins_stay(run):
    first, second = save(run, 100), save(run, 200)
    assert checkpoints.find_latest(run) == second != first
    assert_is_step(checkpoints.load_checkpoint(first), 100)
    assert json.loads(storage.read(run + "/checkpoints/latest.json"))["step"] == 200


def test_a_step_that_is_computed_again_gets_a_folder_of_its_own(run):
    first, again = save(run, 100), save(run, 100)
    assert first.address != again.address and checkpoints.find_latest(run) == again
    assert_is_step(checkpoints.load_checkpoint(first), 100)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_are_kept(run, keep):
    for step in (5, 10, 100, 1000):
        save(run, step, keep)
    assert steps_in(run) == [5, 10, 100, 1000][-keep:]
    assert_is_step(checkpoints.load_checkpoint(checkpoints.find_latest(run)), 1000)


def test_the_current_one_is_kept_though_others_have_later_steps(run):
    save(run, 300)
    save(run, 200)
    pin = save(run, 100, keep=2)  # training continued from an earlier step
    assert checkpoints.find_latest(run) == pin and steps_in(run) == [100, 300]


def test_one_part_is_enough_for_inference(run):
    pin = save(run, 7)
    storage.delete(pin.address + "/optimizer.npz")
    checkpoint = checkpoints.load_checkpoint(pin, ("model",))
    assert checkpoint.variables.keys() == {"model"} and checkpoint.state["step"] == 7
    with pytest.raises(storage.NotFound, match=f"{pin.address}/optimizer.npz"):
        checkpoints.load_checkpoint(pin)


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_is_found_and_its_file_named(run, file):
    pin = save(run, 7)
    address = f"{pin.address}/{file}"
    data = bytearray(storage.read(address))
    data[len(data) // 2] ^= 1
    storage.overwrite(address, bytes(data))
    with pytest.raises(storage.Corrupt, match=f"{address} is corrupt"):
        checkpoints.load_checkpoint(pin)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(run, file):
    pin = save(run, 7)
    storage.delete(f"{pin.address}/{file}")
    with pytest.raises(storage.NotFound, match=f"{pin.address}/{file}"):
        checkpoints.load_checkpoint(pin)


@pytest.mark.parametrize("writes", range(5))
def test_killed_between_any_two_writes_leaves_the_one_before(run, writes, monkeypatch):
    """Three parts, the manifest, the pointer: five writes, of which ``writes`` are done."""
    before = save(run, 100)
    done = []

    def dying(write):
        def call(*arguments):
            if len(done) == writes:
                raise KeyboardInterrupt
            done.append(arguments[0])
            return write(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", dying(storage.create))
        # On a bucket create calls replace: only the pointer's counts here.
        replace, replace_pointer = storage.replace, dying(storage.replace)

        def dying_at_the_pointer(address, *arguments, **options):
            write = replace_pointer if address.endswith("latest.json") else replace
            return write(address, *arguments, **options)

        patch.setattr(storage, "replace", dying_at_the_pointer)
        with pytest.raises(KeyboardInterrupt):
            save(run, 200)
    assert len(done) == writes
    assert checkpoints.find_latest(run) == before
    assert_is_step(checkpoints.load_checkpoint(before), 100)
    after = save(run, 200)
    assert checkpoints.find_latest(run) == after
    assert_is_step(checkpoints.load_checkpoint(after), 200)


def test_what_a_killed_attempt_left_is_deleted_before_checkpoints(run):
    for step in (100, 200):
        save(run, step)
    storage.create(run + "/checkpoints/step-00000300-00000000/model.npz", b"half")
    save(run, 300)
    assert steps_in(run) == [100, 200, 300]


def test_killed_while_deleting_leaves_no_folder_that_looks_whole(run, monkeypatch):
    old = save(run, 100)
    deleted = []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", deleted.append)
        save(run, 200, keep=1)
    assert deleted[0] == old.address + "/manifest.json" and len(deleted) == 4


def test_two_writers_cannot_both_move_the_pointer(run, monkeypatch):
    save(run, 100)
    read, winner = storage.read_versioned, []

    def read_then_lose(address):
        found = read(address)
        if not winner:
            winner.append(None)
            winner.append(save(run, 150))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_versioned", read_then_lose)
        with pytest.raises(storage.Conflict):
            save(run, 200)
    assert checkpoints.find_latest(run) == winner[1]


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"{}", b'{"checkpoint": 1, "crc32c": "a"}', b"\xff"])
def test_a_broken_pointer_is_named(tmp_path, data):
    storage.create(f"{tmp_path}/checkpoints/latest.json", data)
    with pytest.raises(UserError, match=f"{tmp_path}/checkpoints/latest.json is not a pointer"):
        checkpoints.find_latest(str(tmp_path))


class Trap:
    """Unpickling one would count."""

    sprung = 0

    def __reduce__(self):
        return setattr, (Trap, "sprung", 1)


def test_objects_are_not_written(tmp_path):
    variables = make_variables(1)
    variables["model"]["a/kernel"] = np.array([Trap()], dtype=object)
    with pytest.raises(ValueError, match="a/kernel: expected an array of numbers"):
        checkpoints.save_checkpoint(str(tmp_path), variables, make_state(1), keep=1)
    assert storage.find(str(tmp_path)) == []


def test_pickles_are_not_run(tmp_path):
    """A folder with every checksum right, made by somebody else."""
    packed = io.BytesIO()
    np.savez(packed, **{"a/kernel": np.array([Trap()], dtype=object)})
    pin = save(str(tmp_path), 1)
    manifest = json.loads(storage.read(pin.address + "/manifest.json"))
    for file in manifest["files"]:
        if file["name"] == "model.npz":
            file["crc32c"] = storage.crc32c(packed.getvalue())
    data = json.dumps(manifest).encode()
    storage.overwrite(pin.address + "/model.npz", packed.getvalue())
    storage.overwrite(pin.address + "/manifest.json", data)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoints.load_checkpoint(checkpoints.Pin(address=pin.address, crc32c=storage.crc32c(data)))
    assert Trap.sprung == 0


def make_model(seed, units=3):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, name="dense")], name="net")


def test_variables_pass_from_one_model_to_another():
    source, target = make_model(1), make_model(2)
    arrays = checkpoints.read_variables(source.variables)
    assert arrays.keys() == {"net/dense/kernel", "net/dense/bias"}
    checkpoints.assign_variables(target.variables, arrays)
    np.testing.assert_array_equal(target.layers[0].kernel, source.layers[0].kernel)
    source.layers[0].kernel.assign(source.layers[0].kernel * 2)
    np.testing.assert_array_equal(arrays["net/dense/kernel"], target.layers[0].kernel)  # a copy, not a view


def test_differences_are_named_and_nothing_is_assigned():
    model = make_model(1)
    before = [x.numpy() for x in model.variables]
    good = checkpoints.read_variables(make_model(2).variables)
    kernel, bias = "net/dense/kernel", "net/dense/bias"
    wider = checkpoints.read_variables(make_model(2, units=4).variables)
    for arrays, message in [
        ({**good, "other/kernel": np.zeros(1)}, "other/kernel is in the checkpoint only"),
        ({kernel: good[kernel]}, f"{bias} is in the config's network but not in the checkpoint"),
        ({**wider, bias: good[bias]}, rf"{kernel}: expected shape \(2, 3\). Received \(2, 4\)"),
        ({**good, bias: good[bias][:1]}, rf"{bias}: expected shape \(3,\). Received \(1,\)"),
    ]:
        with pytest.raises(UserError, match=f"does not fit the config: {message}"):
            checkpoints.assign_variables(model.variables, arrays)
        for x, y in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(x, y)


def test_two_variables_of_one_path_are_refused():
    twice = [*make_model(1).variables, *make_model(2).variables]
    with pytest.raises(ValueError, match="net/dense/.* twice"):
        checkpoints.read_variables(twice)


def test_optimizer_state_passes_too():
    model = make_model(1)
    trained, fresh = (keras.optimizers.Adam(rate, name="adam") for rate in (0.1, 0.5))
    gradients = [np.full(x.shape, 0.5, "float32") for x in model.trainable_variables]
    trained.apply(gradients, model.trainable_variables)
    fresh.build(model.trainable_variables)
    checkpoints.assign_variables(fresh.variables, checkpoints.read_variables(trained.variables))
    after = [x.numpy() for x in model.variables]
    trained.apply(gradients, model.trainable_variables)
    expected = [x.numpy() for x in model.variables]
    for variable, array in zip(model.variables, after, strict=True):
        variable.assign(array)
    fresh.apply(gradients, model.trainable_variables)
    for variable, array in zip(model.variables, expected, strict=True):
        np.testing.assert_array_equal(variable, array)
    assert int(fresh.iterations) == 2
