"""Converted networks against forward passes of the implementations they come from, written anew in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from trainer import presets
from trainer.config import UNetConfig
from trainer.errors import UserError
from trainer.model import published
from trainer.model.unet import build_unet

FILTERS, KERNELS = (4, 6, 5), (7, 5, 3)
SMALL = 0.07  # scale of what BatchNorm receives, so that its epsilon counts


def draw_inputs(height=16, width=64):
    """Three levels carry the single pixel of the second image to column 22: the others stay holes to the end."""
    rng = np.random.default_rng(1)
    mask = (rng.random((3, height, width, 1)) > 0.5).astype("float32")
    mask[0, 3:, 20:50] = 0
    mask[1] = 0
    mask[1, 5, 1] = 1
    return rng.random((3, height, width, 3)).astype("float32"), mask


def windows(x, size, stride):
    pad = (size - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def double(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def draw_pconv_keras():
    """Layers of a small PConvUnet, named and ordered as Keras 2 stores them."""
    rng, layers = np.random.default_rng(2), {"inputs_img": {}, "inputs_mask": {}}

    def pconv(i, size, channels, filters, norm):
        scale = SMALL if norm else 1.0
        kernel = rng.normal(0, scale * channels**0.5 / size, (size, size, channels, filters))
        layers[f"p_conv2d_{48 + i}"] = {"img_kernel": kernel, "bias": rng.normal(0, scale, filters)}
        if norm:
            layers[norm] = {"gamma": rng.normal(1, 0.3, filters), "beta": rng.normal(0, 0.3, filters)}
            layers[norm]["moving_mean"] = rng.normal(0, scale, filters)
            layers[norm]["moving_variance"] = scale**2 * (0.3 + rng.random(filters))

    channels = 3
    for k, (filters, size) in enumerate(zip(FILTERS, KERNELS, strict=True)):
        pconv(k + 1, size, channels, filters, norm=k and f"EncBN{k}")
        layers[f"activation_{k}"] = {}
        channels = filters
    for i, skip in enumerate((FILTERS[1], FILTERS[0], 3)):
        pconv(4 + i, 3, channels + skip, skip, norm=i < 2 and f"batch_normalization_{22 + i}")
        channels = skip
    layers["outputs_img"] = {"kernel": rng.normal(0, 1, (1, 1, 3, 3)), "bias": rng.normal(0, 0.5, 3)}
    return {name: {key: a.astype("float32") for key, a in weights.items()} for name, weights in layers.items()}


def pconv_keras_oracle(layers, image, mask):
    """Masks of as many channels as features; bias in holes; concatenation of encoder first, then up-sampled."""
    convs = [weights for weights in layers.values() if "img_kernel" in weights]
    norms = iter([weights for weights in layers.values() if "gamma" in weights])

    def pconv(weights, x, m, stride):
        kernel = weights["img_kernel"].astype("float64")
        size = kernel.shape[0]
        total = np.einsum("bhwcij->bhw", windows(m, size, stride))[..., None]
        out = np.einsum("bhwcij,ijcf->bhwf", windows(x * m, size, stride), kernel, optimize=True)
        updated = np.clip(total, 0, 1)
        out = out * (size * size / (total + 1e-8) * updated) + weights["bias"]
        return out, np.broadcast_to(updated, out.shape)

    def norm(x):
        w = next(norms)
        return (x - w["moving_mean"]) / np.sqrt(w["moving_variance"].astype("float64") + 1e-3) * w["gamma"] + w["beta"]

    x, m = image.astype("float64"), np.repeat(mask.astype("float64"), 3, axis=-1)
    levels = [(x, m)]
    for k in range(3):
        x, m = pconv(convs[k], x, m, 2)
        x = np.maximum(norm(x) if k else x, 0)
        levels.append((x, m))
    levels.pop()
    for k in range(3, 6):
        skip, skip_mask = levels.pop()
        x, m = pconv(convs[k], np.concatenate([skip, double(x)], -1), np.concatenate([skip_mask, double(m)], -1), 1)
        x = leaky(norm(x) if k < 5 else x)
    head = layers["outputs_img"]
    return 1 / (1 + np.exp(-(x @ head["kernel"][0, 0] + head["bias"]))), m[..., :1]


def draw_naoto():
    rng, state = np.random.default_rng(3), {}

    def stage(name, channels, filters, size, norm=True, bias=False):
        scale, conv = SMALL if norm else 1.0, f"{name}.conv"
        weight = rng.normal(0, scale * size * channels**0.5, (filters, channels, size, size))
        state[f"{conv}.input_conv.weight"] = weight
        if bias:
            state[f"{conv}.input_conv.bias"] = rng.normal(0, 0.5, filters)
        state[f"{conv}.mask_conv.weight"] = np.ones(weight.shape)
        if norm:
            state[f"{name}.bn.weight"] = rng.normal(1, 0.3, filters)
            state[f"{name}.bn.bias"] = rng.normal(0, 0.3, filters)
            state[f"{name}.bn.running_mean"] = rng.normal(0, scale, filters)
            state[f"{name}.bn.running_var"] = scale**2 * (0.3 + rng.random(filters))
            state[f"{name}.bn.num_batches_tracked"] = np.array(12)

    channels = 3
    for k, (filters, size) in enumerate(zip(FILTERS, KERNELS, strict=True), start=1):
        stage(f"enc_{k}", channels, filters, size, norm=k > 1)
        channels = filters
    for k, skip in ((3, FILTERS[1]), (2, FILTERS[0]), (1, 3)):
        stage(f"dec_{k}", channels + skip, skip, 3, norm=k > 1, bias=k == 1)
        channels = skip
    return {key: array if array.ndim == 0 else array.astype("float32") for key, array in state.items()}


def naoto_oracle(state, image, mask):
    """Divides by sum(M); images minus ImageNet's mean over its deviation; concatenation of up-sampled first."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    def stage(name, x, m, stride):
        weight = state[f"{name}.conv.input_conv.weight"].astype("float64")
        size, bias = weight.shape[2], state.get(f"{name}.conv.input_conv.bias", 0)
        total = np.einsum("bhwcij->bhw", windows(m, size, stride))[..., None]
        out = np.einsum("bhwcij,fcij->bhwf", windows(x * m, size, stride), weight, optimize=True)
        out = np.where(total == 0, 0, out / np.where(total == 0, 1, total) + bias)
        if f"{name}.bn.weight" in state:
            w = {key: state[f"{name}.bn.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
            deviation = np.sqrt(w["running_var"].astype("float64") + 1e-5)
            out = (out - w["running_mean"]) / deviation * w["weight"] + w["bias"]
        return out, np.broadcast_to(total != 0, out.shape).astype("float64")

    x, m = (image.astype("float64") - mean) / std, np.repeat(mask.astype("float64"), 3, axis=-1)
    levels = [(x, m)]
    for k in (1, 2, 3):
        x, m = stage(f"enc_{k}", x, m, 2)
        x = np.maximum(x, 0)
        levels.append((x, m))
    levels.pop()
    for k in (3, 2, 1):
        skip, skip_mask = levels.pop()
        x, m = np.concatenate([double(x), skip], -1), np.concatenate([double(m), skip_mask], -1)
        x, m = stage(f"dec_{k}", x, m, 1)
        x = leaky(x) if k > 1 else x
    return x * std + mean, m[..., :1]


def compute(imported, image, mask):
    unet = build_unet(imported.config)
    assert {v.path: tuple(v.shape) for v in unet.variables} == {p: a.shape for p, a in imported.variables.items()}
    for variable in unet.variables:
        variable.assign(imported.variables[variable.path])
    return np.asarray(unet([np.where(mask == 1, image, np.nan), mask]))


def test_pconv_keras_is_the_same_but_for_holes_that_nothing_reaches():
    layers, (image, mask) = draw_pconv_keras(), draw_inputs()
    expected, reached = pconv_keras_oracle(layers, image, mask)
    assert 0 < reached[1].mean() < 1 and reached[0].all() and reached[2].all()
    imported = published.from_pconv_keras(layers)
    assert (imported.config.image_size, imported.config.filters, imported.config.kernels) == (512, FILTERS, KERNELS)
    difference = np.abs(compute(imported, image, mask) - expected)
    assert np.std(expected * reached) > 0.1 and (difference * reached).max() < 1e-4
    holes = reached[..., 0] == 0
    colors = expected[holes]
    assert np.ptp(colors, axis=0).max() < 1e-12 and difference[holes].max() > 0.01
    assert f"up to {difference[holes].max():.3f} away" in imported.notes[0]
    assert f"paints RGB ({', '.join(f'{v:.3f}' for v in colors[0])})" in imported.notes[0]


def test_naoto0804_is_the_same_everywhere():
    state, (image, mask) = draw_naoto(), draw_inputs()
    expected, reached = naoto_oracle(state, image, mask)
    assert 0 < reached[1].mean() < 1 and np.std(expected * reached) > 0.1
    imported = published.from_naoto0804(state)
    assert (imported.config.image_size, imported.config.filters, imported.config.kernels) == (256, FILTERS, KERNELS)
    assert np.abs(compute(imported, image, mask) - expected).max() < 1e-4
    assert imported.notes == ()


BROKEN_LAYERS = {
    "no head": (lambda w: w.pop("outputs_img"), "Received 6, 4 and 0"),
    "a BatchNorm less": (lambda w: w.pop("EncBN1"), "Received 6, 3 and 1"),
    "a PConv2D less": (lambda w: w.pop("p_conv2d_54"), "Received 5, 4 and 1"),
    "no bias": (lambda w: w["p_conv2d_50"].pop("bias"), "an array bias"),
    "no statistics": (lambda w: w["EncBN2"].pop("moving_mean"), "an array moving_mean"),
    "wide head": (lambda w: w["outputs_img"].update(kernel=np.ones((3, 3, 3, 3))), "1x1 convolution"),
    "short bias": (lambda w: w["p_conv2d_49"].update(bias=np.ones(2)), r"\(2,\)"),
    "even kernel": (lambda w: w["p_conv2d_49"].update(img_kernel=np.ones((4, 4, 3, 4))), ": kernels: expected 3 odd"),
    "flat kernel": (lambda w: w["p_conv2d_52"].update(img_kernel=np.ones(6)), r"\(6,\)"),
}
BROKEN_STATES = {
    "no weight": (lambda s: s.pop("dec_2.conv.input_conv.weight"), "dec_2.conv.input_conv.weight"),
    "no statistics": (lambda s: s.pop("enc_2.bn.running_var"), "enc_2.bn.running_var"),
    "a level less": (lambda s: [s.pop(key) for key in list(s) if key.startswith("enc_3")], "also dec_3"),
    "superfluous": (lambda s: s.update({"enc_9.x": np.ones(1, "float32")}), "also enc_9.x"),
    "trained masks": (lambda s: s["enc_2.conv.mask_conv.weight"].__imul__(0.5), "mask kernel of ones"),
    "flat kernel": (lambda s: s.update({"dec_1.conv.input_conv.weight": np.ones(3, "float32")}), "four axes"),
    "empty": (lambda s: s.clear(), "enc_1.conv.input_conv.weight"),
}


@pytest.mark.parametrize("case", BROKEN_LAYERS)
def test_other_layers_are_refused(case):
    layers = draw_pconv_keras()
    BROKEN_LAYERS[case][0](layers)
    with pytest.raises(UserError, match=BROKEN_LAYERS[case][1]):
        published.from_pconv_keras(layers)


@pytest.mark.parametrize("case", BROKEN_STATES)
def test_other_state_dicts_are_refused(case):
    state = draw_naoto()
    BROKEN_STATES[case][0](state)
    with pytest.raises(UserError, match=BROKEN_STATES[case][1]):
        published.from_naoto0804(state)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"bn_epsilon": 0.0}, "bn_epsilon: expected more than 0. Received 0.0."),
        ({"mean": (0.5, 0.5)}, "mean[2]: expected a value. Received (0.5, 0.5)."),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean[2]: expected a finite number. Received nan."),
        ({"std": (1.0, 0.0, 1.0)}, "std[1]: expected more than 0. Received 0.0."),
        ({"head": "tanh"}, "head: expected 'none' or 'sigmoid'. Received 'tanh'."),
    ],
)
def test_what_differs_from_the_paper_is_checked(options, text):
    with pytest.raises(ValidationError) as caught:
        UNetConfig(**options)
    assert presets.explain(caught.value) == text
    assert not UNetConfig().normalizes and UNetConfig(mean=(0.0, 0.0, 0.1)).normalizes
