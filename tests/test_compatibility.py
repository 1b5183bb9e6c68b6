"""What commit 383277e wrote (the last one before the modules moved into sub-packages) is read as it was then.

tests/written_by_383277e holds a mask dataset and an image dataset, the photographs of the latter, a run with averaged
weights and its export, and ``expected.npz``: what that commit's code made of them. Made by its commands in
/data/pconv, which is why that folder is named in its files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from pipelines import build_imagenet, build_masks
from trainer import checkpoints, presets, tensorboard
from trainer.data import batches
from trainer.data.manifest import load_manifest
from trainer.inference import predict
from trainer.model import unet  # noqa: F401 - registers the layers of the export

WRITTEN = Path(__file__).parent / "written_by_383277e"
RUN = WRITTEN / "run"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(WRITTEN / "expected.npz") as file:
        return dict(file)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_datasets_are_read(expected):
    folders = {kind: str(WRITTEN / f"{kind}s") for kind in ("image", "mask")}
    counts = {kind: load_manifest(folder, kind).counts for kind, folder in folders.items()}
    assert counts["image"] == {"inputs": 5, "records": 4, "rejects": 1}
    assert counts["mask"]["records"] == 8
    config = presets.from_json((RUN / "config.json").read_bytes())
    sizes = {"image_size": config.unet.image_size, "batch_size": 4, "seed": config.seed}
    target, mask = next(iter(batches.training_batches(*folders.values(), config.data, **sizes)))
    np.testing.assert_allclose(target, expected["target"], atol=1e-6)
    np.testing.assert_array_equal(mask, expected["hole_mask"])


def test_datasets_are_written_as_they_were(tmp_path):
    assert build_masks.main(["--output", f"{tmp_path}/masks", "--count=8", "--size=32", "--num-shards=2"]) == 0
    assert files_of(tmp_path / "masks") == files_of(WRITTEN / "masks")
    shutil.copytree(WRITTEN / "photos", tmp_path / "photos")
    build_imagenet.main(["--input", f"{tmp_path}/photos", "--output", f"{tmp_path}/images", "--num-shards=2"])
    made = files_of(tmp_path / "images")
    there = str(tmp_path).encode()
    assert {name: data.replace(there, b"/data/pconv") for name, data in made.items()} == files_of(WRITTEN / "images")


def test_config_is_written_as_it_was():
    """But for keys that were added since."""
    data = (RUN / "config.json").read_bytes()
    then, now = json.loads(data), json.loads(presets.to_json(presets.from_json(data)))
    for group, values in now.items():
        now[group] = {k: v for k, v in values.items() if k in then[group]} if isinstance(values, dict) else values
    kept = {key: value for key, value in now.items() if key in then}
    assert json.dumps(kept, indent=1, sort_keys=True).encode() == data


@pytest.mark.parametrize("checkpoint", ["best", "latest", "4"])
def test_run_inpaints_with_the_weights_that_were_validated(expected, checkpoint):
    model = predict.load_model(predict.find_model(str(RUN), checkpoint))
    found = predict.inpaint(expected["image"], expected["mask"], model)
    assert np.abs(found.astype(int) - expected["averaged"]).max() <= 1
    assert np.abs(found.astype(int) - expected["raw"]).max() > 9  # the two could be told apart


def test_export_inpaints_as_it_did(expected):
    model = predict.load_model(predict.find_export(str(RUN / "exports" / "step-00000004")))
    found = predict.inpaint(expected["image"], expected["mask"], model)
    assert np.abs(found.astype(int) - expected["averaged"]).max() <= 1


CONTINUE = """
import sys
from trainer import presets
from trainer.training import loop

run, images, masks = sys.argv[1:]
with open(f"{run}/config.json", "rb") as file:
    config = presets.from_json(file.read())
config = presets.override(config, ["initial.steps=6"])
loop.train(config, images, masks, run, worker=0, workers=1, report=print)
"""


def test_training_continues(tmp_path):
    """In a process of its own: TensorFlow's multi-worker strategy wants to be the first thing there."""
    run = shutil.copytree(RUN, tmp_path / "run")
    command = [sys.executable, "-c", CONTINUE, run, WRITTEN / "images", WRITTEN / "masks"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "training resumes after step 4 of 6" in done.stdout
    newest = checkpoints.load_newest(str(run))
    assert newest.checkpoint.state["step"] == 6 and newest.skipped == []
    before = checkpoints.load_newest(str(RUN)).checkpoint
    for part in ("model", "optimizer", "ema"):
        assert before.variables[part].keys() == newest.checkpoint.variables[part].keys()


def test_export_loads_in_keras(expected):
    """By the registered names of its layers."""
    model = keras.saving.load_model(RUN / "exports" / "step-00000004" / "model.keras")
    found = {variable.path: variable.numpy() for variable in model.variables}
    for name in ("encoder_1_conv/kernel", "encoder_1_conv/bias"):
        np.testing.assert_array_equal(found[name], expected[f"ema/{name}"])


def test_curves_are_read():
    curves = tensorboard.read_curves(str(RUN), ["loss/total", "validation/psnr"])
    assert [step for step, _ in curves["loss/total"]] == [1, 2, 3, 4]
    (_, last) = curves["validation/psnr"][-1]
    assert last == pytest.approx(24.2015, abs=1e-3)
