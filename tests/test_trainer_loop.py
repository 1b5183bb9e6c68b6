"""Training as one program: interruption, phases and their freeze. In one process apart, because TensorFlow's
multi-worker strategy wants to be the first thing of its process."""

import json
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import sys
from masks.sampling import MaskSpec, sample_mask
from pipelines.mask_records import mask_record
from pipelines.image_records import image_record
from pipelines.shards import write_manifest, write_shard
from trainer import checkpoints, images, loop, presets
import numpy as np

root = sys.argv[1]
rng = np.random.default_rng(0)
spec = MaskSpec(generator="shapes", height=32, width=32, hole_ratio=(0.1, 0.4))
kinds = {
    "masks": ("mask", [(f"{i:03d}", mask_record(spec, i)) for i in range(7)], {"height": 32, "width": 32}),
    "images": ("image", [
        (f"{i}", image_record(images.encode_jpeg(rng.integers(0, 256, (40, 50, 3), np.uint8)), f"{i}", "", -1))
        for i in range(5)], {}),
}
for name, (kind, items, parameters) in kinds.items():
    shard = write_shard((("train", 0), items), f"{root}/{name}", {"train": 1})
    fields = {"kind": kind, "seed": 0, "code_version": "0", "parameters": parameters}
    write_manifest(len(items), f"{root}/{name}", fields, [shard], [])

def train(run, *settings):
    base = ["scaling.workers=1", "unet.image_size=32", "unet.filters=4,8,8", "unet.kernels=5,3,3", "log_every=1",
            "precision=float32", "global_batch_size=2", "finetune.steps=3", "finetune.learning_rate=0.01"]
    config = presets.override(presets.PRESETS["demo"], [*base, *settings])
    events = []
    loop.train(config, f"{root}/images", f"{root}/masks", f"{root}/{run}", worker=0, workers=1, report=events.append)
    return [event for event in events if event["event"] == "step"]

whole = train("whole", "initial.steps=4", "checkpoint.every=2", "checkpoint.keep=9")
train("parts", "initial.steps=4", "finetune.steps=1", "initial.schedule=cosine")   # interrupted in finetune
parts = train("parts", "initial.steps=4")
assert [event["step"] for event in parts] == [6, 7], parts
assert [event["phase"] for event in whole] == ["initial"] * 4 + ["finetune"] * 3, whole
for event, other in zip(whole[5:], parts):
    np.testing.assert_allclose(event["terms"]["total"], other["terms"]["total"], rtol=1e-5)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("loop")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(root)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    return root


def variables(folder, part="model"):
    with np.load(folder / f"{part}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def newest(run):
    return run / "checkpoints" / json.loads((run / "checkpoints" / "latest.json").read_text())["checkpoint"]


def checkpoint_at(run, step):
    (folder,) = (run / "checkpoints").glob(f"step-{step:08d}-*")
    return folder


def test_interrupted_training_ends_with_the_same_weights(runs):
    for part in ("model", "optimizer"):
        whole, parts = (variables(newest(runs / run), part) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for name, array in whole.items():
            np.testing.assert_allclose(parts[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_finetune_freezes_the_encoders_batch_norm_and_nothing_else(runs):
    before, after = (variables(checkpoint_at(runs / "whole", step)) for step in (4, 7))
    frozen = {name for name in before if name.startswith("encoder_") and "_bn/" in name}
    assert len(frozen) == 2 * 4  # two levels with BatchNorm: gamma, beta, mean, variance
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == frozen


def test_the_encoders_batch_norm_trains_in_the_initial_phase(runs):
    before, after = (variables(checkpoint_at(runs / "whole", step)) for step in (2, 4))
    assert not [name for name in before if np.array_equal(before[name], after[name])]


def test_checkpoints_and_the_export_are_where_the_run_keeps_them(runs):
    steps = sorted(path.name[:13] for path in (runs / "whole" / "checkpoints").glob("step-*"))
    assert steps == [f"step-{step:08d}" for step in (2, 4, 6, 7)]
    card = json.loads((runs / "whole" / "exports" / "step-00000007" / "card.json").read_text())
    assert card["step"] == 7 and card["examples"] == 14
    assert (runs / "whole" / "exports" / "step-00000007" / "model.keras").stat().st_size > 0
