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
from trainer.inference import export_formats, predict
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


@pytest.mark.slow
def test_all_files_of_an_export_hold_the_same_weights(tmp_path):
    """Array by array, also where the formats are written one after another, as training and the command do."""
    tf, onnx = pytest.importorskip("tensorflow"), pytest.importorskip("onnx")
    pytest.importorskip("tf2onnx")
    run = str(tmp_path)
    pin = save(run)
    export_formats.export_model(run, CONFIG, checkpoints.load_for_inference(pin), {"hole": 0.5})
    export.main(["--run", run, "--format", "saved_model"])
    export.main(["--run", run, "--checkpoint", "3", "--format", "onnx"])
    folder = f"{run}/exports/step-00000003"
    card = json.loads(storage.read(f"{folder}/card.json"))
    assert (card["weights"], card["metrics"]) == ("ema", {"hole": 0.5})
    assert {name.partition("/")[0] for name in card["files"]} == {"model.keras", "saved_model", "model.onnx"}
    averaged, raw = arrays_of(AVERAGED), arrays_of(RAW)

    in_keras = {
        variable.path: variable.numpy() for variable in keras.saving.load_model(f"{folder}/model.keras").variables
    }
    assert in_keras.keys() == averaged.keys()
    for name, array in averaged.items():
        np.testing.assert_array_equal(in_keras[name], array)

    def count(arrays, held):
        """How many of ``arrays`` are among those that a file holds."""
        found = {(array.shape, array.tobytes()) for array in held}
        return sum((array.shape, array.tobytes()) in found for array in arrays)

    reader = tf.train.load_checkpoint(f"{folder}/saved_model/variables/variables")
    in_saved_model = [np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()]
    assert count(averaged.values(), in_saved_model) == len(averaged)
    assert count(raw.values(), in_saved_model) < len(raw) / 2  # zeros and ones may be in both
    # tf2onnx folds BatchNorm and turns kernels to [filters, channels, height, width].
    model = onnx.load(f"{folder}/model.onnx")
    in_onnx = [np.ascontiguousarray(onnx.numpy_helper.to_array(held)) for held in model.graph.initializer]
    kernels = {
        seed: [np.ascontiguousarray(a.transpose(3, 2, 0, 1)) for name, a in arrays.items() if name.endswith("kernel")]
        for seed, arrays in ((AVERAGED, averaged), (RAW, raw))
    }
    assert count(kernels[AVERAGED], in_onnx) == len(kernels[AVERAGED]) > 4
    assert count(kernels[RAW], in_onnx) == 0


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
