"""Checkpoints on both storages: whole, verified, found through the pointer, never half there."""

from __future__ import annotations

import io
import json
import re

import ml_dtypes
import numpy as np
import pytest

from trainer import checkpoints, presets, storage
from trainer.errors import UserError

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


def test_one_part_is_enough_for_inference(run):
    pin = save(run, 7)
    storage.delete(pin.address + "/optimizer.npz")
    checkpoint = checkpoints.load_checkpoint(pin, ("model",))
    assert checkpoint.variables.keys() == {"model"} and checkpoint.state["step"] == 7
    with pytest.raises(storage.NotFound, match=f"{pin.address}/optimizer.npz"):
        checkpoints.load_checkpoint(pin)


def test_averages_random_state_and_config_come_back(run):
    config = presets.override(presets.PRESETS["demo"], ["unet.filters=4,8,8,8,8", "seed=3"])
    variables = {**make_variables(5), "ema": {"encoder_1_conv/kernel": np.arange(6.0)}}
    state = {**make_state(5), "random": {"data": [1, 2, 2**63], "name": "Philox"}, "validated": None}
    pin = checkpoints.save_checkpoint(run, variables, state, keep=1, config=config)
    listed = {file["name"] for file in json.loads(storage.read(pin.address + "/manifest.json"))["files"]}
    assert listed == {"model.npz", "optimizer.npz", "ema.npz", "state.json", "config.json"}
    checkpoint = checkpoints.load_checkpoint(pin)
    assert (checkpoint.state, checkpoint.config) == (state, config)
    np.testing.assert_array_equal(checkpoint.variables["ema"]["encoder_1_conv/kernel"], np.arange(6.0), strict=True)
    assert presets.from_json(storage.read(pin.address + "/config.json")) == config
    with pytest.raises(UserError, match="has no ema.npz"):
        checkpoints.load_checkpoint(save(run, 6), ("model", "ema"))


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


class Trap:
    """Unpickling one would count."""

    sprung = 0

    def __reduce__(self):
        return setattr, (Trap, "sprung", 1)


@pytest.mark.parametrize("array", [np.array([Trap()], dtype=object), np.zeros(2, ml_dtypes.bfloat16), np.array(["a"])])
def test_what_numpy_could_not_read_back_is_not_written(array, tmp_path):
    variables = make_variables(1)
    variables["optimizer"]["a/kernel"] = array
    with pytest.raises(ValueError, match="a/kernel: expected an array of numbers"):
        checkpoints.save_checkpoint(str(tmp_path), variables, make_state(1), keep=1)
    assert storage.find(str(tmp_path)) == []


@pytest.mark.parametrize("change", [lambda v: v.pop("optimizer"), lambda v: v.update(averages={})])
def test_parts_are_those_of_the_format(change, tmp_path):
    variables = make_variables(1)
    change(variables)
    with pytest.raises(ValueError, match="variables: expected parts .*'model', 'optimizer'.*'ema'"):
        checkpoints.save_checkpoint(str(tmp_path), variables, make_state(1), keep=1)
    assert storage.find(str(tmp_path)) == []


def replace(pin, name, data):
    """Puts ``data`` into a file of a checkpoint with every checksum right, as somebody else would; its new pin."""
    manifest = json.loads(storage.read(pin.address + "/manifest.json"))
    for file in manifest["files"]:
        if file["name"] == name:
            file["crc32c"] = storage.crc32c(data)
    listed = json.dumps(manifest).encode()
    storage.overwrite(f"{pin.address}/{name}", data)
    storage.overwrite(pin.address + "/manifest.json", listed)
    return checkpoints.Pin(address=pin.address, crc32c=storage.crc32c(listed))


def test_pickles_are_not_run(tmp_path):
    packed = io.BytesIO()
    np.savez(packed, **{"a/kernel": np.array([Trap()], dtype=object)})
    pin = replace(save(str(tmp_path), 1), "model.npz", packed.getvalue())
    with pytest.raises(storage.Corrupt, match="model.npz is corrupt: .*allow_pickle=False"):
        checkpoints.load_checkpoint(pin)
    assert Trap.sprung == 0


@pytest.mark.parametrize(
    "change",
    [
        '"step": -5',
        '"step": 1e3',
        f'"step": {10**30}',
        '"step": "1"',
        '"step": true',
        '"step": null',
        '"phase": "third"',
        '"examples": -1',
        f'"examples": {2**53 + 1}',
        '"skipped": 0.5',
        '"loss_scale": 3',
        '"loss_scale": [1.0]',
        '"loss_scale": [1.0, 2, 3]',
        '"loss_scale": [-1.0, 0]',
        '"loss_scale": [NaN, 0]',
        '"loss_scale": [1e400, 0]',
        f'"loss_scale": [{2**128}, 0]',
        '"other": ' + "[" * 100_000 + "]" * 100_000,
    ],
    ids=lambda change: change[:40],
)
def test_values_of_the_state_have_bounds(change, tmp_path):
    pin = replace(save(str(tmp_path), 1), "state.json", f'{{"step": 1, {change}}}'.encode())
    with pytest.raises(storage.Corrupt, match="state.json"):
        checkpoints.load_checkpoint(pin)


def test_a_state_is_of_the_step_in_the_name_of_its_folder(tmp_path):
    pin = replace(save(str(tmp_path), 1), "state.json", b'{"step": 2}')
    with pytest.raises(storage.Corrupt, match="expected the step of its name. Received 2"):
        checkpoints.load_checkpoint(pin)


def test_what_a_training_keeps_comes_back(tmp_path):
    state = {"step": 1, "phase": "finetune", "examples": 2**53, "loss_scale": [2.0**127, 0.0], "skipped": 0}
    pin = checkpoints.save_checkpoint(str(tmp_path), make_variables(1), state, keep=1)
    assert checkpoints.load_checkpoint(pin).state == state
