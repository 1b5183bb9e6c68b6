"""Large pictures: what windows save, that they show no seams, and what memory they take."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf

from trainer.config import UNetConfig
from trainer.inference import filling, predict
from trainer.inference.windows import Box, Tiling, make_group, make_sides, plan_groups
from trainer.model.unet import build_unet


@pytest.fixture(scope="module")
def model():
    """A small network of random weights, with windows of 128."""
    config = UNetConfig(image_size=64, filters=(8, 12, 16, 16), kernels=(5, 3, 3, 3))
    network, rng = build_unet(config), np.random.default_rng(0)
    for variable in network.variables:
        if "/gamma" in variable.path or "/moving_variance" in variable.path:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    last = network.get_layer("decoder_1_conv")
    last.kernel.assign(last.kernel * 0.05)
    last.bias.assign([0.5, 0.4, 0.6])
    traced = tf.function(lambda image, mask: network([image, mask], training=False))
    return predict.Model(traced, config.stride, make_sides(16, 64, largest=128), 1, Tiling(size=128))


def photograph(height, width):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = np.stack([np.sin(y / (90 + 9 * k)) * np.cos(x / (70 - 9 * k)) for k in range(3)], 2)
    picture = (128 + 90 * waves).astype(np.uint8)
    picture += rng.integers(0, 20, (height, width, 1), np.uint8)
    return picture


def test_one_percent_of_holes_takes_a_tenth_of_the_whole_frame(model, soak):
    """Of the pixels that go through the network: its time is theirs, on any machine."""
    height, width = (4000, 6000) if soak else (1000, 1500)
    image, mask = photograph(height, width), np.ones((height, width), np.uint8)
    side = round((height * width * 0.005) ** 0.5)
    mask[side : 2 * side, side : 2 * side] = 0
    mask[-3 * side : -2 * side, -4 * side : -3 * side] = 0
    assert 0.009 < np.mean(mask == 0) < 0.011
    computed = []

    def counted(pixels, valid):
        computed.append(valid.size)
        return model.predict(pixels, valid)

    counting = dataclasses.replace(model, predict=counted)
    frame = [make_group(Box(0, 0, height, width), mask.shape, model.tiling, model.sides, model.stride)]
    taken, filled = {}, {}
    for name in ("frame", "holes"):
        pixels = image.copy()
        computed.clear()
        if name == "frame":
            windows = filling.fill_groups(pixels, mask, frame, counting, skip_holeless=False)
        else:
            windows = filling.fill_groups(pixels, mask, plan_groups(mask, model.tiling, model.sides, 16), counting)
        taken[name], filled[name] = (sum(computed), windows), pixels
    assert 0 < taken["holes"][0] < taken["frame"][0] / 10
    assert taken["holes"][1] < taken["frame"][1] / 10
    same = image.copy()
    filling.fill_groups(same, mask, frame, model)  # the frame's windows, those with holes alone
    np.testing.assert_array_equal(same, filled["frame"])
    for pixels in filled.values():
        np.testing.assert_array_equal(pixels[mask == 1], image[mask == 1])


def test_no_seam_at_the_borders_of_windows(model):
    """The mean step across every column and row at which a window's share begins or ends, over those beside them."""
    image, mask = photograph(700, 700), np.ones((700, 700), np.uint8)
    mask[60:640, 60:640] = 0
    found = predict.inpaint(image, mask, model).astype(np.float64)
    (group,) = plan_groups(mask, model.tiling, model.sides, model.stride)
    for axis, spans in ((0, group.rows), (1, group.columns)):
        steps = np.abs(np.diff(found, axis=axis)).mean(2)
        profile = steps[:, 80:620].mean(1) if axis == 0 else steps[80:620].mean(0)
        at = sorted({span.first for span in spans[1:]} | {span.last for span in spans[:-1]})
        assert len(at) >= 10
        # The network's own grain repeats every stride, so a border is compared with the strides around it.
        border = np.mean([profile[k - 1] for k in at])
        beside = np.mean([np.delete(profile[k - 17 : k + 15], 16).mean() for k in at])
        assert abs(border / beside - 1) < 0.1, (axis, border, beside)


MEMORY = """
import json
import numpy as np
from trainer.inference import predict
from trainer.config import UNetConfig
from trainer.model.unet import build_unet
from trainer.inference.windows import Tiling, make_sides
import tensorflow as tf

network = build_unet(UNetConfig())
traced = tf.function(lambda image, mask: network([image, mask], training=False))
model = predict.Model(traced, 256, make_sides(256, 512, largest=1024), 1, Tiling())
image, mask = np.zeros((4000, 6000, 3), np.uint8), np.ones((4000, 6000), np.uint8)
image[:] = np.arange(6000)[None, :, None] % 256
mask[1000:1300, 1000:1400] = mask[3000:3040, 200:3200] = 0
result, (windows,) = predict.fill_batch([image], [mask], model)
assert np.array_equal(result[0][mask == 1], image[mask == 1])
peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
print(json.dumps([windows, int(peak) * 1024]))
"""


@pytest.mark.slow
@pytest.mark.soak
def test_memory_of_24_megapixels():
    """The paper's network; bytes at the peak of the process, TensorFlow included."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    windows, peak = json.loads(done.stdout.splitlines()[-1])
    assert 4 <= windows <= 10 and peak < 2.5e9


ACTOR = """
import gc, sys
from pipelines.engines.on_ray.cluster import Parts
from pipelines.engines.on_ray.inpaint import Maker
from pipelines.inpainting.books import Books
from pipelines.inpainting.inputs import Item
from pipelines.inpainting.job import Inpainting
from pipelines.inpainting.loading import BY_CONTENT, Settings
from pipelines.inpainting.reports import Reporting
from pipelines.transforms.model_handler import Filled, FillModelHandler, Pair
from trainer.inference.pins import starter

image, mask, output = sys.argv[1:]
job = Inpainting(
    sources=None,
    settings=Settings(hole="black", mask_reading=BY_CONTENT),
    handler=FillModelHandler(starter(), None),
    replaces=True,
    reporting=Reporting(books=Books(output=output, run="00000001"), job={}, fields={}),
)
assert "tensorflow" not in sys.modules  # else what its import leaves behind is not seen
maker = Maker(job, Parts(1.0, 1.0, 0.0, 1, 1))
line = maker.make(Item(image, mask, "a.png", share="0000"))
gc.collect()
print(line.outcome["windows"], [one for one in gc.get_objects() if isinstance(one, Pair | Filled)])
"""


def test_an_actor_of_ray_keeps_nothing_of_an_image_that_it_has_written(tmp_path):
    image, mask = photograph(64, 64), np.full((64, 64), 255, np.uint8)
    mask[20:40, 20:40] = 0
    files = [str(tmp_path / name) for name in ("a.png", "hole.png")]
    for path, pixels in zip(files, (image, mask), strict=True):
        cv2.imwrite(path, pixels)
    command = [sys.executable, "-c", ACTOR, *files, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout == "1 []\n", done.stderr
