"""The image job on a tree of photographs, in the forms that ImageNet's own files have, and of files that are none."""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipelines.build_imagenet import main
from pipelines.image_dataset.sources import find_source
from trainer import storage
from trainer.command import SOME_REJECTED
from trainer.data import records
from trainer.data.manifest import load_manifest
from trainer.errors import UserError

PHOTOS = Path(__file__).resolve().parents[1] / "pipelines" / "photos"
CAT = (PHOTOS / "train" / "living" / "cat.jpg").read_bytes()
COFFEE = (PHOTOS / "val" / "object" / "coffee.jpg").read_bytes()
ORIENTATION = 0x0112


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def small_photo() -> Image.Image:
    """Not square, not symmetric, in color."""
    return Image.open(io.BytesIO(CAT)).convert("RGB").resize((60, 44))


def rotated_jpeg() -> bytes:
    """A photograph as a camera held sideways stores it: turned to the left, with a tag that says so."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encode(small_photo().transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def alpha_png() -> bytes:
    picture = small_photo().convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return encode(picture, "PNG")


# Name below the tree -> bytes. Labels are the positions of n01, n02, n03 and n10.
USED = {
    "train/n02/cat.JPEG": CAT,
    "train/n02/progressive.JPEG": encode(small_photo(), "JPEG", progressive=True),
    "train/n02/png.JPEG": encode(small_photo(), "PNG"),
    "train/n01/gray.JPEG": encode(small_photo().convert("L"), "JPEG", quality=95),
    "train/n01/cmyk.JPEG": encode(small_photo().convert("CMYK"), "JPEG", quality=95),
    "train/n10/deep/rotated.jpg": rotated_jpeg(),
    "train/n10/alpha.png": alpha_png(),
    "val/coffee.JPEG": COFFEE,
    "val/n03/cat.JPEG": CAT,
}
KEPT = ["train/n02/cat.JPEG", "train/n02/progressive.JPEG", "val/coffee.JPEG", "val/n03/cat.JPEG"]
LABELS = {"n01": 0, "n02": 1, "n03": 2, "n10": 3, "": -1}
REJECTED = {  # name -> bytes, reason
    "train/n01/truncated.JPEG": (CAT[: len(CAT) // 2], r"^ImageError: .*truncated"),
    "train/n01/empty.JPEG": (b"", r"^ImageError: the file is empty$"),
    "train/n04/notes.txt": (b"These are notes.\n", r"^ImageError: the file is not an image$"),
    "val/half.png": (encode(small_photo(), "PNG")[:600], r"^ImageError: "),
}
LEFT_OUT = ["train/n01/.DS_Store", "README.txt", "other/n01/cat.JPEG"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    files = USED | {name: data for name, (data, _) in REJECTED.items()} | dict.fromkeys(LEFT_OUT, CAT)
    for name in random.Random(0).sample(sorted(files), len(files)):  # a listing's order may be any
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(files[name])
    return root


@pytest.fixture(scope="module")
def written(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "set"
    assert main(["--input", str(tree), "--output", str(folder), "--num-shards", "2"]) == SOME_REJECTED
    return folder


def read_split(folder, split) -> dict[str, dict]:
    """Parsed records of a split by file name, through the reader's functions and tf.data."""
    paths = [str(folder / shard.name) for shard in load_manifest(str(folder), "image").split(split)]
    parsed = tf.data.TFRecordDataset(paths).map(records.parse_image)
    found = [{key: value.numpy() for key, value in record.items()} for record in parsed]
    return {record["image/filename"].decode(): record for record in found}


def read_all(folder):
    return {split: read_split(folder, split) for split in ("train", "val")}


def test_every_usable_file_is_one_record_of_its_split(written):
    for split, found in read_all(written).items():
        assert sorted(found) == sorted(name for name in USED if name.startswith(split))


def test_labels_are_positions_in_the_sorted_synsets(written):
    manifest = load_manifest(str(written), "image")
    # n04 holds no usable image; it is a class all the same, or one bad file would move all labels behind it.
    assert manifest.synsets == ("n01", "n02", "n03", "n04", "n10")
    for name, record in {n: r for found in read_all(written).values() for n, r in found.items()}.items():
        synset = name.split("/")[1] if name.count("/") > 1 else ""
        assert record["image/class/synset"].decode() == synset
        assert record["image/class/label"] == (manifest.synsets.index(synset) if synset else -1)
    assert read_split(written, "val")["val/coffee.JPEG"]["image/class/label"] == -1


def test_upright_rgb_jpegs_pass_byte_for_byte(written):
    found = {name: r["image/encoded"] for records_ in read_all(written).values() for name, r in records_.items()}
    assert sorted(name for name in found if found[name] == USED[name]) == sorted(KEPT)


def test_every_record_decodes_to_what_it_says(written):
    for found in read_all(written).values():
        for record in found.values():
            pixels = tf.io.decode_jpeg(record["image/encoded"]).numpy()  # as many channels as are stored
            assert pixels.shape == (record["image/height"], record["image/width"], 3)
            described = [record[f"image/{key}"] for key in ("format", "colorspace", "channels")]
            assert described == [b"JPEG", b"RGB", 3]


def mistakes(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What the pixels would be, had the encoder made a mistake that leaves the shape as it is."""
    wrong = {"upside down": pixels[::-1], "mirrored": pixels[:, ::-1], "negative": 255 - pixels}
    if np.ptp(pixels, axis=2).mean() > 1:  # in color
        wrong["BGR"] = pixels[..., ::-1]
    return wrong


@pytest.mark.parametrize(
    "name", ["train/n02/png.JPEG", "train/n01/gray.JPEG", "train/n01/cmyk.JPEG", "train/n10/deep/rotated.jpg"]
)
def test_encoded_anew_it_is_still_the_same_photograph(name, written):
    pixels = tf.io.decode_jpeg(read_split(written, "train")[name]["image/encoded"]).numpy().astype(float)
    expected = np.asarray(small_photo().convert("L").convert("RGB") if "gray" in name else small_photo(), float)
    assert pixels.shape == (44, 60, 3)
    error = np.abs(pixels - expected).mean()
    assert error < 6
    assert all(np.abs(wrong - expected).mean() > 2 * error for wrong in mistakes(pixels).values())


def test_alpha_is_dropped_not_blended(written):
    pixels = tf.io.decode_jpeg(read_split(written, "train")["train/n10/alpha.png"]["image/encoded"]).numpy()
    expected = np.asarray(small_photo(), float)
    assert np.abs(pixels - expected)[:10].mean() < 6  # where it was transparent


def test_rejects_say_why(written, tree):
    manifest = load_manifest(str(written), "image")
    assert manifest.counts == {"inputs": 13, "records": 9, "rejects": 4}
    lines = [json.loads(x) for s in ("train", "val") for x in (written / f"rejects/{s}.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == [str(tree / name) for name in sorted(REJECTED)]
    for line in lines:
        _, reason = REJECTED[str(Path(line["source"]).relative_to(tree))]
        assert re.search(reason, line["error"]) and line["stage"] == "decode", line
        assert Path(line["source"]).relative_to(tree).parts[0] == line["split"]


def test_manifest(written, tree):
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["parameters"] == {
        "input": str(tree),
        "num_shards": {"train": 2, "val": 2},
        "limit": None,
        "short_side": None,
        "quality": 95,
        "max_pixels": 100_000_000,
        "min_side": 1,
    }
    names = [f"{split}-0000{i}-of-00002.tfrecord" for split in ("train", "val") for i in (0, 1)]
    assert [shard["name"] for shard in manifest["shards"]] == names
    files = sorted(p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file())
    assert files == ["manifest.json", "rejects/train.jsonl", "rejects/val.jsonl", *names]


def test_one_split(tree, tmp_path, capsys):
    assert main(["--input", str(tree / "."), "--output", str(tmp_path), "--split", "val"]) == SOME_REJECTED
    shown = capsys.readouterr()
    assert "2 images in" in shown.out
    assert shown.err.splitlines()[-1] == f"1 of 3 inputs rejected, see {tmp_path}/rejects"
    manifest = load_manifest(str(tmp_path), "image")
    assert [shard.name for shard in manifest.shards] == ["val-00000-of-00001.tfrecord"]
    assert manifest.synsets == ("n01", "n02", "n03", "n04", "n10")  # those of train, or labels would differ
    with pytest.raises(UserError, match=r"expected one of \['val'\]. Received 'train'"):
        manifest.split("train")


def test_a_second_run_does_nothing(tree, written, capsys):
    before = {path: path.stat() for path in written.rglob("*")}
    assert main(["--input", str(tree), "--output", str(written), "--num-shards", "2"]) == SOME_REJECTED
    first, last = capsys.readouterr().err.splitlines()
    assert "is already complete" in first and last == f"4 of 13 inputs rejected, see {written}/rejects"
    assert {path: path.stat() for path in written.rglob("*")} == before


def test_from_bucket_to_bucket_the_records_are_the_same(bucket, tree, written):
    for path in tree.rglob("*"):
        if path.is_file():
            storage.create(f"{bucket}/in/{path.relative_to(tree).as_posix()}", path.read_bytes())
    assert main(["--input", f"{bucket}/in", "--output", f"{bucket}/out/set", "--num-shards", "2"]) == SOME_REJECTED
    for path in written.glob("*.tfrecord"):
        assert storage.read(f"{bucket}/out/set/{path.name}") == path.read_bytes()
    ours, theirs = (load_manifest(f, "image") for f in (str(written), f"{bucket}/out/set"))
    assert (theirs.shards, theirs.counts, theirs.synsets) == (ours.shards, ours.counts, ours.synsets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "train,dev"], r"--split: expected names of \('train', 'val', 'test'\). Received 'dev'."),
        (["--split", ""], "--split: expected names of"),
        (["--split", "test"], "no image files below .*/test$"),
        (["--num-shards", "0"], "--num-shards: expected 1 or more. Received 0."),
        (["--limit", "0"], "--limit: expected 1 or more. Received 0."),
        (["--short-side", "0"], "--short-side: expected 1 to 65500. Received 0."),
        (["--quality", "101"], "--quality: expected 1 to 100. Received 101."),
        (["--max-pixels", "999999999"], "--max-pixels: expected 1 to 500000000. Received 999999999."),
        (["--min-side", "0"], "--min-side: expected 1 to 65500. Received 0."),
        (["--devkit", "/no/such/kit"], "/no/such/kit: expected .*ground_truth.txt and meta.mat .* Received neither."),
        (["--input", "/no/such/folder"], "no image files in or below /no/such/folder$"),
        (["--input", "/no/such/*.png"], r"no image files in or below /no/such/\*.png$"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(options, message, tree, tmp_path):
    with pytest.raises(UserError) as caught:
        main(["--input", str(tree), "--output", str(tmp_path / "set"), *options])
    assert re.search(message, str(caught.value))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "photos.zip",
            b"PK\3\4",
            "--input: {0}/photos.zip is a ZIP archive. Expected .*: unpack it and name the folder",
        ),
        (
            "photos.tar.gz",
            b"\x1f\x8b",
            "--input: {0}/photos.tar.gz is a compressed tar. .* gunzip makes one that is read",
        ),
        ("ILSVRC2012_img_val.tar", b"\x1f\x8b", "--input: .*_val.tar is a gzip archive. Expected .*: unpack it"),
        (
            "zips/a.zip",
            b"PK\3\4",
            "--input: {0}/zips is a folder of archives. Expected .*: unpack them, or name one tar",
        ),
        ("in/ILSVRC2012_img_train.tar.gz", b"", "--input: .*/in/ILSVRC2012_img_train.tar.gz is compressed. .*: gunzip"),
        ("set/train-00000-of-00001.tfrecord", b"", "--input: {0}/set is a dataset. .*: its records are no files"),
        ("photos.csv", b"image", "--input: {0}/photos.csv is a file .csv. Expected .*: name the files or their folder"),
    ],
)
def test_what_cannot_be_read_is_named(name, data, message, tmp_path):
    folder = str(tmp_path)
    storage.create(f"{folder}/{name}", data)
    storage.create(f"{folder}/set/manifest.json", b"")
    with pytest.raises(UserError, match=message.format(folder)) as caught:
        main(["--input", f"{folder}/{name.partition('/')[0]}", "--output", f"{folder}/out"])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_tar_may_have_any_name_and_outputs_lie_outside(tree, tmp_path):
    photo = next(path for path in tree.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    with tarfile.open(tmp_path / "photos", "w") as archive:
        archive.add(photo, "x/photo.jpg")
    assert find_source(f"{tmp_path}/photos").parts[0].files is None
    storage.create(f"{tmp_path}/in/a.jpg", photo.read_bytes())
    for output in ("in", "in/set"):
        with pytest.raises(UserError, match="--output: expected a folder that is not in --input .*/in. Received .*/in"):
            main(["--input", f"{tmp_path}/in", "--output", f"{tmp_path}/{output}"])
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.jpg"]


def test_help_shows_our_options_first(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert text.index("--short-side") < text.index("Options of Apache Beam")


def test_a_dataset_without_records_is_refused(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        storage.create(f"{tmp_path}/in/{name}", b"no image")
    out = f"{tmp_path}/out"
    with pytest.raises(UserError, match=f"no input can be used: 2 of 2 rejected, see {out}/rejects"):
        main(["--input", f"{tmp_path}/in", "--output", out])
    assert [storage.relative(name, out) for name in storage.find(out)] == [
        "rejects/train.jsonl",
        "train-00000-of-00001.tfrecord",
    ]
