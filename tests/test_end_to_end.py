"""The five stage commands as a user types them, on addresses in buckets of a real server throughout."""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from masks.codec import encode_mask
from masks.sampling import MaskSpec, sample_mask
from trainer import checkpoints, storage
from trainer.data import manifest
from trainer.images import rgb

PHOTOS = Path(__file__).parent.parent / "pipelines" / "photos"
TRAIN = ["--preset", "demo", "--set", "unet.image_size=64", "--set", "unet.filters=8,16"]
TRAIN += ["--set", "unet.kernels=5,3", "--set", "global_batch_size=4", "--set", "precision=float32"]
TRAIN += ["--set", "initial.schedule=constant", "--set", "log_every=1"]


def run(module: str, *arguments: str) -> str:
    """Standard output of one command, which must succeed; in the image job one of the photographs is broken.

    A training leaves no files in the temporary folder, whose path is short as Ray makes sockets below it, but for the
    shards of buckets that others may read next.
    """
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        environment = os.environ | {"TMPDIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        left = [path for path in Path(folder).rglob("*") if not path.is_dir() and "pconv-shards-" not in str(path)]
    assert done.returncode == (3 if module == "pipelines.build_imagenet" else 0), (
        f"{module} {arguments}\n{done.stdout}\n{done.stderr}"
    )
    assert module != "trainer.train" or not left, left
    return done.stdout


def run_together(*commands: tuple[str, ...]) -> list[str]:
    """Standard output of each, two running at a time: what takes their time is to load their libraries."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda command: run(*command), commands))


def upload(bucket: str, name: str, data: bytes) -> None:
    storage.create(f"{bucket}/{name}", data)


def loss_curve(output: str) -> list[float]:
    return [float(line.split("total ")[1].split()[0]) for line in output.splitlines() if "total " in line]


def last_checkpoint(run_folder: str) -> checkpoints.Checkpoint:
    return checkpoints.load_checkpoint(checkpoints.find_latest(run_folder))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_commands_on_a_bucket(bucket):
    val = check_datasets(bucket)
    resumed = check_training(bucket)
    check_inference(bucket, val, resumed)
    if place := os.environ.get("PCONV_DIGESTS"):  # tests/engines compares them with those of other stores
        Path(place).write_text(json.dumps(digests(bucket), indent=0))


def digests(bucket: str) -> dict[str, str]:
    """CRC-32C by name of the files that are the same on any store, the bucket's own name left out."""
    same = (".tfrecord", ".png", ".npz", "rejects.jsonl", "train.jsonl", "pairs.jsonl")
    found = {storage.relative(address, bucket): address for address in storage.find(bucket)}
    return {  # a checkpoint's folder has a name of its own
        re.sub(r"(step-\d+)-\w+", r"\1", name): storage.crc32c(
            re.sub(rb"(step-\d+)-\w+", rb"\1", storage.read(address).replace(bucket.encode(), b"BUCKET"))
        )
        for name, address in found.items()
        if name.endswith(same)
    }


def check_datasets(bucket: str) -> list[Path]:
    """Builds the datasets from a tree like ImageNet's, six photographs and a broken one; returns two of them."""
    photos = sorted(PHOTOS.glob("*/*/*.jpg"))
    train, val = [p for p in photos if "train" in p.parts][:4], [p for p in photos if "val" in p.parts][:2]
    for path in (*train, *val):
        upload(bucket, f"photos/{path.relative_to(PHOTOS)}", path.read_bytes())
    upload(bucket, "photos/train/object/broken.jpg", train[0].read_bytes()[:1000])

    val_masks = ["--count", "12", "--size", "64", "--split", "val", "--seed", "1", "--stratify"]
    run_together(
        ("pipelines.build_masks", "--output", f"{bucket}/masks", "--count", "30", "--size", "64", "--num-shards", "2"),
        ("pipelines.build_imagenet", "--input", f"{bucket}/photos", "--output", f"{bucket}/records"),
        ("pipelines.build_masks", "--output", f"{bucket}/val-masks", *val_masks),
    )
    masks = manifest.load_manifest(f"{bucket}/masks", "mask")
    assert masks.counts == {"inputs": 30, "records": 30, "rejects": 0}
    assert [shard.name for shard in masks.shards] == [f"train-0000{i}-of-00002.tfrecord" for i in (0, 1)]
    records = manifest.load_manifest(f"{bucket}/records", "image")
    assert records.counts == {"inputs": 7, "records": 6, "rejects": 1}
    assert {s.split: s.records for s in records.shards} == {"train": 4, "val": 2}
    (rejected,) = map(json.loads, storage.read(f"{bucket}/records/rejects/train.jsonl").splitlines())
    assert rejected["source"] == f"{bucket}/photos/train/object/broken.jpg" and rejected["stage"] == "decode"

    return val


def check_training(bucket: str) -> checkpoints.Checkpoint:
    """Trains in two calls, and at once; returns the last checkpoint of the former."""
    # Two workers, six steps; the second call goes on from there. One worker that was never interrupted sees the same
    # examples and computes the same.
    data = ["--images", f"{bucket}/records", "--masks", f"{bucket}/masks"]
    longer = [*TRAIN, "--set", "initial.steps=9"]
    first, single = run_together(
        ("trainer.train", *TRAIN, "--set", "initial.steps=6", *data, "--run", f"{bucket}/run"),
        ("trainer.train", *longer, "--set", "scaling.workers=1", *data, "--run", f"{bucket}/single"),
    )
    assert "training starts: 6 steps" in first
    assert last_checkpoint(f"{bucket}/run").state == {"step": 6, "phase": "initial", "examples": 24}
    allow = ["--allow-config-change", "initial.steps"]
    second = run("trainer.train", *longer, *data, "--run", f"{bucket}/run", *allow)
    assert "training resumes after step 6 of 9" in second
    resumed = last_checkpoint(f"{bucket}/run")
    assert resumed.state == {"step": 9, "phase": "initial", "examples": 36}

    curve = loss_curve(first) + loss_curve(second)
    assert len(curve) == 9
    np.testing.assert_allclose(curve, loss_curve(single), rtol=1e-3)
    uninterrupted = last_checkpoint(f"{bucket}/single").variables["model"]
    for name, array in resumed.variables["model"].items():
        # Adam's early steps have the size of the learning rate whatever the gradient: where that is
        # rounding noise, two orders of summation may differ by a step of 2e-3.
        assert np.quantile(np.abs(array - uninterrupted[name]), 0.9) < 2e-4, name
    return resumed


def check_inference(bucket: str, val: list[Path], resumed: checkpoints.Checkpoint) -> None:
    """Inpaints photographs of odd sizes, in folders, and evaluates the run that ends with ``resumed``."""
    targets, holes = {}, {}
    for index, path in enumerate(val):
        name = f"{path.parent.name}/{path.stem}"
        photo = cv2.resize(rgb.decode_rgb(path.read_bytes()), (150 + index, 101))
        spec = MaskSpec(generator="shapes", height=101, width=150 + index, hole_ratio=(0.2, 0.3))
        targets[name], holes[name] = photo, sample_mask(spec, index)
        upload(bucket, f"pictures/{name}.png", rgb.encode_png(photo))
        upload(bucket, f"holes/{name}.png", encode_mask(holes[name]))
    files = ["--images", f"{bucket}/pictures/**", "--masks", f"{bucket}/holes/**", "--hole", "black"]
    data = ["--images", f"{bucket}/records", "--masks", f"{bucket}/val-masks"]
    _, table = run_together(
        ("pipelines.inpaint", *files, "--run", f"{bucket}/run", "--output", f"{bucket}/out"),
        ("pipelines.evaluate", *data, "--run", f"{bucket}/run", "--output", f"{bucket}/report"),
    )
    for name, target in targets.items():
        output, valid = rgb.decode_rgb(storage.read(f"{bucket}/out/{name}.png")), holes[name] == 1
        np.testing.assert_array_equal(output[valid], target[valid])
        assert (output[~valid] != target[~valid]).mean() > 0.5
    outcome = json.loads(storage.read(f"{bucket}/out/manifest.json"))
    assert outcome["counts"] == {"inputs": 2, "outputs": 2, "rejects": 0, "finished_before": 0, "without_holes": 0}
    assert outcome["model"] == {"address": resumed.pin.address, "crc32c": resumed.pin.crc32c}

    rows = [json.loads(line) for line in storage.read(f"{bucket}/report/pairs.jsonl").splitlines()]
    assert len(rows) == 12 * 4 and {row["method"] for row in rows} == {"network", "telea", "ns", "mean"}
    assert table.count("| network |") == 7  # one line per hole-ratio interval, and one of all
