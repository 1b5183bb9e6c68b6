"""Exported networks: the same as the checkpoints they were made from, and nothing in them is run."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import tensorflow as tf

from networks import make_network, save_network, small_config
from trainer import checkpoints, presets, storage
from trainer.errors import DeviceError, UserError
from trainer.inference import export_formats, predict

CONFIG = small_config(16)
STRIDE = 8


@pytest.fixture(scope="module")
def network():
    return make_network(CONFIG, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory, network):
    run = str(tmp_path_factory.mktemp("run"))
    storage.create(run + "/config.json", presets.to_json(CONFIG))
    save_network(run, network)
    return predict.load_model(predict.find_model(run), window=64)


def draw(height, width, seed=0, hole_ratio=0.4):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    coarse = rng.random((-(-height // 3), -(-width // 3))) >= hole_ratio
    return image, coarse.repeat(3, 0).repeat(3, 1)[:height, :width].astype(np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, network):
    folder = str(tmp_path_factory.mktemp("exported"))
    save_network(folder, network)
    checkpoint = checkpoints.load_checkpoint(checkpoints.find(folder))
    return export_formats.export_model(folder, CONFIG, checkpoint, {}, folder=f"{folder}/export")


@pytest.mark.parametrize("name", ["", "/model.keras"])
def test_an_export_is_the_same_network(name, exported, model):
    pin = predict.find_export(exported + name)
    assert pin.config == CONFIG and pin.checkpoint.address == f"{exported}/model.keras"
    image, mask = draw(16, 24)
    np.testing.assert_array_equal(
        predict.inpaint(image, mask, predict.load_model(pin)), predict.inpaint(image, mask, model)
    )


def test_exports_that_are_none_are_refused(exported, tmp_path):
    folder = str(tmp_path)
    with pytest.raises(storage.NotFound, match=f"{folder}/model.keras does not exist"):
        predict.find_export(folder)
    storage.create(f"{folder}/model.keras", storage.read(f"{exported}/model.keras"))
    with pytest.raises(UserError, match="has no card: .*card.json does not exist"):
        predict.find_export(folder)
    for card in (b"[]", b"{}", b'{"config": {"color": 1}}'):
        storage.overwrite(f"{folder}/card.json", card)
        with pytest.raises(UserError, match="is not the card of an exported network"):
            predict.find_export(folder)
    wider = presets.override(CONFIG, ["unet.filters=4,6,9"])
    storage.overwrite(f"{folder}/card.json", b'{"config": %s}' % presets.to_json(wider))
    pin = predict.find_export(folder)
    with pytest.raises(UserError, match="model.keras does not fit the network of its card"):
        predict.load_model(pin)
    storage.overwrite(f"{folder}/model.keras", b"PK\x03\x04 no zip")
    with pytest.raises(storage.Corrupt, match="is corrupt"):
        predict.load_model(pin)
    with pytest.raises(UserError, match="model.keras: expected a .keras file. Received a damaged or different file"):
        predict.load_model(predict.find_export(folder))


def test_what_builds_the_model_in_an_export_is_not_looked_at(exported, tmp_path, model):
    """An export whose description of its layers would run code loads as its weights alone."""
    folder = str(tmp_path)
    storage.create(f"{folder}/card.json", storage.read(f"{exported}/card.json"))
    with zipfile.ZipFile(f"{exported}/model.keras") as old, zipfile.ZipFile(f"{folder}/model.keras", "w") as new:
        for item in old.namelist():
            evil = b'{"module": "os", "class_name": "system", "config": {"command": "touch /tmp/pconv-evil"}}'
            new.writestr(item, evil if item == "config.json" else old.read(item))
    image, mask = draw(9, 9)
    found = predict.inpaint(image, mask, predict.load_model(predict.find_export(folder)))
    np.testing.assert_array_equal(found, predict.inpaint(image, mask, model))


def test_devices(exported):
    pin = predict.find_export(exported)
    image, mask = draw(9, 9)
    expected = predict.inpaint(image, mask, predict.load_model(pin))
    np.testing.assert_array_equal(predict.inpaint(image, mask, predict.load_model(pin, device="cpu")), expected)
    with pytest.raises(ValueError, match="device: expected one of"):
        predict.load_model(pin, device="tpu")
    if not tf.config.list_physical_devices("GPU"):
        with pytest.raises(DeviceError, match="^device gpu: this machine has no GPU"):
            predict.load_model(pin, device="gpu")
        assert predict.load_model(pin).batch_size == 1
    assert predict.load_model(pin, batch_size=5).batch_size == 5
