"""Inpainting of arrays: valid pixels untouched, holes from the network and from nothing that is hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from networks import make_network, save_network, small_config
from trainer import checkpoints, presets, storage
from trainer.checkpoints import pointers
from trainer.errors import UserError
from trainer.inference import predict
from trainer.model import precision

CONFIG = small_config(16)
STRIDE = 8


@pytest.fixture(params=["folder", "bucket"])
def run(request, tmp_path):
    return str(tmp_path / "run") if request.param == "folder" else request.getfixturevalue("bucket") + "/run"


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


def inpaint_by_hand(image, mask, network):
    """One image, padded below and to the right with holes, through the network itself."""
    height, width = mask.shape
    padded = [-(-size // STRIDE) * STRIDE for size in mask.shape]
    target, valid = np.zeros((1, *padded, 3), "float32"), np.zeros((1, *padded, 1), "float32")
    for y, x in np.argwhere(mask == 1):
        target[0, y, x], valid[0, y, x] = image[y, x] / 255, 1
    output = network([target, valid], training=False).numpy()[0, :height, :width]
    return np.where(mask[..., None] == 1, image, np.clip(output, 0, 1) * 255)


SIZES = [(1, 1), (7, 5), (8, 8), (9, 8), (16, 24), (33, 17)]


@pytest.mark.parametrize("size", SIZES)
def test_any_size_agrees_with_the_network_and_keeps_valid_pixels(size, model, network):
    image, mask = draw(*size)
    given = image.copy(), mask.copy()
    found = predict.inpaint(image, mask, model)
    assert found.dtype == np.uint8 and found.shape == image.shape
    np.testing.assert_array_equal(found[mask == 1], image[mask == 1])
    assert np.abs(found - inpaint_by_hand(image, mask, network)).max() <= 0.51
    np.testing.assert_array_equal(image, given[0])
    np.testing.assert_array_equal(mask, given[1])


def test_holes_are_filled_by_the_network(model):
    image, mask = draw(33, 17)
    found = predict.inpaint(image, mask, model)
    assert (found[mask == 0] != image[mask == 0]).mean() > 0.9
    assert len(np.unique(found[mask == 0])) > 100


def test_what_lies_under_the_holes_does_not_matter(model):
    image, mask = draw(19, 30)
    expected = predict.inpaint(image, mask, model)
    for value in (0, 255, np.random.default_rng(5).integers(0, 256, image.shape, dtype=np.uint8)):
        garbage = np.where(mask[..., None] == 1, image, value).astype(np.uint8)
        np.testing.assert_array_equal(predict.inpaint(garbage, mask, model), expected)


def test_what_lies_beyond_the_edge_does_not_matter(model):
    image, mask = draw(19, 30)
    wide, wide_mask = np.full((24, 32, 3), 255, np.uint8), np.zeros((24, 32), np.uint8)
    wide[:19, :30], wide_mask[:19, :30] = image, mask
    found = predict.inpaint(wide, wide_mask, model)[:19, :30]
    np.testing.assert_array_equal(found, predict.inpaint(image, mask, model))


def test_companions_in_the_batch_do_not_matter(model):
    pairs = [draw(*size, seed=i) for i, size in enumerate([*SIZES, (15, 20), (16, 24), (33, 17)])]
    pairs.append((np.full((16, 24, 3), 255, np.uint8), np.ones((16, 24), np.uint8)))
    images, masks = zip(*pairs, strict=True)
    together = predict.inpaint_batch(images, masks, model)
    assert len(together) == len(pairs)
    for (image, mask), found in zip(pairs, together, strict=True):
        alone = predict.inpaint(image, mask, model)
        assert found.shape == image.shape
        np.testing.assert_array_equal(found[mask == 1], image[mask == 1])
        # Sums may be taken in another order; statistics of the batch would move holes by tens.
        np.testing.assert_allclose(found.astype(int), alone, atol=1)


def test_nothing_to_fill_and_nothing_to_go_by(model):
    image, mask = draw(16, 16)
    np.testing.assert_array_equal(predict.inpaint(image, np.ones_like(mask), model), image)
    np.testing.assert_array_equal(predict.inpaint(image, np.zeros_like(mask), model), np.zeros_like(image))
    assert predict.inpaint_batch([], [], model) == []


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (np.zeros((8, 9, 3), np.uint8), np.ones((9, 8), np.uint8), r"mask: .*size \(8, 9\). Received \(9, 8\)"),
        (np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8), r"mask: .*Received \(8, 8, 1\)"),
        (np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255, np.uint8), "mask: expected uint8 of 0 and 1.*up to 255"),
        (np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.float32), "mask: expected uint8 .*float32"),
        (np.zeros((8, 8, 3), np.float32), np.ones((8, 8), np.uint8), "image: expected uint8 .*float32"),
        (np.zeros((8, 8, 5), np.uint8), np.ones((8, 8), np.uint8), r"image: .*Received uint8 \[8, 8, 5\]"),
        (np.zeros((8,), np.uint8), np.ones((8,), np.uint8), r"image: .*Received uint8 \[8\]"),
        (np.zeros((8, 8, 3), np.int16), np.ones((8, 8), np.uint8), r"image: .*Received int16 \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), np.ones((0, 8), np.uint8), r"image: .*Received uint8 \[0, 8, 3\]"),
    ],
)
def test_wrong_arrays_are_refused(image, mask, message, model):
    with pytest.raises(ValueError, match=message):
        predict.inpaint(image, mask, model)
    with pytest.raises(ValueError):
        predict.inpaint_batch([image, image], [mask], model)


def test_pillows_images_lists_and_tensors(model):
    image, mask = draw(19, 30)
    expected = predict.inpaint(image, mask, model)
    picture, whites = Image.fromarray(image), Image.fromarray(mask * np.uint8(255)).convert("1")
    for given in (picture, image.tolist(), tf.constant(image), np.asfortranarray(image)):
        for its in (whites, Image.fromarray(mask), mask.tolist(), mask.astype(bool), tf.constant(mask)):
            np.testing.assert_array_equal(predict.inpaint(given, its, model), expected)
    (found,) = predict.inpaint_batch([picture], [whites], model)
    np.testing.assert_array_equal(found, expected)
    for mode in ("L", "LA", "RGBA"):
        other = picture.convert(mode)
        found = predict.inpaint(other, mask, model)
        np.testing.assert_array_equal(found, predict.inpaint(np.asarray(other), mask, model))
    wide = image[..., 0].astype(np.uint16) * 257
    for mode in ("<u2", ">u2"):
        other = Image.fromarray(wide.astype(mode))
        assert other.mode in ("I;16", "I;16B")
        np.testing.assert_array_equal(predict.inpaint(other, mask, model), predict.inpaint(wide, mask, model))


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (Image.new("CMYK", (8, 8)), None, "Pillow's modes L, .* Received CMYK: image.convert"),
        (Image.new("P", (8, 8)), None, "Pillow's modes L, .* Received P"),
        ("a.jpg", None, "image: expected an array. Received str 'a.jpg': np.asarray.PIL.Image.open.path.. reads"),
        (Path("a.jpg"), None, r"image: expected an array. Received \w*Path: np.asarray"),
        (None, None, "image: expected an array. Received NoneType.$"),
        ([Image.new("L", (8, 8))] * 2, None, "image: expected one image. Received a list of 2: inpaint_batch takes"),
        ([np.zeros((8, 8), np.uint8)], None, "image: expected one image. Received a list of 1: inpaint_batch takes"),
        ([[0, 256]], None, r"image: expected uint8 or uint16 .* Received int64 \[1, 2\]"),
        ([[0, 1], [2]], None, "image: expected an array. Received a list of 2: .*inhomogeneous"),
        ([[0.5]], None, r"image: expected uint8 or uint16 .* Received float64 \[1, 1\]"),
        ([], None, r"image: expected uint8 or uint16"),
        (
            np.zeros((8, 8), np.uint8),
            Image.new("RGB", (8, 8)),
            "mask: expected one of Pillow's modes 1 and L. Received RGB",
        ),
        (
            np.zeros((8, 8), np.uint8),
            Image.new("L", (8, 8), 255),
            "0 and 1, where 1 is valid. .* up to 255: .mask > 127",
        ),
        (
            np.zeros((8, 8), np.uint8),
            Image.new("1", (9, 8)),
            r"mask: expected the image's size \(8, 8\). Received \(8, 9\)",
        ),
        (np.zeros((8, 8), np.uint8), "holes.png", "mask: expected an array. Received str 'holes.png'"),
    ],
)
def test_other_things_are_told_what_is_expected(image, mask, message, model):
    with pytest.raises(ValueError, match=message):
        predict.inpaint(image, np.ones((8, 8), np.uint8) if mask is None else mask, model)


def test_one_is_not_several_and_a_name_is_no_model(model):
    image, mask = draw(8, 8)
    with pytest.raises(ValueError, match="masks: expected several. Received one, uint8 .8, 8.: inpaint takes one"):
        predict.inpaint_batch(image, mask, model)
    with pytest.raises(
        ValueError, match="images: expected several. Received one, an image of Pillow's, mode RGB, 8 x 8"
    ):
        predict.inpaint_batch(Image.fromarray(image), [mask], model)
    with pytest.raises(ValueError, match="masks: expected one for each of 2 images. Received 1."):
        predict.inpaint_batch([image, image], [mask], model)
    with pytest.raises(ValueError, match="model: expected what load_model returns. Received str."):
        predict.inpaint(image, mask, "runs/a")
    with pytest.raises(
        ValueError, match="pin: expected what find_model, find_export or starter returns. Received str."
    ):
        predict.load_model("runs/a")
    found = predict.inpaint_batch(np.stack([image] * 2), np.stack([mask] * 2), model)
    np.testing.assert_array_equal(found[1], predict.inpaint(image, mask, model))


def test_depths_and_channels(model):
    """16 bits and gray give what 8 bits and RGB give, to the step of 8 bits."""
    image, mask = draw(19, 30)
    expected = predict.inpaint(image, mask, model).astype(int)
    wide = predict.inpaint(image.astype(np.uint16) * 257, mask, model)
    assert wide.dtype == np.uint16
    assert np.abs(wide / 257 - expected).max() <= 0.51
    assert len(np.unique(wide[mask == 0] % 257)) > 50  # not 8 bits in a wider type
    alpha = np.random.default_rng(1).integers(0, 256, (19, 30, 1), np.uint8)
    found = predict.inpaint(np.concatenate([image, alpha], 2), mask, model)
    np.testing.assert_array_equal(found, np.concatenate([expected, alpha], 2))
    gray = image[..., :1]
    colors = predict.inpaint(gray.repeat(3, 2), mask, model).astype(float)
    luminance = colors @ [0.299, 0.587, 0.114]
    for given in (gray, gray[..., 0], np.concatenate([gray, alpha], 2)):
        found = predict.inpaint(given, mask, model)
        assert found.shape == given.shape
        values = found.reshape(19, 30, -1)[..., 0]
        np.testing.assert_array_equal(values[mask == 1], gray[mask == 1, 0])
        assert np.abs(values - luminance)[mask == 0].max() <= 1.01


def test_large_images_keep_valid_pixels_and_leave_nothing_empty(run):
    storage.create(run + "/config.json", presets.to_json(CONFIG))
    save_network(run, make_network(CONFIG, 1))
    model = predict.load_model(predict.find_model(run))
    assert model.tiling.size == 32  # twice the training crops
    image, mask = draw(150, 170, hole_ratio=0.1)
    mask[20:140, 30:160] = 0
    found, (windows,) = predict.fill_batch([image], [mask], model)
    np.testing.assert_array_equal(found[0][mask == 1], image[mask == 1])
    assert windows > 6 * 6
    whole = predict.load_model(predict.find_model(run), window=1024)
    assert predict.fill_batch([image], [mask], whole)[1] == [1]
    np.testing.assert_array_equal(predict.inpaint_batch([image], [mask], model)[0], found[0])


def test_best_latest_and_steps(tmp_path):
    run = str(tmp_path)
    storage.create(run + "/config.json", presets.to_json(CONFIG))
    first, second = save_network(run, make_network(CONFIG, 1), 1), save_network(run, make_network(CONFIG, 2), 2)
    assert predict.find_model(run).checkpoint == predict.find_model(run, "latest").checkpoint == second
    assert predict.find_model(run, 1).checkpoint == predict.find_model(run, "1").checkpoint == first
    pointers.move_best(run, first, 1, checkpoints.Score(metric="psnr", value=20.0, higher_is_better=True), None)
    assert predict.find_model(run).checkpoint == predict.find_model(run, "best").checkpoint == first
    assert predict.find_model(run, "latest").checkpoint == second


def test_a_model_is_the_newest_checkpoint_of_its_run(run):
    storage.create(run + "/config.json", presets.to_json(CONFIG))
    old, new = make_network(CONFIG, 1), make_network(CONFIG, 2)
    save_network(run, old, step=1)
    pin = predict.find_model(run)
    assert pin.config == CONFIG
    save_network(run, new, step=2)  # does not change what was found before
    image, mask = draw(16, 16)
    for found, network in ((pin, old), (predict.find_model(run), new)):
        filled = predict.inpaint(image, mask, predict.load_model(found))
        assert np.abs(filled - inpaint_by_hand(image, mask, network)).max() <= 0.51


@pytest.mark.parametrize("native", [True, False])
def test_precision_is_that_of_training_or_as_asked(tmp_path, model, monkeypatch, native):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: native)
    image, mask = draw(16, 16)
    config = presets.override(CONFIG, ["precision=mixed_bfloat16"])
    storage.create(f"{tmp_path}/config.json", presets.to_json(config))
    save_network(str(tmp_path), make_network(CONFIG, 1))
    pin = predict.find_model(str(tmp_path))
    exact = predict.inpaint(image, mask, model)
    np.testing.assert_array_equal(predict.inpaint(image, mask, predict.load_model(pin, "float32")), exact)
    rough = predict.inpaint(image, mask, predict.load_model(pin, "mixed_bfloat16")).astype(int)
    assert 0 < np.abs(rough - exact).max() < 30
    as_trained = predict.inpaint(image, mask, predict.load_model(pin))
    np.testing.assert_array_equal(as_trained, rough if native else exact)
    np.testing.assert_array_equal(rough[mask == 1], image[mask == 1])


def test_folders_that_are_no_runs_are_refused(run):
    with pytest.raises(storage.NotFound, match=f"run {run} does not exist"):
        predict.find_model(run)
    storage.create(run + "/notes.txt", b"")
    with pytest.raises(UserError, match=f"{run} has no config.json: it is not the folder of a training run"):
        predict.find_model(run)
    storage.create(run + "/config.json", presets.to_json(CONFIG))
    with pytest.raises(UserError, match=f"{run} has no checkpoint yet"):
        predict.find_model(run)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"color": 1}', b'{"global_batch_size": "6"}', b'{"unet": null}'])
def test_configs_that_are_none_are_refused(tmp_path, data):
    storage.create(f"{tmp_path}/config.json", data)
    with pytest.raises(UserError, match=f"{tmp_path}/config.json is not a config"):
        predict.find_model(str(tmp_path))


def test_a_missing_bucket_is_named(bucket):
    with pytest.raises(storage.NotFound, match=f"{bucket}-not"):
        predict.find_model(bucket + "-not/run")


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    run = str(tmp_path)
    wider = presets.override(CONFIG, ["unet.filters=4,6,9"])
    storage.create(run + "/config.json", presets.to_json(wider))
    pin = save_network(run, make_network(CONFIG, 1))
    with pytest.raises(UserError, match="does not fit the config: .*expected shape .*9"):
        predict.load_model(predict.find_model(run))
    storage.overwrite(pin.address + "/model.npz", b"other")
    with pytest.raises(storage.Corrupt, match=f"{pin.address}/model.npz is corrupt"):
        predict.load_model(predict.find_model(run))
