"""The mask job with families that start from files: what becomes of good files, bad ones, and every mask."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import pipelines
from pipelines.build_masks import main
from trainer import storage
from trainer.data import records
from trainer.errors import UserError

PHOTOS = Path(pipelines.__file__).parent / "photos"
STILLS = sorted(PHOTOS.rglob("*.jpg"))[:3]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Five mask images with black holes, of which two cannot be used, and three photographs of which one cannot."""
    root = tmp_path_factory.mktemp("files")
    for name, radius in (("a", 20), ("b", 60), ("c", 100)):
        image = np.full((300, 400), 255, np.uint8)
        cv2.circle(image, (200, 150), radius, 0, -1)
        (root / "masks" / name).mkdir(parents=True)
        (root / "masks" / name / "mask.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    (root / "masks" / "notes.txt").write_text("not an image")
    (root / "masks" / "white.png").write_bytes(cv2.imencode(".png", np.full((9, 9), 255, np.uint8))[1].tobytes())
    (root / "stills").mkdir()
    for still in STILLS:
        (root / "stills" / still.name).write_bytes(still.read_bytes())
    (root / "stills" / "half.jpg").write_bytes(STILLS[0].read_bytes()[:5000])
    return root


def build(folder, *options):
    code = main(["--output", str(folder), "--size", "64", *options])
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = manifest["counts"]
    assert code == (3 if counts["rejects"] else 0)
    assert counts["inputs"] == counts["records"] + counts["rejects"]
    return manifest


def read_records(folder) -> list[dict]:
    names = sorted(str(path) for path in folder.glob("*.tfrecord"))
    dataset = tf.data.TFRecordDataset(names).map(records.parse_mask)
    return [{key: value.numpy() for key, value in record.items()} for record in dataset]


def read_rejects(folder) -> dict[str, dict]:
    lines = [json.loads(line) for line in (folder / "rejects" / "train.jsonl").read_text().splitlines()]
    return {Path(line["source"]).name: line for line in lines}


def digests(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"  # which holds the addresses
    }


MASK_OPTIONS = ["--generator", "files", "--hole", "black", "--count", "60", "--stratify"]


@pytest.fixture(scope="module")
def from_masks(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "set"
    build(folder, *MASK_OPTIONS, "--mask-files", str(files / "masks"))
    return folder


def test_every_mask_is_drawn_and_every_bad_file_told(from_masks):
    found = read_records(from_masks)
    assert sorted(record["mask/index"] for record in found) == list(range(60))
    assert {record["mask/generator"] for record in found} == {b"files"}
    assert len({record["mask/encoded"] for record in found}) == 60
    bounds = [0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    for record in found:
        mask = np.asarray(Image.open(io.BytesIO(record["mask/encoded"])))
        bucket = record["mask/bucket"]
        assert bounds[bucket] < np.mean(mask == 0) <= bounds[bucket + 1] and mask.shape == (64, 64)
    cells = [(record["mask/bucket"], record["mask/touches_border"]) for record in found]
    assert {cells.count(cell) for cell in cells} == {5} and len(set(cells)) == 12
    rejects = read_rejects(from_masks)
    assert rejects.keys() == {"notes.txt", "white.png"}
    assert (rejects["notes.txt"]["stage"], rejects["white.png"]["stage"]) == ("decode", "decode")
    assert "the file is not an image" in rejects["notes.txt"]["error"]
    assert "Received no holes" in rejects["white.png"]["error"]


def test_sources_in_a_bucket_give_the_same_masks(bucket, files, from_masks, tmp_path):
    for path in (files / "masks").rglob("*.*"):
        storage.create(f"{bucket}/in/{path.relative_to(files / 'masks')}", path.read_bytes())
    build(tmp_path, *MASK_OPTIONS, "--mask-files", f"{bucket}/in")
    ours, theirs = digests(tmp_path), digests(from_masks)
    assert ours.pop("rejects/train.jsonl") != theirs.pop("rejects/train.jsonl")  # other addresses
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.soak
def test_worker_processes_write_the_same_bytes(files, from_masks, tmp_path):
    command = [sys.executable, "-m", "pipelines.build_masks", "--output", "set", "--size", "64", *MASK_OPTIONS]
    workers = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
    command += ["--mask-files", str(files / "masks"), *workers]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 3, done.stderr
    assert digests(tmp_path / "set") == digests(from_masks)


def test_a_mixture_of_families_with_and_without_sources(files, tmp_path):
    options = ["--generator", "mixture", "--weights", "shapes=2,files=1,occlusion=1", "--count", "48"]
    options += ["--mask-files", str(files / "masks"), "--hole", "black", "--stills", str(files / "stills")]
    manifest = build(tmp_path, *options)
    families = [record["mask/generator"] for record in read_records(tmp_path)]
    assert len(families) == 48 and min(families.count(name) for name in (b"shapes", b"files", b"occlusion")) >= 4
    assert manifest["parameters"]["sources"]["hole"] == "black"
    rejects = read_rejects(tmp_path)
    assert rejects.keys() == {"notes.txt", "white.png", "half.jpg"}
    assert "truncated" in rejects["half.jpg"]["error"]


def test_sources_take_turns_with_every_specification():
    from pipelines.build_masks import parser
    from pipelines.mask_dataset import make_plan, sampling

    arguments = ["--output", "x", "--count", "60", "--stratify", "--generator", "files"]
    plan = make_plan(parser().parse_args(arguments))
    found = [f"mask:{name}" for name in "cab"] + ["still:z"]
    assigned = list(sampling.assign_sources(0, plan.specs, 60, found, []))
    assert [index for _, index in assigned] == list(range(60))
    met = {(name, index % 12) for name, index in assigned}
    assert len(met) == 36 and {name for name, _ in met} == {"mask:a", "mask:b", "mask:c"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--generator files", "--generator files: expected --mask-files."),
        ("--generator occlusion", "--generator occlusion: expected --frames or --stills."),
        ("--generator files --mask-files {files}/masks", "--hole: expected with, and only with, --mask-files"),
        ("--hole black", "--hole: expected with, and only with, --mask-files"),
        ("--generator files --mask-files {files}/masks --hole gray", "argument --hole: invalid choice: 'gray'"),
        ("--generator files --mask-files {files}/none --hole black", "none matches no file"),
        ("--stills {files}/stills", "--stills: none of shapes starts from such files."),
        ("--generator occlusion --stills {files}/stills/half.jpg", "occlusion: none of the files can be used"),
        ("--generator occlusion --frames {files}/masks/notes.txt", "no file that masks can start from"),
        (
            "--generator files --hole black --mask-files {files}/masks.zip",
            "masks.zip is a ZIP archive. Expected image ",
        ),
        ("--generator files --hole black --mask-files {files}/set", "--mask-files: {files}/set is a dataset. Expected"),
        (
            "--generator occlusion --frames {files}/masks.zip",
            "masks.zip is a ZIP archive. Expected videos, frames or st",
        ),
        (
            "--generator files --hole black --mask-files {files}/masks --output {files}/masks/new",
            "--output: expected a folder that is not in --mask-files {files}/masks. Received {files}/masks/new.",
        ),
    ],
)
def test_wrong_use_is_refused(files, options, message, tmp_path):
    for name, data in {"masks.zip": b"PK\3\4", "set/manifest.json": b"", "set/a.tfrecord": b""}.items():
        storage.overwrite(f"{files}/{name}", data)
    with pytest.raises(UserError) as caught:
        main(["--output", str(tmp_path / "set"), "--count", "3", "--size", "32", *options.format(files=files).split()])
    assert message.format(files=files) in str(caught.value)
