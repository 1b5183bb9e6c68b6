"""What a user sees who asks for what cannot be done: real processes, one line, no traceback."""

from __future__ import annotations

import concurrent.futures
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from pipelines import build_imagenet, build_masks
from trainer import checkpoints, presets
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.model.unet import build_unet

PHOTOS = Path(__file__).resolve().parents[1] / "pipelines" / "photos"
CONFIG = TrainConfig(unet=UNetConfig(image_size=32, filters=(4,), kernels=(3,)), initial=PhaseConfig(steps=1))
NOWHERE = "gs://pconv-no-such-bucket/x"


class Case(NamedTuple):
    """A command, its arguments with names of `place` in braces, and what it has to say."""

    module: str
    arguments: str
    message: str
    code: int = 2


TRAIN = "--preset demo --images {images} --masks {masks} --run new"
INPAINT = "--images {photos} --masks {holes} --hole black --run {run} --output new"
EVALUATE = "--images {images} --masks {masks} --run {run} --split train --mask-split train --output new"
MASKS = "--output new --count 6 --size 32"
CASES = {
    # A folder that is not there.
    "train-missing": Case("trainer.train", TRAIN + " --images gone", "image dataset .*/gone does not exist"),
    "imagenet-missing": Case(
        "pipelines.build_imagenet", "--input gone --output new", "image files in or below .*/gone"
    ),
    "inpaint-missing": Case("pipelines.inpaint", INPAINT + " --images gone", "--images: no files at .*/gone"),
    "evaluate-missing": Case("pipelines.evaluate", EVALUATE + " --masks gone", "mask dataset .*/gone does not exist"),
    # A dataset whose job did not finish.
    "train-unfinished": Case(
        "trainer.train", TRAIN + " --masks {died}", "died has no manifest.json: .* did not finish"
    ),
    # Names that are not known.
    "preset": Case("trainer.train", TRAIN + " --preset papre", r"--preset: invalid choice: 'papre' .*demo.*paper"),
    "key": Case(
        "trainer.train",
        TRAIN + " --set unet.filter=8",
        r"'unet.filter'. Did you mean unet.filters\? Valid keys: .*log_every",
    ),
    "value": Case(
        "trainer.train", TRAIN + " --set unet.image_size=100", "unet.image_size: .* 96 would work.* Received 100"
    ),
    "train-option": Case("trainer.train", TRAIN + " --steps 5", "unrecognized arguments: --steps 5"),
    "train-required": Case("trainer.train", "--preset demo", "required: --images, --masks, --run"),
    "masks-option": Case("pipelines.build_masks", MASKS + " --numshards 2", "--numshards. Did you mean --num-shards?"),
    # Sizes that differ.
    "train-sizes": Case("trainer.train", TRAIN, r"expected masks of 128 x 128 \(unet.image_size\). Received 32 x 32"),
    "inpaint-sizes": Case("pipelines.inpaint", INPAINT, "^2 of 2 inputs rejected, see .*/new/rejects.jsonl$", code=3),
    # A run without a checkpoint.
    "inpaint-run": Case("pipelines.inpaint", INPAINT + " --run {started}", "/started has no checkpoint yet"),
    "evaluate-run": Case("pipelines.evaluate", EVALUATE + " --run {started}", "/started has no checkpoint yet"),
    # A bucket that is not there.
    "train-bucket": Case("trainer.train", TRAIN + f" --masks {NOWHERE}", "gs://pconv-no-such-bucket does not exist"),
    "masks-bucket": Case("pipelines.build_masks", MASKS + f" --output {NOWHERE}", "gs://pconv-no-such-bucket does not"),
    "imagenet-bucket": Case("pipelines.build_imagenet", f"--input {NOWHERE} --output new", "gs://pconv-no-such-bucket"),
    "inpaint-bucket": Case("pipelines.inpaint", INPAINT + f" --output {NOWHERE}", "gs://pconv-no-such-bucket does not"),
    "evaluate-bucket": Case("pipelines.evaluate", EVALUATE + f" --run {NOWHERE}", "gs://pconv-no-such-bucket does not"),
    # Masks that cannot be.
    "ratio": Case(
        "pipelines.build_masks", MASKS + " --hole-ratio=-0.1,0.2", r"0 <= low < high <= 1. Received \(-0.1, 0.2\)"
    ),
    "spec": Case("pipelines.build_masks", MASKS + " --hole-ratio 0.8,0.9 --border none", "lower bound under 0.6602"),
    # An output that cannot be written.
    "train-output": Case(
        "trainer.train",
        TRAIN + " --set unet.image_size=32 --run {file}/run",
        "cannot write to .*/file/run: Not a directory",
    ),
    "masks-others": Case(
        "pipelines.build_masks", MASKS + " --output {died}", "train-00000-of-00001.tfrecord exists with other"
    ),
}


def draw_png(side: int, mode: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, str]:
    """What is there: by name, addresses of files and folders."""
    root = tmp_path_factory.mktemp("place")
    build_imagenet.main(["--input", str(PHOTOS), "--output", f"{root}/images", "--split", "train"])
    build_masks.main(["--output", f"{root}/masks", "--count", "6", "--size", "32"])
    files = {
        "died/train-00000-of-00001.tfrecord": b"half a shard",
        "photos/a.png": draw_png(20, "RGB"),
        "photos/b.png": draw_png(21, "RGB"),
        "holes/a.png": draw_png(21, "L"),
        "holes/b.png": draw_png(20, "L"),
        "started/config.json": presets.to_json(CONFIG),
        "run/config.json": presets.to_json(CONFIG),
        "file": b"not a folder",
        # In the way of whoever imports Ray.
        "no-ray/ray/__init__.py": b"raise SystemExit('Ray was imported')\n",
    }
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(data)
    variables = {"model": checkpoints.read_variables(build_unet(CONFIG.unet).variables), "optimizer": {"s": np.ones(1)}}
    checkpoints.save_checkpoint(f"{root}/run", variables, {"step": 1, "phase": "initial", "examples": 6}, keep=1)
    return {path.name: str(path) for path in root.iterdir()}


def run_case(case: Case, place: dict[str, str], folder: Path, server: str) -> subprocess.CompletedProcess:
    folder.mkdir()
    # TensorFlow's log as loud as users have it.
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {"STORAGE_EMULATOR_HOST": server, "PYTHONPATH": place["no-ray"]}
    command = [sys.executable, "-m", case.module, *(part.format(**place) for part in case.arguments.split())]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def outcomes(request, place, gcs_server, tmp_path_factory):
    """By name of a case, the future of its process; two run at a time."""
    root = tmp_path_factory.mktemp("outcomes")
    wanted = [item.callspec.params["name"] for item in request.session.items if item.module is request.module]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run_case, CASES[name], place, root / name, gcs_server) for name in wanted}


@pytest.mark.parametrize("name", CASES)
def test_wrong_use_is_one_line(name, outcomes, place):
    case, done = CASES[name], outcomes[name].result()
    assert done.returncode == case.code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if not re.fullmatch(r"  \d+ of \d+ \w+, [\d.]+/s", line)]
    assert len(said) == 1, said
    assert said[0].startswith("error: ") or case.code == 3
    assert re.search(case.message, said[0]), said
