"""Damaged files by the hundred: none ends the job, none gets lost, and TensorFlow reads every record."""

from __future__ import annotations

import collections
import io
import json
import random
from pathlib import Path

import pytest
import tensorflow as tf
from PIL import Image

from pipelines.build_imagenet import main
from trainer.data import records
from trainer.data.manifest import load_manifest

PHOTOS = sorted((Path(__file__).resolve().parents[1] / "pipelines" / "photos").rglob("*.jpg"))
FORMATS = [  # as many JPEGs as all others
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "RGB", {"restart_marker_rows": 1}),
    ("JPEG", "RGB", {"subsampling": 0}),
    ("JPEG", "CMYK", {}),
    ("JPEG", "L", {}),
    ("PNG", "RGB", {}),
    ("PNG", "P", {}),
    ("PNG", "RGBA", {}),
    ("WEBP", "RGB", {}),
    ("GIF", "P", {}),
    ("BMP", "RGB", {}),
]


def make_originals() -> list[bytes]:
    found = []
    for number, photo in enumerate(PHOTOS):
        with Image.open(photo) as whole:
            picture = whole.convert("RGB").resize((48 + number, 40))
        for kind, mode, options in FORMATS:
            file = io.BytesIO()
            picture.convert(mode).save(file, kind, **options)
            found.append(file.getvalue())
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bits turned, the end cut off, a header's bytes changed, a piece taken out, put in or moved to the end."""
    broken, how = bytearray(data), rng.randrange(6)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randint(1, 60))
    if how == 0:
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == 1:
        del broken[start:]
    elif how == 2:
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(min(len(data), 600))] = rng.randrange(256)
    elif how == 3:
        del broken[start:end]
    elif how == 4:
        broken[start:start] = rng.randbytes(end - start)
    else:
        broken = broken[:start] + broken[end:] + broken[start:end]
    return bytes(broken)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
@pytest.mark.parametrize("options", [[], ["--short-side", "24"]], ids=["kept", "shrunk"])
def test_mutated_files_are_records_or_rejects(options, tmp_path, soak):
    rng, originals = random.Random(len(options)), make_originals()
    count = 2000 if soak else 150
    for number in range(count):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number:04d}").write_bytes(mutate(rng.choice(originals), rng))
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "set"), "--num-shards", "1"]
    assert main([*arguments, "--max-pixels", "1000000", *options]) == 3

    manifest = load_manifest(str(tmp_path / "set"), "image")
    lines = [json.loads(x) for x in (tmp_path / "set" / "rejects" / "train.jsonl").read_text().splitlines()]
    outcomes = collections.Counter(Path(line["source"]).name for line in lines)
    assert {line["error"].partition(":")[0] for line in lines} == {"ImageError"}
    for serialized in tf.data.TFRecordDataset(str(tmp_path / "set" / "train-00000-of-00001.tfrecord")):
        record = {key: value.numpy() for key, value in records.parse_image(serialized).items()}
        outcomes[record["image/filename"].decode().removeprefix("train/")] += 1
        height, width = int(record["image/height"]), int(record["image/width"])
        # What training does: a part of the picture, not as large as all of it.
        top, left = height // 3, width // 3
        window = [top, left, height - top, width - left]
        part = tf.io.decode_and_crop_jpeg(record["image/encoded"], window, channels=3)
        assert part.shape == (height - top, width - left, 3)
        assert tf.io.decode_jpeg(record["image/encoded"]).shape == (height, width, 3)
    assert outcomes == {f"{number:04d}": 1 for number in range(count)}
    assert manifest.counts == {"inputs": count, "records": count - len(lines), "rejects": len(lines)}
    assert 0.2 * count < len(lines) < 0.7 * count  # or the mutations are too weak, or too strong, to tell anything
