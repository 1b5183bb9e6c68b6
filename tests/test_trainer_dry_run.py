"""What a dry run says, against counts by hand; addresses that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from masks.codec import encode_mask
from trainer import datasets, dry_run, images, records, storage
from trainer.command import UserError
from trainer.config import LossConfig, PhaseConfig, ScalingConfig, TrainConfig, UNetConfig
from trainer.unet import build_unet

L1 = LossConfig(perceptual=0, style_output=0, style_composite=0)


def config(**changes):
    fields = {
        "unet": UNetConfig(image_size=8, filters=(4,), kernels=(3,)),
        "loss": L1,
        "initial": PhaseConfig(steps=6),
        "scaling": ScalingConfig(workers=2),
        "global_batch_size": 4,
    }
    return TrainConfig(**fields | changes)


def estimate(settings):
    size = settings.unet.image_size
    return dry_run.estimate_memory(settings, build_unet(settings.unet, settings.precision, height=size, width=size))


def test_memory_of_a_network_of_one_level_by_hand():
    needs = estimate(config(ema_decay=0.9))
    # encoder 3*3*3*4 + 4 with bias; decoder 3*3*(4+3)*3 + 3.
    weights = 112 + 192
    assert needs["variables"] == needs["gradients"] == needs["average"] == needs["validation"] == 4 * weights
    assert needs["optimizer"] == 2 * 4 * weights and needs["perceptual"] == 0
    # Of each of 2 examples, values per pixel, at 8 x 8 pixels: image 3, mask 1, masked image 3, up 4, its mask 1,
    # decoder 3 + 1, output 3; at 4 x 4: encoder 4 + 1, ReLU 4.
    assert needs["activations"] == 2 * 4 * (64 * (3 + 1 + 3 + 4 + 1 + 4 + 3) + 16 * (5 + 4))


def test_half_precision_halves_what_is_computed_in_it():
    full, half = estimate(config()), estimate(config(precision="mixed_bfloat16"))
    # image, both masks, the encoder's mask and the output stay as they are
    stays = 2 * 4 * (64 * (3 + 1 + 1 + 1 + 3) + 16)
    assert half["activations"] == stays + (full["activations"] - stays) / 2
    assert half["variables"] == full["variables"] and half["average"] == 0


def test_the_perceptual_network_takes_its_share():
    needs = estimate(config(loss=LossConfig()))
    # 3 pictures of each of 2 examples: 2 + 2 + 3 convolutions and 3 poolings.
    per_picture = 64 * 64 * 2 + 16 * 64 + 16 * 128 * 2 + 4 * 128 + 4 * 256 * 3 + 256
    assert needs["perceptual"] == 3 * 2 * 4 * per_picture


def write_dataset(folder, kind, made):
    shards = []
    for split, items in made.items():
        data, name = records.frame_records(items), datasets.shard_name(split, 0, 1)
        storage.create(f"{folder}/{name}", data)
        crc = storage.crc32c(data)
        shards.append(datasets.Shard(name=name, split=split, records=len(items), bytes=len(data), crc32c=crc))
    count = sum(map(len, made.values()))
    fields = {"kind": kind, "seed": 0, "code_version": "0", "parameters": {"height": 8, "width": 8}}
    counts = {"inputs": count, "records": count, "rejects": 0}
    manifest = datasets.Manifest(**fields, counts=counts, shards=tuple(shards))
    storage.create(f"{folder}/{datasets.MANIFEST}", datasets.dump_manifest(manifest))


def image_record(name):
    import numpy as np

    values = {"image/encoded": images.encode_jpeg(np.zeros((9, 9, 3), np.uint8)), "image/format": "JPEG"}
    values |= {"image/height": 9, "image/width": 9, "image/channels": 3, "image/colorspace": "RGB"}
    values |= {"image/filename": name, "image/class/label": -1, "image/class/synset": ""}
    return records.encode_record(values, records.IMAGE_FEATURES)


def mask_record(index):
    mask = np.ones((8, 8), np.uint8)
    mask[:3, index:] = 0
    values = {"mask/encoded": encode_mask(mask), "mask/height": 8, "mask/width": 8, "mask/hole_ratio": 0.3}
    values |= {"mask/bucket": 2, "mask/touches_border": 0, "mask/generator": "shapes", "mask/index": index}
    return records.encode_record(values, records.MASK_FEATURES)


def write_datasets(folder):
    write_dataset(f"{folder}/images", "image", {"train": [image_record(str(i)) for i in range(10)]})
    masks = [mask_record(i) for i in range(7)]
    write_dataset(f"{folder}/masks", "mask", {"train": masks[:5], "val": masks[5:]})


def test_the_command_says_it_all_and_starts_no_ray(bucket, tmp_path):
    write_datasets(bucket)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise SystemExit('Ray was imported')\n")
    settings = ["unet.image_size=8", "unet.filters=4", "unet.kernels=3", "initial.epochs=2", "global_batch_size=4"]
    command = [sys.executable, "-m", "trainer.train", "--preset", "demo", "--dry-run"]
    command += [part for setting in settings for part in ("--set", setting)]
    command += ["--images", f"{bucket}/images", "--masks", f"{bucket}/masks", "--run", f"{bucket}/run"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "initial.steps = 5" in lines and "initial.epochs = 0.0" in lines and "unet.filters = (4,)" in lines
    assert "parameters 304, 304 trainable" in lines
    assert "steps      5 of 4 examples: 2.00 epochs (5 initial, 0 finetune)" in lines
    assert f"images     {bucket}/images: 10 in train" in lines
    assert f"masks      {bucket}/masks: 5 in train, 2 in val" in lines
    assert "no validation: it needs unet.image_size of 11 or more" in lines
    assert f"writable   {bucket}/run" in lines and "starts     at step 0" in lines
    assert any(line.startswith("memory     about ") for line in lines)
    assert storage.find(f"{bucket}/run") == []  # and leaves nothing


def test_a_missing_or_cut_shard_is_named(tmp_path):
    write_datasets(tmp_path)
    shard = tmp_path / "masks" / "train-00000-of-00001.tfrecord"
    assert "all 1 shards" in dry_run.check_shards(f"{tmp_path}/masks", "mask", "train")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="train-00000-of-00001.tfrecord: expected a shard of .* bytes. Received"):
        dry_run.check_shards(f"{tmp_path}/masks", "mask", "train")
    shard.unlink()
    with pytest.raises(UserError, match="Received none"):
        dry_run.check_shards(f"{tmp_path}/masks", "mask", "train")


def test_a_place_that_cannot_be_written_is_told(bucket, tmp_path):
    assert dry_run.check_writable(f"{bucket}/run").endswith("/run")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="cannot write to"):
        dry_run.check_writable(str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match="does not exist"):
        dry_run.check_writable("gs://pconv-no-such-bucket/run")
