"""Exports: the file loads elsewhere and computes the same, the card says what it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from trainer import checkpoints, storage
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.errors import UserError
from trainer.inference.export_formats import export_model
from trainer.model.unet import build_unet

CONFIG = TrainConfig(
    unet=UNetConfig(image_size=16, filters=(4, 6, 8), kernels=(5, 3, 3), residual=True),
    initial=PhaseConfig(steps=7, learning_rate=0.01),
    precision="mixed_bfloat16",
)
METRICS = {"total": 0.5, "hole": 0.25}

# A user's own program: Keras and the module of our layers, and nothing that reads runs.
PROGRAM = """
import sys
import numpy as np
import keras, trainer.model.unet
model = keras.saving.load_model(sys.argv[1])
arrays = np.load(sys.argv[2])
np.save(sys.argv[3], model.predict([arrays["image"], arrays["mask"]], verbose=0))
assert {layer.compute_dtype for layer in model.layers} == {"float32"}
assert not {"trainer.inference.export_formats", "trainer.inference.predict"} & set(sys.modules)
"""


@pytest.fixture(params=["folder", "bucket"])
def run(request, tmp_path):
    return str(tmp_path / "run") if request.param == "folder" else request.getfixturevalue("bucket") + "/run"


def save(run, seed=1):
    """A trained network's stand-in, with BatchNorm statistics of its own, and its checkpoint."""
    network, rng = build_unet(CONFIG.unet, seed=seed), np.random.default_rng(seed)
    for variable in network.variables:
        variable.assign(variable.numpy() + rng.uniform(0, 0.3, variable.shape))
    variables = {"model": checkpoints.read_variables(network.variables), "optimizer": {}}
    state = {"step": 7, "phase": "initial", "examples": 42}
    return network, checkpoints.load_checkpoint(checkpoints.save_checkpoint(run, variables, state, keep=3), ("model",))


def test_an_export_computes_the_same_in_a_program_of_its_own(tmp_path):
    run = str(tmp_path / "run")
    network, checkpoint = save(run)
    folder = export_model(run, CONFIG, checkpoint, METRICS)
    assert folder == run + "/exports/step-00000007"
    assert storage.find(folder) == [folder + "/card.json", folder + "/model.keras"]

    rng = np.random.default_rng(0)
    image = rng.random((2, 24, 40, 3)).astype("float32")  # not the size of training
    mask = (rng.random((2, 24, 40, 1)) > 0.4).astype("float32")
    np.savez(tmp_path / "in.npz", image=image, mask=mask)
    (tmp_path / "copy.keras").write_bytes(storage.read(folder + "/model.keras"))
    names = [tmp_path / name for name in ("copy.keras", "in.npz", "out.npy")]
    command = [sys.executable, "-c", PROGRAM, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = network([image, mask], training=False).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5, atol=1e-5)


def test_the_card_says_what_it_is(run):
    _, checkpoint = save(run)
    folder = export_model(run, CONFIG, checkpoint, METRICS)
    card = json.loads(storage.read(folder + "/card.json"))
    assert (card["step"], card["phase"], card["examples"]) == (7, "initial", 42)
    assert card["metrics"] == METRICS
    assert re.fullmatch("checkpoints/step-00000007-[0-9a-f]{8}", card["checkpoint"])
    manifest = storage.read(storage.join(run, card["checkpoint"], "manifest.json"))
    assert card["checkpoint_crc32c"] == storage.crc32c(manifest)
    assert card["config"]["unet"]["filters"] == [4, 6, 8] and card["config"]["precision"] == "mixed_bfloat16"
    assert "1 = valid" in card["input"] and "multiples of 8" in card["input"]


def files_of(folder):
    return {address: storage.read(address) for address in storage.find(folder)}


def test_an_export_is_written_once(run):
    _, checkpoint = save(run)
    folder = export_model(run, CONFIG, checkpoint, METRICS)
    before = files_of(folder)
    assert export_model(run, CONFIG, checkpoint, {}) == folder
    assert files_of(folder) == before


def kernel_of(folder, tmp_path):
    (tmp_path / "read.keras").write_bytes(storage.read(folder + "/model.keras"))
    found = keras.saving.load_model(tmp_path / "read.keras").variables
    return next(variable.numpy() for variable in found if variable.path == "encoder_1_conv/kernel")


def test_an_export_of_another_checkpoint_of_the_step_is_replaced(run, tmp_path):
    """A step that is computed anew, after its checkpoints were lost or with another seed, has other weights."""
    folder = export_model(run, CONFIG, save(run)[1], METRICS, ["keras", "saved_model"])
    storage.create(folder + "/notes.txt", b"mine")
    network, checkpoint = save(run, seed=2)
    assert export_model(run, CONFIG, checkpoint, {}) == folder
    np.testing.assert_array_equal(kernel_of(folder, tmp_path), network.get_layer("encoder_1_conv").kernel.numpy())
    names = [storage.relative(address, folder) for address in storage.find(folder)]
    assert names == ["card.json", "model.keras", "notes.txt"]  # and no SavedModel of the first
    assert json.loads(storage.read(folder + "/card.json"))["checkpoint_crc32c"] == checkpoint.pin.crc32c


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-1] + b"?", None])
def test_a_damaged_file_of_an_export_is_written_again(run, tmp_path, damage):
    network, checkpoint = save(run)
    folder = export_model(run, CONFIG, checkpoint, METRICS, ["keras", "saved_model"])
    other = files_of(folder + "/saved_model")
    model = folder + "/model.keras"
    storage.overwrite(model, damage(storage.read(model))) if damage else storage.delete(model)
    export_model(run, CONFIG, checkpoint, METRICS, ["keras", "saved_model"])
    np.testing.assert_array_equal(kernel_of(folder, tmp_path), network.get_layer("encoder_1_conv").kernel.numpy())
    assert files_of(folder + "/saved_model") == other
    card = json.loads(storage.read(folder + "/card.json"))
    found = {storage.relative(address, folder): storage.crc32c(data) for address, data in files_of(folder).items()}
    assert card["files"] == {name: crc32c for name, crc32c in found.items() if name != "card.json"}


def test_an_export_that_was_cut_short_is_completed(run):
    _, checkpoint = save(run)
    folder = export_model(run, CONFIG, checkpoint, METRICS)
    storage.delete(folder + "/card.json")
    export_model(run, CONFIG, checkpoint, METRICS)
    assert json.loads(storage.read(folder + "/card.json"))["metrics"] == METRICS


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    _, checkpoint = save(str(tmp_path))
    other = TrainConfig(unet=UNetConfig(image_size=16, filters=(4, 6), kernels=(5, 3)), initial=PhaseConfig(steps=7))
    with pytest.raises(UserError, match="does not fit the config"):
        export_model(str(tmp_path), other, checkpoint, METRICS)
    assert storage.find(f"{tmp_path}/exports") == []
