"""Every source of VGG-16's weights against the network it was published for, and files that must be refused."""

from __future__ import annotations

from collections import OrderedDict

import h5py
import keras
import numpy as np
import pytest
from torch_files import write_pth

from trainer.config import LossConfig, PhaseConfig, ScalingConfig, TrainConfig, UNetConfig
from trainer.errors import NotFound, UserError
from trainer.model.vgg import BUNDLED, build_features, load_weights
from trainer.training import loop

LAYERS = ["block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2"]
LAYERS += ["block3_conv1", "block3_conv2", "block3_conv3"]
TORCH_PLACES = [0, 2, 5, 7, 10, 12, 14]  # of the convolutions in torchvision.models.vgg16().features


def bundled():
    return dict(np.load(BUNDLED))


def keras_vgg(arrays):
    network = keras.applications.VGG16(weights=None, include_top=False)
    for name in LAYERS:
        network.get_layer(name).set_weights([arrays[f"{name}/kernel"], arrays[f"{name}/bias"]])
    return network


def draw_image():
    return np.random.default_rng(0).random((1, 18, 16, 3)).astype("float32")


def test_bundled_weights_are_the_published_ones():
    arrays = bundled()
    expected = [0.42947057, 0.11727387, 0.03401296]  # first values of VGG-16's first kernel as Keras publishes it
    np.testing.assert_array_equal(arrays["block1_conv1/kernel"].ravel()[:3], np.float32(expected))
    assert sum(a.size for a in arrays.values()) == 1_735_488  # VGG-16's blocks 1 to 3


def test_the_download_of_keras_is_used_as_keras_uses_it(monkeypatch):
    rng = np.random.default_rng(1)
    arrays = {key: array + rng.normal(0, 0.01, array.shape).astype("float32") for key, array in bundled().items()}
    network, asked = keras_vgg(arrays), []

    def vgg16(**options):
        asked.append(options)
        return network

    monkeypatch.setattr(keras.applications, "VGG16", vgg16)
    model, image = build_features("keras"), draw_image()
    assert asked == [{"weights": "imagenet", "include_top": False}]
    theirs = keras.Model(network.input, [network.get_layer(f"block{b}_pool").output for b in (1, 2, 3)])
    expected = theirs(keras.applications.vgg16.preprocess_input(255 * image))
    for x, y in zip(model(image), expected, strict=True):
        np.testing.assert_allclose(x, y / 57.375, rtol=1e-4, atol=1e-5 * np.max(y) / 57.375)


def test_a_download_that_fails_is_told_in_one_line(monkeypatch):
    def vgg16(**options):
        raise Exception("URL fetch failure on https://example.org: None")

    monkeypatch.setattr(keras.applications, "VGG16", vgg16)
    with pytest.raises(UserError, match="could not provide VGG-16's weights: URL fetch failure"):
        load_weights("keras")


def write_keras_1_names(path, arrays):
    """Layout and names of keras.applications' own vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"input_1", *(name.encode() for name in LAYERS), b"block1_pool"]
        for name in ("input_1", "block1_pool"):
            file.create_group(name).attrs["weight_names"] = np.zeros(0, "S1")
        for name in LAYERS:
            layer = file.create_group(name)
            layer.attrs["weight_names"] = [f"{name}_W_1:0".encode(), f"{name}_b_1:0".encode()]
            layer[f"{name}_W_1:0"], layer[f"{name}_b_1:0"] = arrays[f"{name}/kernel"], arrays[f"{name}/bias"]


@pytest.mark.parametrize("form", ["w.npz", "w.h5", "w.weights.h5", "keras_1.h5"])
def test_files_in_keras_layout_give_the_bundled_weights(tmp_path, form):
    path = tmp_path / form
    if form == "w.npz":
        np.savez(path, **bundled(), **{"block4_conv1/bias": np.zeros(512)})  # VGG-16 goes on: no reason to refuse
    elif form == "keras_1.h5":
        write_keras_1_names(path, bundled())
    else:
        keras_vgg(bundled()).save_weights(path) if ".weights" in form else keras_vgg(bundled()).save(path)
    expected, loaded = load_weights("bundled"), load_weights(f"keras:{path}")
    assert loaded.mean == expected.mean and loaded.arrays.keys() == expected.arrays.keys()
    for key, array in expected.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[key], array)


def draw_torch_state():
    rng, state, channels = np.random.default_rng(2), OrderedDict(), 3
    for place, filters in zip(TORCH_PLACES, (64, 64, 128, 128, 256, 256, 256), strict=True):
        scale = np.sqrt(2 / (9 * channels))
        state[f"features.{place}.weight"] = rng.normal(0, scale, (filters, channels, 3, 3)).astype("float32")
        state[f"features.{place}.bias"] = rng.normal(0, 0.1, filters).astype("float32")
        channels = filters
    return state


def torch_oracle(rgb, state):
    """torchvision's Normalize and features[:17] in float64, channels first."""
    x = (rgb.astype("float64") - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x, pools = x.transpose(0, 3, 1, 2), []
    for place in TORCH_PLACES:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        x = np.einsum("bchwij,fcij->bfhw", windows, state[f"features.{place}.weight"], optimize=True)
        x = np.maximum(x + state[f"features.{place}.bias"][:, None, None], 0)
        if place in (2, 7, 14):
            rows, columns = x.shape[2] // 2, x.shape[3] // 2
            x = x[:, :, : 2 * rows, : 2 * columns].reshape(*x.shape[:2], rows, 2, columns, 2).max((3, 5))
            pools.append(x.transpose(0, 2, 3, 1))
    return pools


@pytest.mark.parametrize("form", ["vgg16.pth", "vgg16.npz"])
def test_torchvision_weights_see_torchvisions_preprocessing(tmp_path, form):
    path, state, image = tmp_path / form, draw_torch_state(), draw_image()
    stored = {**state, "classifier.6.bias": np.zeros(1000, "float32")}
    write_pth(path, stored) if form.endswith(".pth") else np.savez(path, **stored)
    for x, y in zip(build_features(f"torchvision:{path}")(image), torch_oracle(image, state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * y.max())


def without(arrays):
    return {name: array for name, array in arrays.items() if name != "block2_conv1/bias"}


@pytest.mark.parametrize(
    "change, text",
    [
        (without, r"missing \['block2_conv1/bias'\], unexpected \[\]"),
        (lambda a: {**without(a), "block2_conv9/bias": a["block2_conv1/bias"]}, r"unexpected \['block2_conv9/bias'\]"),
        (lambda a: {**a, "block1_conv2/kernel": a["block2_conv1/kernel"]}, r"\(3, 3, 64, 64\)\. Received .*64, 128\)"),
        (lambda a: {**a, "block3_conv3/bias": np.full(256, np.nan, "float32")}, "finite.*Received .* with NaN"),
        (lambda a: {**a, "block3_conv3/bias": np.zeros(256, "int64")}, "floats.*Received int64"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, text):
    np.savez(tmp_path / "weights.npz", **change(bundled()))
    with pytest.raises(UserError, match=text):
        load_weights(f"keras:{tmp_path}/weights.npz")


def test_one_layout_is_not_taken_for_the_other(tmp_path):
    np.savez(tmp_path / "keras.npz", **bundled())
    np.savez(tmp_path / "torch.npz", **draw_torch_state())
    with pytest.raises(UserError, match=r"missing \['block1_conv1/bias', .*unexpected \['features.0.bias', "):
        load_weights(f"keras:{tmp_path}/torch.npz")
    with pytest.raises(UserError, match=r"missing \['features.0.bias', .*unexpected \['block1_conv1/bias', "):
        load_weights(f"torchvision:{tmp_path}/keras.npz")
    write_pth(tmp_path / "list.pth", [np.zeros(3, "float32")])
    with pytest.raises(UserError, match="expected a state dict, tensors by name"):
        load_weights(f"torchvision:{tmp_path}/list.pth")


def test_missing_files_and_unknown_sources_are_refused(tmp_path):
    with pytest.raises(NotFound, match="absent.npz"):
        load_weights(f"keras:{tmp_path}/absent.npz")
    for source in ("", "keras:", "torch:/x", "torchvision", "weights.npz"):
        with pytest.raises(ValueError, match="VGG weights: expected bundled, .*Received"):
            load_weights(source)
        with pytest.raises(ValueError, match="vgg: expected bundled, .*Received"):
            LossConfig(vgg=source)
    with pytest.raises(ValueError, match="vgg: .* full path"):
        LossConfig(vgg="keras:weights.npz")
    for source in ("bundled", "keras", "keras:/a/b.h5", "torchvision:gs://bucket/vgg16.pth"):
        assert LossConfig(vgg=source).vgg == source


def test_training_takes_the_source_of_its_config(monkeypatch):
    class Asked(Exception):
        pass

    def build(*arguments, **options):
        raise Asked(arguments, options)

    monkeypatch.setattr(loop.vgg, "build_features", build)
    monkeypatch.setattr(loop.tf.distribute, "MultiWorkerMirroredStrategy", loop.tf.distribute.get_strategy)
    config = TrainConfig(
        unet=UNetConfig(image_size=4, filters=(2,), kernels=(3,)),
        loss=LossConfig(vgg="torchvision:/a.pth"),
        initial=PhaseConfig(steps=1),
        scaling=ScalingConfig(workers=1),
    )
    with pytest.raises(Asked) as asked:
        loop.train(config, "", "", "", worker=0, workers=1, report=print)
    assert asked.value.args == (("torchvision:/a.pth",), {"dtype": "float32"})
