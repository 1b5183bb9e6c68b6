"""build_unet against the paper's table: counted by hand, and recomputed in NumPy stage by stage."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

from trainer.config import UNetConfig
from trainer.model.unet import build_unet, freeze_encoder_bn

SMALL = UNetConfig(image_size=16, filters=(4, 6), kernels=(5, 3))


def draw_inputs(seed, batch=2, height=16, width=24):
    """Images and masks; the last image has a hole too big for the first levels to fill."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((batch, height, width, 1)) > 0.3).astype("float32")
    mask[-1, :, 8:] = 0
    return rng.random((batch, height, width, 3)).astype("float32"), mask


def shake(model, seed=0):
    """Random values for every variable, the moving statistics included, so that none can be mixed up."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        value = rng.normal(size=variable.shape) * (0.2 if len(variable.shape) > 1 else 0.5)
        variable.assign(np.abs(value) + 0.5 if variable.name == "moving_variance" else value)
    return model


def test_parameter_count_is_the_papers():
    # One row per stage of the paper's table: kernel, input channels (up-sampled + skip), filters, BatchNorm.
    table = [(7, 3, 64, False), (5, 64, 128, True), (5, 128, 256, True), (3, 256, 512, True)]
    table += [(3, 512, 512, True)] * 4  # PConv5 to 8
    table += [(3, 512 + 512, 512, True)] * 4  # PConv9 to 12
    table += [(3, 512 + 256, 256, True), (3, 256 + 128, 128, True), (3, 128 + 64, 64, True), (3, 64 + 3, 3, False)]
    assert len(table) == 16
    kernels = sum(k * k * channels * filters for k, channels, filters, _ in table)
    biases = sum(filters for _, _, filters, norm in table if not norm)
    norms = sum(filters for _, _, filters, norm in table if norm)
    assert (kernels, biases, norms) == (32_848_849, 67, 5_440)
    model = build_unet(UNetConfig(), height=512, width=512)
    assert model.count_params() == kernels + biases + 4 * norms == 32_870_676
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == kernels + biases + 2 * norms == 32_859_796
    assert model.output_shape == (None, 512, 512, 3)
    deepest = model.get_layer("encoder_8_conv").output
    assert [x.shape for x in deepest] == [(None, 2, 2, 512), (None, 2, 2, 1)]


@pytest.mark.parametrize("refine", [0, 5])
def test_forward_pass_agrees_with_numpy(refine):
    config = dataclasses.replace(SMALL, refine=refine)
    model, (image, mask) = shake(build_unet(config)), draw_inputs(1)
    assert config.kernel_values == sum(v.numpy().size for v in model.variables if v.path.endswith("kernel"))

    def conv(stage, branches, stride):
        x = np.concatenate([np.where(m == 1, x, 0) for x, m in branches], -1)
        m = np.concatenate([np.repeat(m, x.shape[-1], -1) for x, m in branches], -1)
        layer = model.get_layer(f"{stage}_conv")
        kernel = layer.kernel.numpy().astype("float64")
        pad = kernel.shape[0] // 2
        x, m = (np.pad(a, ((0, 0), (pad, pad), (pad, pad), (0, 0))) for a in (x, m))
        windows = [
            np.lib.stride_tricks.sliding_window_view(a, kernel.shape[:2], (1, 2))[:, ::stride, ::stride] for a in (x, m)
        ]
        out = np.einsum("bhwcij,ijcf->bhwf", windows[0], kernel)
        total = windows[1].sum((3, 4, 5))[..., None]
        bias = layer.bias.numpy() if layer.use_bias else 0
        full = np.prod(kernel.shape[:3])
        return np.where(total > 0, out * full / np.maximum(total, 1) + bias, 0), (total > 0).astype("float64")

    def norm(stage, x):
        bn = model.get_layer(f"{stage}_bn")
        values = (v.numpy().astype("float64") for v in (bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance))
        gamma, beta, mean, variance = values
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def up(x, m):
        return tuple(a.repeat(2, axis=1).repeat(2, axis=2) for a in (x, m))

    given = image.astype("float64"), mask.astype("float64")
    x1, m1 = conv("encoder_1", [given], 2)
    first = np.maximum(x1, 0), m1
    x2, m2 = conv("encoder_2", [first], 2)
    x2 = np.maximum(norm("encoder_2", x2), 0)
    x3, m3 = conv("decoder_2", [up(x2, m2), first], 1)
    x3 = norm("decoder_2", x3)
    x3 = np.where(x3 > 0, x3, 0.2 * x3)
    expected, reached = conv("decoder_1", [up(x3, m3), given], 1)
    if refine:
        x4 = norm("decoder_1", expected)
        expected, reached = conv("refine", [(np.where(x4 > 0, x4, 0.2 * x4), reached), given], 1)
    assert 0 < m1.mean() < 1 and 0 < m3.mean() < 1 and 0 < reached.mean() < 1  # holes left at every depth
    np.testing.assert_allclose(model([image, mask]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_what_lies_under_holes_changes_no_bit(garbage):
    model, (image, mask) = shake(build_unet(SMALL)), draw_inputs(2)
    expected = model([image, mask]).numpy()
    assert expected.tobytes() == model([np.where(mask == 1, image, np.float32(garbage)), mask]).numpy().tobytes()
    valid = image.copy()
    valid[mask[..., 0] == 1] += 0.1
    assert np.abs(model([valid, mask]) - expected).max() > 0.01


def test_an_image_without_valid_pixels_gives_zeros():
    model, (image, mask) = shake(build_unet(SMALL)), draw_inputs(3)
    assert not model([image, 0 * mask]).numpy().any()


def test_prediction_depends_on_no_other_image_of_the_batch():
    model, (image, mask) = shake(build_unet(SMALL)), draw_inputs(4, batch=3)
    together = model([image, mask], training=False).numpy()
    for i in range(3):
        np.testing.assert_allclose(model([image[i : i + 1], mask[i : i + 1]])[0], together[i], rtol=1e-5, atol=1e-5)


def test_sizes_are_free_or_fixed_and_wrong_ones_refused():
    model = build_unet(SMALL)
    for height, width in ((4, 8), (20, 12)):
        assert model([np.ones((1, height, width, 3)), np.ones((1, height, width, 1))]).shape == (1, height, width, 3)
    with pytest.raises(ValueError, match="one height and width.*Received"):
        model([np.ones((1, 18, 12, 3)), np.ones((1, 18, 12, 1))])
    assert build_unet(SMALL, height=8, width=12).input_shape == [(None, 8, 12, 3), (None, 8, 12, 1)]
    with pytest.raises(ValueError, match="height to be a multiple of 4 .*8 would work.*Received height=10"):
        build_unet(SMALL, height=10)
    with pytest.raises(ValueError, match="width to be a multiple of 4 .*4 would work.*Received width=2"):
        build_unet(SMALL, width=2)


def test_seed_decides_the_weights():
    weights = [build_unet(UNetConfig(filters=(4, 4, 4), kernels=(3, 3, 3)), seed=seed) for seed in (1, 1, 2)]
    weights = [[v.numpy() for v in model.variables if v.name == "kernel"] for model in weights]
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    kernels = [w.tobytes() for w in weights[0] + weights[2]]
    assert len(set(kernels)) == len(kernels) == 12
    # He normal: a variance of 2 / fan-in.
    wide = build_unet(UNetConfig(filters=(64, 64), kernels=(7, 3))).get_layer("encoder_2_conv").kernel
    np.testing.assert_allclose(np.std(wide.numpy()), np.sqrt(2 / (9 * 64)), rtol=0.02)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_follows_float32(dtype):
    image, mask = draw_inputs(5)
    exact, mixed = shake(build_unet(SMALL)), shake(build_unet(SMALL, dtype=dtype))
    assert mixed.get_layer("decoder_2_conv").compute_dtype == dtype.removeprefix("mixed_")
    assert {v.dtype for v in mixed.variables} == {"float32"}
    expected, output = exact([image, mask]).numpy(), mixed([image, mask])
    assert output.dtype == "float32"
    assert np.abs(output - expected).max() < 0.03 * np.abs(expected).max()


def test_saved_model_comes_back_the_same(tmp_path):
    model, inputs = shake(build_unet(SMALL, dtype="mixed_bfloat16")), list(draw_inputs(6))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(model(inputs), loaded(inputs))
    assert freeze_encoder_bn(loaded, True) == ["encoder_2_bn"]


def test_frozen_encoder_bn_does_not_move_by_a_bit():
    model = build_unet(UNetConfig(filters=(4, 5, 6), kernels=(3, 3, 3)))
    image, mask = draw_inputs(7)
    assert freeze_encoder_bn(model, True) == ["encoder_2_bn", "encoder_3_bn"]
    moved = train_and_list_moved(model, image, mask)
    encoder = {name for name in moved if name.startswith("encoder_") and "_bn/" in name}
    assert not encoder
    decoder = {name for name in moved if name.startswith("decoder_") and "_bn/" in name}
    assert decoder == {
        f"decoder_{k}_bn/{v}" for k in (2, 3) for v in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    assert {f"{coder}coder_{k}_conv/kernel" for coder in ("en", "de") for k in (1, 2, 3)} <= moved
    freeze_encoder_bn(model, False)
    assert {v.path for v in model.variables} == train_and_list_moved(model, image, mask)


def train_and_list_moved(model, image, mask):
    model.compile(keras.optimizers.Adam(0.01), "mse")
    before = {v.path: v.numpy() for v in model.variables}
    model.train_on_batch([image, mask], image)
    return {v.path for v in model.variables if before[v.path].tobytes() != v.numpy().tobytes()}
