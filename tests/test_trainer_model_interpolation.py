"""Interpolated holes against loops over pixels, and what a network that begins from them computes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trainer.config import UNetConfig
from trainer.model.interpolation import PASSES, interpolate_holes
from trainer.model.unet import build_unet


def interpolate_by_hand(image, valid):
    """The same in float64, pixel by pixel: image [height, width, channels], valid [height, width]."""
    height, width = valid.shape
    if (height, width) == (1, 1):
        return np.where(valid[..., None], image, 0).astype("float64")
    half, some = (
        np.zeros(((height + 1) // 2, (width + 1) // 2, 3)),
        np.zeros(((height + 1) // 2, (width + 1) // 2), bool),
    )
    for y in range(half.shape[0]):
        for x in range(half.shape[1]):
            square = [(j, i) for j in (2 * y, 2 * y + 1) for i in (2 * x, 2 * x + 1) if j < height and i < width]
            known = [image[j, i].astype("float64") for j, i in square if valid[j, i]]
            some[y, x] = bool(known)
            if known:
                half[y, x] = np.mean(known, 0)
    below = interpolate_by_hand(half, some)
    filled = np.array(
        [[image[y, x] if valid[y, x] else below[y // 2, x // 2] for x in range(width)] for y in range(height)]
    )
    filled = filled.astype("float64")
    for _ in range(PASSES):
        before = filled.copy()
        for y, x in np.argwhere(~valid):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(min(max(j, 0), height - 1), min(max(i, 0), width - 1)) for j, i in around]
            filled[y, x] = np.mean([before[j, i] for j, i in inside], 0)
    return filled


@pytest.mark.parametrize("size", [(16, 16), (13, 22), (1, 7), (1, 1)])
def test_agrees_with_loops(size):
    rng = np.random.default_rng(1)
    image, valid = rng.random((3, *size, 3)).astype("float32"), rng.random((3, *size)) > 0.5
    valid[1, :, size[1] // 2 :] = False  # a hole of many pixels
    valid[2] = False
    found = interpolate_holes(np.where(valid[..., None], image, np.float32("nan")), valid[..., None].astype("float32"))
    for k in range(3):
        np.testing.assert_allclose(found[k], interpolate_by_hand(image[k], valid[k]), atol=1e-6)
        assert np.array_equal(np.asarray(found[k])[valid[k]], image[k][valid[k]])
    assert not np.asarray(found[2]).any()


def test_a_plane_is_continued():
    """Flat colors exactly; a ramp, by symmetry, in the middle of a hole in the middle of it."""
    y, x = np.mgrid[:33, :33].astype("float32")
    image = np.stack([np.full_like(x, 0.25), x / 32, y / 32], -1)[None]
    mask = np.ones((1, 33, 33, 1), "float32")
    mask[:, 12:21, 12:21] = 0
    found = np.asarray(interpolate_holes(image, mask))[0]
    np.testing.assert_allclose(found[..., 0], 0.25, atol=1e-6)
    assert np.abs(found[..., 1:] - image[0, ..., 1:]).max() < 0.1


CONFIG = UNetConfig(image_size=16, filters=(4, 6), kernels=(5, 3), residual=True)


@pytest.mark.parametrize("refine", [0, 5])
@pytest.mark.parametrize("scale", [{}, {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.5)}])
def test_the_network_adds_to_it(refine, scale):
    config = dataclasses.replace(CONFIG, refine=refine, **scale)
    model, rng = build_unet(config, dtype="mixed_bfloat16"), np.random.default_rng(2)
    image, mask = rng.random((2, 16, 24, 3)).astype("float32"), (rng.random((2, 16, 24, 1)) > 0.4).astype("float32")
    base = interpolate_holes(image, mask)
    assert np.array_equal(model([image, mask]), base)  # before any training
    last = model.get_layer("refine_conv" if refine else "decoder_1_conv")
    last.bias.assign([1.0, 2.0, -4.0])
    added = np.array([1.0, 2.0, -4.0]) * config.std
    np.testing.assert_allclose(model([image, mask]) - base, np.broadcast_to(added, base.shape), atol=1e-5)
    assert not np.asarray(model([image, 0 * mask])).any()


def test_a_head_has_no_residual():
    with pytest.raises(ValueError, match="head: expected none with unet.residual=true. Received 'sigmoid'"):
        dataclasses.replace(CONFIG, head="sigmoid")


@pytest.mark.parametrize("refine", [0, 5])
def test_the_last_stages_see_the_interpolated_image(refine):
    """3 channels more than without; `kernel_values` counts them."""
    config = dataclasses.replace(CONFIG, refine=refine)
    model = build_unet(config)
    kernels = {layer.name: layer.kernel.shape for layer in model.layers if hasattr(layer, "kernel")}
    assert kernels["decoder_1_conv"][2] == 4 + 3 + 3
    assert kernels.get("refine_conv", (3, 3, 5 + 3 + 3))[2] == 5 + 3 + 3
    assert sum(int(np.prod(shape)) for shape in kernels.values()) == config.kernel_values
