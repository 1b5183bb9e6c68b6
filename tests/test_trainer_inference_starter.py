"""The starter model: what is installed is what its card says, and it fills holes straight after installation."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from masks.sampling import MaskSpec, sample_mask
from pipelines.evaluation import methods
from trainer import storage
from trainer.errors import UserError
from trainer.inference import baselines, pins, predict

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "pipelines" / "photos" / "val" / "object" / "coffee.jpg"


@pytest.fixture(scope="module")
def card():
    return json.loads(pins.STARTER_CARD.read_text())


def test_the_weights_are_those_of_the_card(card):
    data = pins.STARTER_WEIGHTS.read_bytes()
    assert len(data) == card["bytes"] <= 8_000_000
    assert card["files"] == {"starter.npz": storage.crc32c(data)}
    with np.load(pins.STARTER_WEIGHTS, allow_pickle=False) as arrays:
        kinds = {name: (arrays[name].ndim > 1, arrays[name].dtype.name) for name in arrays.files}
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
    assert set(kinds.values()) == {(True, "float16"), (False, "float32")}


def test_no_photograph_is_held_out_and_trained_on(card):
    """By the perceptual hashes that were taken of them; parts of photographs: test_benchmarks_starter.py."""
    bits = {
        split: np.array([list(f"{int(h, 16):064b}") for h in hashes.values()]) == "1"
        for split, hashes in card["photographs"].items()
    }
    distances = (bits["train"][:, None] != bits["val"][None]).sum(-1)
    assert bits["val"].shape == (10, 64) and len(bits["train"]) > 100
    assert distances.min() > 6
    assert (bits["train"][:1, None] != bits["train"][None, :1]).sum() == 0


def test_it_fills_what_it_sees():
    """Better than the mean color does, by far, and without changing a valid pixel."""
    image = cv2.resize(cv2.imread(str(PHOTO))[..., ::-1], (192, 160), interpolation=cv2.INTER_AREA)
    mask = sample_mask(MaskSpec(generator="shapes", height=160, width=192, hole_ratio=(0.2, 0.3)), 0)
    holes = np.where(mask[..., None] == 1, image, 77).astype(np.uint8)
    filled = predict.inpaint(holes, mask, predict.load_model(predict.starter()))
    np.testing.assert_array_equal(filled[mask == 1], image[mask == 1])

    def error(x):
        return np.square(x.astype(float) - image)[mask == 0].mean()

    assert error(filled) < error(baselines.fill_mean(holes, mask)) / 4


def test_another_version_of_it_is_refused(monkeypatch, tmp_path):
    pin = predict.starter()
    other = tmp_path / "starter.npz"
    other.write_bytes(pins.STARTER_WEIGHTS.read_bytes() + b"x")
    monkeypatch.setattr(predict, "STARTER_WEIGHTS", other)
    with pytest.raises(UserError, match="starter: expected the model of the version that launched this job. Received"):
        predict.load_model(pin)


def test_what_is_called_starter_here_comes_first(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert pins.find_given("starter") == pins.starter()
    one, two = methods.find_networks(["starter", "mine=starter"])
    assert (one.name, two.name) == ("starter", "mine") and one.pin == two.pin == pins.starter()
    assert one.pin.checkpoint.address == "starter"  # not where this package is: workers have theirs elsewhere
    with pytest.raises(UserError, match="expected starter alone: an export has no checkpoints. Received @best"):
        methods.find_networks(["starter@best"])
    (tmp_path / "starter").mkdir()
    (tmp_path / "starter" / "other.txt").write_text("x")
    with pytest.raises(UserError, match="starter is a folder of other files"):
        pins.find_given("starter")


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["beam", "ray"])
def test_the_first_command_after_installation(engine, tmp_path):
    """Without a network, and as it is typed, with less work than two cores do in 15 seconds."""
    cv2.imwrite(str(tmp_path / "photo.jpg"), cv2.resize(cv2.imread(str(PHOTO)), (1024, 768)))
    mask = sample_mask(MaskSpec(generator="shapes", height=768, width=1024, hole_ratio=(0.2, 0.3)), 0)
    cv2.imwrite(str(tmp_path / "hole.png"), (1 - mask) * 255)
    command = [sys.executable, "-m", "pipelines.inpaint", "--model", "starter", "--images", "photo.jpg"]
    command += ["--masks", "hole.png", "--hole", "white", "--output", "out", "--engine", engine]
    if os.geteuid() == 0 and shutil.which("unshare"):
        command = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "offline", *command]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
    )
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("1 image: 1 inpainted; ")
    assert engine == "ray" or now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime < 2 * 15
    image, filled = (cv2.imread(str(tmp_path / name)) for name in ("photo.jpg", "out/photo.png"))
    np.testing.assert_array_equal(filled[mask == 1], image[mask == 1])
    assert np.abs(filled.astype(float) - image)[mask == 0].mean() < 20
