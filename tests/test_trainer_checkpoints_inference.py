"""What computes with a run's weights uses those that validation judged: the moving averages where there are any."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest

from networks import make_network, small_config
from trainer import checkpoints, export, presets, storage
from trainer.errors import UserError
from trainer.inference import predict
from trainer.model.unet import build_unet

CONFIG = dataclasses.replace(small_config(16), ema_decay=0.9)
RAW, AVERAGED = 1, 2  # seeds of the two networks in a checkpoint


def arrays_of(seed):
    return checkpoints.read_variables(make_network(CONFIG, seed).variables)


def save(run, parts=(checkpoints.MODEL, checkpoints.OPTIMIZER, checkpoints.EMA)):
    """A run with one checkpoint, of step 3."""
    held = {checkpoints.MODEL: arrays_of(RAW), checkpoints.OPTIMIZER: {}, checkpoints.EMA: arrays_of(AVERAGED)}
    state = {"step": 3, "phase": "initial", "examples": 3}
    storage.overwrite(f"{run}/config.json", presets.to_json(CONFIG))
    return checkpoints.save_checkpoint(run, {part: held[part] for part in parts}, state, keep=3, config=CONFIG)


def compute(seed, image, mask):
    """The network of a seed, built here and assigned variable by variable: what every way must give."""
    network, arrays = build_unet(CONFIG.unet, dtype="float32"), arrays_of(seed)
    for variable in network.variables:
        variable.assign(arrays[variable.path])
    return np.asarray(network([image, mask], training=False))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = (rng.random((1, 16, 24, 1)) > 0.4).astype("float32")
    return (rng.integers(0, 256, (1, 16, 24, 3)) / 255).astype("float32"), mask


@pytest.fixture(scope="module")
def expected(batch):
    found = compute(AVERAGED, *batch)
    assert np.abs(found - compute(RAW, *batch))[batch[1][..., 0] == 0].mean() > 0.05  # else any weights would pass
    return found


def test_predictions_and_inpainting_are_of_the_averages(tmp_path, batch, expected):
    save(str(tmp_path))
    model = predict.load_model(predict.find_model(str(tmp_path)))
    np.testing.assert_allclose(model.predict(*batch), expected, atol=1e-5)
    image, mask = np.rint(batch[0][0] * 255).astype("uint8"), batch[1][0, ..., 0].astype("uint8")
    filled = predict.inpaint(image, mask, model)[mask == 0]
    assert np.abs(filled - np.clip(expected[0], 0, 1)[mask == 0] * 255).max() <= 0.51


def test_exports_are_of_the_averages_and_say_so(tmp_path, batch, expected):
    save(str(tmp_path))
    export.main(["--run", str(tmp_path)])
    folder = f"{tmp_path}/exports/step-00000003"
    assert json.loads(storage.read(f"{folder}/card.json"))["weights"] == "ema"
    loaded = keras.saving.load_model(f"{folder}/model.keras")
    np.testing.assert_allclose(loaded(list(batch), training=False), expected, atol=1e-5)
    again = predict.load_model(predict.find_export(folder))
    np.testing.assert_allclose(again.predict(*batch), expected, atol=1e-5)


@pytest.mark.slow
def test_exports_for_other_programs_are_of_the_averages(tmp_path, batch, expected):
    tf, onnxruntime = pytest.importorskip("tensorflow"), pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    save(str(tmp_path))
    export.main(["--run", str(tmp_path), "--format", "saved_model,onnx", "--output", f"{tmp_path}/out"])
    image, mask = batch
    serve = tf.saved_model.load(f"{tmp_path}/out/saved_model").signatures["serving_default"]
    found = serve(image=tf.constant(image), mask=tf.constant(mask))["output"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    session = onnxruntime.InferenceSession(f"{tmp_path}/out/model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["output"], {"image": image, "mask": mask})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_without_averages_the_weights_are_the_raw_ones(tmp_path, batch):
    """As every checkpoint was before there were averages."""
    save(str(tmp_path), (checkpoints.MODEL, checkpoints.OPTIMIZER))
    model = predict.load_model(predict.find_model(str(tmp_path)))
    np.testing.assert_allclose(model.predict(*batch), compute(RAW, *batch), atol=1e-5)
    export.main(["--run", str(tmp_path)])
    assert json.loads(storage.read(f"{tmp_path}/exports/step-00000003/card.json"))["weights"] == "raw"


@pytest.mark.parametrize("with_averages", [True, False])
def test_only_the_part_that_is_needed_is_read(tmp_path, with_averages):
    parts = (checkpoints.MODEL, checkpoints.OPTIMIZER, checkpoints.EMA)[: 2 + with_averages]
    pin = save(str(tmp_path), parts)
    needed = checkpoints.EMA if with_averages else checkpoints.MODEL
    for part in set(parts) - {needed}:
        storage.delete(f"{pin.address}/{part}.npz")
    checkpoint = checkpoints.load_for_inference(pin)
    assert checkpoint.variables.keys() == {needed} and checkpoint.parts == parts
    storage.delete(f"{pin.address}/{needed}.npz")
    with pytest.raises(storage.NotFound, match=f"{needed}.npz does not exist"):
        checkpoints.load_for_inference(pin)


def test_raw_weights_are_not_taken_for_averages_that_were_not_read(tmp_path):
    checkpoint = checkpoints.load_checkpoint(save(str(tmp_path)), (checkpoints.MODEL,))
    with pytest.raises(ValueError, match=r"checkpoint: expected its ema to be loaded. Received \['model'\]"):
        checkpoints.inference_weights(checkpoint)


def test_exports_of_unknown_weights_are_not_added_to(tmp_path):
    """Earlier versions wrote cards without the field, and raw weights beside averaged ones."""
    save(str(tmp_path))
    export.main(["--run", str(tmp_path)])
    address = f"{tmp_path}/exports/step-00000003/card.json"
    card = json.loads(storage.read(address))
    del card["weights"]
    storage.overwrite(address, json.dumps(card).encode())
    with pytest.raises(UserError, match="may be of other weights; --output puts this one into"):
        export.main(["--run", str(tmp_path)])
    export.main(["--run", str(tmp_path), "--output", f"{tmp_path}/out"])
    assert predict.find_export(f"{tmp_path}/exports/step-00000003").config == CONFIG  # what is there still loads
