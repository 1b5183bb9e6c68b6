"""The mask job: every record against a mask drawn here, and the same bytes whatever runs the job."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from masks.families import FAMILIES, Family
from masks.sampling import MaskSpec, sample_mask
from pipelines.build_masks import main, parser
from pipelines.mask_dataset import make_plan
from trainer.data import records
from trainer.errors import UserError

INTERVALS = [(0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6)]  # the paper's
COUNT, SIZE = 130, 48  # two whole chunks of 64 and a part
OPTIONS = ["--count", str(COUNT), "--size", str(SIZE), "--seed", "5"]


def build(folder, *options):
    assert main(["--output", str(folder), *options]) == 0
    return json.loads((folder / "manifest.json").read_text())


def read_records(folder) -> list[dict]:
    """Parsed records in the order of the manifest."""
    names = [shard["name"] for shard in json.loads((folder / "manifest.json").read_text())["shards"]]
    dataset = tf.data.TFRecordDataset([str(folder / name) for name in names]).map(records.parse_mask)
    return [{key: value.numpy() for key, value in record.items()} for record in dataset]


def digests(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks") / "set"
    build(folder, *OPTIONS, "--num-shards", "3")
    return folder


def test_every_record_is_the_mask_of_its_index(written):
    found = read_records(written)
    assert sorted(record["mask/index"] for record in found) == list(range(COUNT))
    for record in found:
        index = int(record["mask/index"])
        low, high = INTERVALS[index % 6]
        spec = MaskSpec(generator="shapes", height=SIZE, width=SIZE, hole_ratio=(low, high), seed=3 * 5)  # of train
        image = Image.open(io.BytesIO(record["mask/encoded"]))
        assert (image.format, image.mode, image.size) == ("PNG", "1", (SIZE, SIZE))
        mask = np.asarray(image).astype(np.uint8)  # True, which is white, is valid
        np.testing.assert_array_equal(mask, sample_mask(spec, index))
        ratio = np.count_nonzero(mask == 0) / SIZE**2
        assert low < ratio <= high
        assert record["mask/hole_ratio"] == np.float32(ratio)
        assert record["mask/bucket"] == index % 6
        inside = mask[5:-5, 5:-5]  # 50 of 512 pixels are 5 of 48
        assert record["mask/touches_border"] == int(np.sum(mask == 0) > np.sum(inside == 0))
        assert (record["mask/height"], record["mask/width"]) == (SIZE, SIZE)
        assert record["mask/generator"] == b"shapes"
    assert len({record["mask/encoded"] for record in found}) == COUNT


def test_intervals_take_turns(written):
    buckets = [record["mask/bucket"] for record in read_records(written)]
    assert [buckets.count(i) for i in range(6)] == [22, 22, 22, 22, 21, 21]


def test_manifest(written):
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["kind"] == "mask" and manifest["seed"] == 5
    assert manifest["counts"] == {"inputs": COUNT, "records": COUNT, "rejects": 0}
    assert manifest["parameters"] == {
        "generator": "shapes",
        "weights": {},
        "height": SIZE,
        "width": SIZE,
        "hole_ratio": [list(interval) for interval in INTERVALS],
        "border": ["any"],
        "margin": 5,
        "mask_seed": 15,
        "count": COUNT,
        "split": "train",
        "sources": {},
        "num_shards": {"train": 3},
    }
    histogram = manifest["statistics"]["histogram"]
    buckets = [record["mask/bucket"] for record in read_records(written)]
    touching = [record["mask/bucket"] for record in read_records(written) if record["mask/touches_border"]]
    for bucket in range(6):
        counts = {cell["touches_border"]: cell["count"] for cell in histogram if cell["bucket"] == bucket}
        assert sum(counts.values()) == buckets.count(bucket)
        assert counts.get(1, 0) == touching.count(bucket)
    assert {cell["generator"] for cell in histogram} == {"shapes"}
    names = [f"train-0000{i}-of-00003.tfrecord" for i in range(3)]
    assert sorted(digests(written)) == ["contact_sheet.png", "manifest.json", *names]
    assert all(shard["records"] > 0 for shard in manifest["shards"])


def test_a_second_run_does_nothing(written, capsys):
    before = {path: path.stat() for path in written.iterdir()}
    assert main(["--output", str(written), *OPTIONS, "--num-shards", "3"]) == 0
    assert "is already complete, nothing to do (use --overwrite" in capsys.readouterr().err
    assert {path: path.stat() for path in written.iterdir()} == before


def test_overwrite_and_other_numbers_of_shards(written, tmp_path):
    def as_set(folder):
        return {tuple(sorted(record.items())) for record in read_records(folder)}

    manifest = build(tmp_path / "set", *OPTIONS, "--num-shards", "1")
    assert manifest["parameters"]["num_shards"] == {"train": 1}
    assert as_set(tmp_path / "set") == as_set(written)
    build(tmp_path / "set", *OPTIONS, "--seed", "6", "--overwrite")
    assert not as_set(tmp_path / "set") & as_set(written)
    build(tmp_path / "set", *OPTIONS, "--num-shards", "3", "--overwrite")
    assert digests(tmp_path / "set") == digests(written)  # and no shard of the other runs is left


@pytest.mark.slow
@pytest.mark.soak
def test_worker_processes_write_the_same_bytes(written, tmp_path):
    command = [sys.executable, "-m", "pipelines.build_masks", "--output", "set", *OPTIONS, "--num-shards", "3"]
    workers = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
    done = subprocess.run([*command, *workers], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "set") == digests(written)


def test_one_interval_border_and_split(tmp_path):
    options = ["--count", "9", "--size", "40", "--hole-ratio", "0.15,0.35", "--border", "none", "--split", "val"]
    manifest = build(tmp_path, *options)
    assert manifest["parameters"]["hole_ratio"] == [[0.15, 0.35]] and manifest["parameters"]["border"] == ["none"]
    assert [shard["name"] for shard in manifest["shards"]] == ["val-00000-of-00001.tfrecord"]
    for record in read_records(tmp_path):
        spec = MaskSpec(generator="shapes", height=40, width=40, hole_ratio=(0.15, 0.35), border="none", seed=1)
        mask = np.asarray(Image.open(io.BytesIO(record["mask/encoded"])))
        np.testing.assert_array_equal(mask, sample_mask(spec, int(record["mask/index"])))
        assert mask[:4].all() and mask[:, -4:].all() and record["mask/touches_border"] == 0


def test_stratified_masks_are_spread_evenly(tmp_path):
    manifest = build(tmp_path, "--count", "36", "--size", "64", "--stratify")
    cells = [(bucket, touches) for bucket in range(6) for touches in (0, 1)]
    found = [(record["mask/bucket"], record["mask/touches_border"]) for record in read_records(tmp_path)]
    assert [found.count(cell) for cell in cells] == [3] * 12
    expected = [dict(generator="shapes", bucket=b, touches_border=t, count=3) for b, t in cells]
    assert manifest["statistics"] == {"histogram": expected}
    sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png"))
    assert sheet.ndim == 2 and sheet.shape[1] > 6 * 128 and (sheet == 0).any() and (sheet == 255).any()


def test_splits_have_no_mask_in_common(tmp_path):
    drawn = []
    for split in ("train", "val", "test"):
        for seed in ("0", "1"):
            options = ["--count", "30", "--size", "32", "--split", split, "--seed", seed]
            build(tmp_path / (split + seed), *options)
            drawn += [record["mask/encoded"] for record in read_records(tmp_path / (split + seed))]
    assert len(set(drawn)) == 180


def test_the_papers_test_set_is_twelve_thousand_masks_of_twelve_kinds():
    plan = make_plan(parser().parse_args(["--output", "x", "--test-set", "paper"]))
    assert (plan.count, plan.split, len(plan.specs)) == (12_000, "test", 12)
    assert {(spec.height, spec.width) for spec in plan.specs} == {(512, 512)}
    assert {(spec.hole_ratio, spec.border) for spec in plan.specs} == {
        (interval, border) for interval in INTERVALS for border in ("none", "touch")
    }


def test_a_mixture_says_which_family_each_mask_is_of(tmp_path, monkeypatch):
    def draw_noise(rng, canvas):
        canvas.region[:] = rng.integers(0, 2, canvas.region.shape, np.uint8)

    monkeypatch.setitem(FAMILIES, "noise", Family(draw_noise))
    options = ["--count", "60", "--size", "32", "--generator", "mixture", "--weights", "noise=1,shapes=2"]
    manifest = build(tmp_path, *options)
    weights = manifest["parameters"]["weights"]
    assert weights == {"noise": 1.0, "shapes": 2.0}
    families = [record["mask/generator"] for record in read_records(tmp_path)]
    assert 10 <= families.count(b"noise") <= 30 and families.count(b"shapes") == 60 - families.count(b"noise")
    counts = {"noise": 0, "shapes": 0}
    for cell in manifest["statistics"]["histogram"]:
        counts[cell["generator"]] += cell["count"]
    assert counts["noise"] == families.count(b"noise") and sum(counts.values()) == 60


def test_masks_in_a_bucket(bucket, written, tmp_path):
    from trainer import storage

    assert main(["--output", f"{bucket}/masks", *OPTIONS, "--num-shards", "3"]) == 0
    for address in storage.find(f"{bucket}/masks"):
        (tmp_path / address.rpartition("/")[2]).write_bytes(storage.read(address))
    assert digests(tmp_path) == digests(written)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "--count: expected 1 or more. Received 0."),
        (["--num-shards", "0"], "--num-shards: expected 1 or more. Received 0."),
        (["--size", "8"], "height: expected a whole number of 16 pixels or more. Received 8."),
        (["--generator", "flow"], "argument --generator: invalid choice: 'flow' (choose from"),
        (["--border", "some"], "argument --border: invalid choice: 'some'"),
        (["--hole-ratio", "0.5"], "--hole-ratio: expected LOW,HIGH. Received '0.5'."),
        (["--hole-ratio", "0.1,0.2,0.3"], "--hole-ratio: expected LOW,HIGH."),
        (["--hole-ratio", "0.3,0.2"], "hole_ratio: expected (low, high) with 0 <= low < high <= 1."),
        (["--hole-ratio", "nan,0.2"], "hole_ratio: expected (low, high)"),
        (["--hole-ratio", "0.7,0.9", "--border", "none"], "hole_ratio: expected a lower bound under 0."),
        (["--hole-ratio", "0.5,0.50001"], "hole_ratio: expected an interval that holds a whole number"),
        (["--split", "../train"], "argument --split: invalid choice: '../train'"),
        (["--split", ""], "argument --split: invalid choice: ''"),
        (["--stratify", "--border", "none"], "--stratify takes all intervals"),
        (["--stratify", "--count", "100"], "--count: expected a multiple of 12 with --stratify"),
        (["--test-set", "places"], "argument --test-set: invalid choice: 'places'"),
        (["--test-set", "paper", "--count", "3"], "--test-set paper: leave out --count, which it sets to 12000."),
        (["--margin", "40"], "margin: expected 1 to 15 pixels. Received 40."),
        (["--weights", "shapes=1"], "--weights: expected with, and only with, --generator mixture."),
        (["--generator", "mixture"], "--weights: expected with, and only with, --generator mixture."),
        (["--generator", "mixture", "--weights", "shapes"], "--weights: expected FAMILY=NUMBER,..."),
        (["--generator", "mixture", "--weights", "lines=1"], "weights: expected families of ('shapes',"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(UserError) as caught:
        main(["--output", str(tmp_path / "set"), "--count", "3", "--size", "32", *options])
    assert message in str(caught.value)
    assert not (tmp_path / "set").exists()
