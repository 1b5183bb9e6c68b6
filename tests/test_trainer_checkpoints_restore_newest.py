"""Finding checkpoints by name and step, and falling back from what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

from trainer import checkpoints, presets, storage
from trainer.checkpoints import pointers
from trainer.errors import UserError
from trainer.inference import predict

FILES = ("manifest.json", "model.npz", "optimizer.npz", "ema.npz", "state.json", "config.json")
CONFIG = presets.PRESETS["demo"]


@pytest.fixture(params=["folder", "bucket"])
def run(request, tmp_path):
    return str(tmp_path / "run") if request.param == "folder" else request.getfixturevalue("bucket") + "/run"


def save(run, step, value=None):
    arrays = {"w": np.random.default_rng(step).normal(size=50)}
    score = None if value is None else checkpoints.Score(metric="psnr", value=value, higher_is_better=True)
    variables = {"model": arrays, "optimizer": {"m": arrays["w"] / 2}, "ema": {"w": arrays["w"] * 2}}
    return checkpoints.save_checkpoint(run, variables, {"step": step}, 9, config=CONFIG, score=score)


def assert_is_step(checkpoint, step):
    assert checkpoint.state["step"] == step
    np.testing.assert_array_equal(checkpoint.variables["model"]["w"], np.random.default_rng(step).normal(size=50))


def harm_file(address, harm):
    data = bytearray(storage.read(address))
    if harm == "delete":
        storage.delete(address)
    elif harm == "truncate":
        storage.overwrite(address, bytes(data[: len(data) // 2]))
    elif harm == "empty":
        storage.overwrite(address, b"")
    else:
        data[len(data) // 2] ^= 1
        storage.overwrite(address, bytes(data))


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "delete"])
@pytest.mark.parametrize("file", FILES)
def test_a_harmed_file_of_the_newest_leads_to_the_one_before(run, file, harm):
    pins = [save(run, step) for step in (100, 200, 300)]
    harm_file(f"{pins[2].address}/{file}", harm)
    found = checkpoints.load_newest(run)
    assert found.checkpoint.pin == pins[1]
    assert_is_step(found.checkpoint, 200)
    ((address, why),) = found.skipped
    assert address == pins[2].address and f"{address}/{file}" in why
    assert ("does not exist" if harm == "delete" else "is corrupt") in why
    # Training goes on from there: the pointer leaves what it cannot be read from, with no step skipped.
    again = save(run, 250)
    assert checkpoints.find_latest(run) == again == checkpoints.load_newest(run).checkpoint.pin


def test_the_newest_is_what_latest_names(run):
    assert checkpoints.load_newest(run) is None
    pins = [save(run, step) for step in (100, 200)]
    found = checkpoints.load_newest(run, ("model",))
    assert (found.checkpoint.pin, found.skipped) == (pins[1], [])
    assert found.checkpoint.variables.keys() == {"model"} and found.checkpoint.config == CONFIG


def test_it_falls_back_as_far_as_it_must_and_names_each(run):
    pins = [save(run, step) for step in (5, 100, 1000, 20000)]
    for pin, file in zip(pins[1:], ("optimizer.npz", "state.json", "ema.npz"), strict=True):
        harm_file(f"{pin.address}/{file}", "flip")
    found = checkpoints.load_newest(run)
    assert_is_step(found.checkpoint, 5)
    assert [address for address, _ in found.skipped] == [pin.address for pin in pins[:0:-1]]
    # Who reads the model alone needs no more of it; the state always counts.
    assert checkpoints.load_newest(run, ("model",)).checkpoint.pin == pins[3]
    harm_file(f"{pins[0].address}/model.npz", "delete")
    with pytest.raises(UserError) as caught:
        checkpoints.load_newest(run)
    assert str(caught.value).startswith(f"{run} has no checkpoint that can be read: ")
    assert all(pin.address in str(caught.value) for pin in pins)


@pytest.mark.parametrize("others", [0, 2])
def test_a_pointer_to_nothing(run, others):
    for step in range(others):
        save(run, step)
    pin = save(run, 100)
    for address in storage.find(pin.address):
        storage.delete(address)
    if not others:
        with pytest.raises(UserError, match=f"no checkpoint that can be read: {pin.address}/manifest.json does not ex"):
            checkpoints.load_newest(run)
    else:
        found = checkpoints.load_newest(run)
        assert_is_step(found.checkpoint, 1)
        assert [address for address, _ in found.skipped] == [pin.address]


def test_a_broken_pointer_is_skipped_and_named(run):
    pin = save(run, 100)
    address = run + "/checkpoints/latest.json"
    storage.overwrite(address, b"{")
    found = checkpoints.load_newest(run)
    assert found.checkpoint.pin == pin and [skipped for skipped, _ in found.skipped] == [address]
    assert found.skipped[0][1].startswith(f"{address} is not a pointer to a checkpoint: Invalid JSON")


def test_unfinished_checkpoints_are_none(run):
    pointers.claim(run)
    storage.create(run + "/checkpoints/step-00000300-00000000/model.npz", b"half")
    assert checkpoints.load_newest(run) is None and checkpoints.find_latest(run) is None
    pin = save(run, 100)
    found = checkpoints.load_newest(run)
    assert (found.checkpoint.pin, found.skipped) == (pin, [])


@pytest.mark.parametrize("at", [1, 2])
def test_a_store_that_refuses_is_no_corrupt_checkpoint(run, monkeypatch, at):
    """Falling back there would train steps again that are not lost."""
    pins = [save(run, step) for step in (100, 200, 300)]
    read = storage.read
    if at == 1:
        harm_file(f"{pins[2].address}/model.npz", "flip")

    def refuse(address, *arguments):
        if address.startswith(pins[at].address):
            raise ConnectionError("refused")
        return read(address, *arguments)

    monkeypatch.setattr(storage, "read", refuse)
    with pytest.raises(ConnectionError):
        checkpoints.load_newest(run)


def test_checkpoints_of_a_newer_version_are_not_skipped(run):
    save(run, 100)
    pin = save(run, 200)
    data = storage.read(pin.address + "/manifest.json")
    newer = b'{"colour": 1}'
    storage.overwrite(pin.address + "/config.json", newer)
    old = storage.crc32c(presets.to_json(CONFIG)).encode()
    manifest = data.replace(old, storage.crc32c(newer).encode())
    storage.overwrite(pin.address + "/manifest.json", manifest)
    pointer = storage.read(run + "/checkpoints/latest.json")
    pointer = pointer.replace(pin.crc32c.encode(), storage.crc32c(manifest).encode())
    storage.overwrite(run + "/checkpoints/latest.json", pointer)
    with pytest.raises(UserError, match="config.json is not a config: .*colour.*newer version"):
        checkpoints.load_newest(run)


def test_checkpoints_are_found_by_name_and_step(run):
    storage.create(run + "/config.json", presets.to_json(CONFIG))
    with pytest.raises(UserError, match=f"{run} has no checkpoint yet"):
        checkpoints.find(run)
    with pytest.raises(UserError, match=f"{run} has no checkpoint of step 7. Steps it has: none yet"):
        checkpoints.find(run, 7)
    pins = {step: save(run, step, value) for step, value in ((5, 20.0), (100, 25.0), (1000, 22.0))}
    assert checkpoints.find(run) == checkpoints.find(run, "latest") == pins[1000]
    assert checkpoints.find(run, "best") == pins[100]
    for step, pin in pins.items():
        assert checkpoints.find(run, step) == checkpoints.find(run, str(step)) == pin
        assert predict.find_model(run, step).checkpoint == pin
    assert predict.find_model(run, "best").checkpoint == pins[100]
    with pytest.raises(UserError, match=f"{run} has no checkpoint of step 10. Steps it has: 5, 100, 1000"):
        checkpoints.find(run, 10)
    for which in ("newest", "", "-5", "1.5"):
        with pytest.raises(UserError, match="expected latest, best or the number of a step. Received '"):
            checkpoints.find(run, which)
    again = save(run, 1000)
    assert checkpoints.find(run, 1000) == again == checkpoints.find_latest(run)


def test_best_is_named_only_after_validation(tmp_path):
    save(str(tmp_path), 5)
    with pytest.raises(UserError, match="has no best checkpoint yet: none was validated"):
        checkpoints.find(str(tmp_path), "best")


def test_inference_uses_the_config_that_the_weights_were_trained_with(tmp_path):
    run = str(tmp_path)
    changed = presets.override(CONFIG, ["unet.mean=0.5,0.5,0.5"])
    storage.create(run + "/config.json", presets.to_json(changed))
    save(run, 5)
    assert predict.find_model(run).config == CONFIG
    checkpoints.save_checkpoint(run, {"model": {}, "optimizer": {}}, {"step": 6}, 9)
    assert predict.find_model(run).config == changed
