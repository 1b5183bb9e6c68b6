"""What a dry run says, against counts by hand; addresses that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from samples import image_record, mask_record, write_dataset
from trainer import runs, storage, train
from trainer.config import DataConfig, LossConfig, PhaseConfig, ScalingConfig, TrainConfig, UNetConfig
from trainer.errors import UserError
from trainer.model.unet import build_unet
from trainer.training import dry_run

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


def write_datasets(folder):
    black = np.zeros((9, 9, 3), np.uint8)
    write_dataset(f"{folder}/images", "image", {"train": [[image_record(black, str(i)) for i in range(10)]]})
    masks = np.ones((7, 8, 8), np.uint8)
    for i, mask in enumerate(masks):
        mask[:3, i:] = 0
    made = [mask_record(mask, i) for i, mask in enumerate(masks)]
    write_dataset(f"{folder}/masks", "mask", {"train": [made[:5]], "val": [made[5:]]}, size=8)


def test_the_command_says_it_all_and_starts_no_ray(bucket, tmp_path):
    write_datasets(bucket)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise SystemExit('Ray was imported')\n")
    settings = ["unet.image_size=8", "unet.filters=4", "unet.kernels=3", "initial.epochs=2", "global_batch_size=4"]
    command = [sys.executable, "-m", "trainer.train", "--preset", "demo", "--dry-run"]
    command += [part for setting in settings for part in ("--set", setting)]
    command += ["--images", f"{bucket}/images", "--masks", f"{bucket}/masks", "--run", f"{bucket}/run"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "initial.steps = 5" in lines and "initial.epochs = 0.0" in lines and "unet.filters = (4,)" in lines
    # encoder 3*3*3*4 + 4 with bias; decoder of encoder, image and interpolated image 3*3*(4+3+3)*3 + 3.
    assert "parameters 385, 385 trainable" in lines
    assert "steps      5 of 4 examples: 2.00 epochs (5 initial, 0 finetune)" in lines
    assert f"images     {bucket}/images: 10 in train" in lines
    assert f"masks      {bucket}/masks: 5 in train, 2 in val" in lines
    assert (
        "reads      each shard of images 1.00 times, of masks 1.00 an epoch, by 1 worker with data.streams=16" in lines
    )
    assert not any(line.startswith(("warning", "workers")) for line in lines)
    assert "no validation: it needs unet.image_size of 11 or more" in lines
    assert f"writable   {bucket}/run" in lines and "starts     at step 0" in lines
    assert any(line.startswith("memory     about ") for line in lines)
    assert storage.find(f"{bucket}/run") == []  # and leaves nothing


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Datasets of 40 image shards and 20 mask shards, of six records each."""
    folder, black = tmp_path_factory.mktemp("shards"), np.zeros((9, 9, 3), np.uint8)
    mask = np.ones((8, 8), np.uint8)
    mask[:3] = 0
    images = [[image_record(black, f"{shard}-{i}") for i in range(6)] for shard in range(40)]
    masks = [[mask_record(mask, 6 * shard + i) for i in range(6)] for shard in range(20)]
    write_dataset(f"{folder}/images", "image", {"train": images})
    write_dataset(f"{folder}/masks", "mask", {"train": masks}, size=8)
    return f"{folder}/images", f"{folder}/masks"


def reads(shards, workers, streams):
    settings = config(data=DataConfig(streams=streams), scaling=ScalingConfig(workers=workers), global_batch_size=12)
    return dry_run.describe_reads(settings, *shards, workers)


def test_shards_that_are_read_again_and_again_are_warned_of(shards):
    said = "reads      each shard of images {} times, of masks {} an epoch, by {} with data.streams={}"
    # 240 and 120 records: streams of 60 and 30 are of whole shards.
    assert reads(shards, 2, 4) == [said.format("1.00", "1.00", "2 workers", 4)]
    told, warning = reads(shards, 3, 4)  # all read all
    assert told == said.format("3.00", "3.00", "3 workers", 4)
    assert warning == (
        "warning    shards are read more than once: a new run with data.streams=auto would have 3 streams, and read "
        "those of images 1.05 times, of masks 1.10"
    )
    told, warning = reads(shards, 12, 12)  # a worker has to have a stream
    assert warning.endswith(
        "more than once: datasets of more shards (--num-shards), or fewer workers, would change that"
    )


def test_another_number_of_workers_keeps_the_order_and_says_what_it_costs(shards):
    settings = config(data=DataConfig(streams=4))
    assert dry_run.describe_change(settings, *shards, 4, 3) == (
        "3 workers instead of 4: the same examples in the same order, each shard of images 3.00 times, of masks 3.00 "
        "an epoch instead of images 1.00 times, of masks 1.00"
    )
    assert dry_run.describe_change(settings, *shards, 4, 2) == (
        "2 workers instead of 4: the same examples in the same order, and no shard is read more often"
    )


def test_automatic_streams_are_those_that_the_run_began_with(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "check_cluster", lambda address: None)
    small = ["unet.image_size=8", "unet.filters=4", "unet.kernels=3", "global_batch_size=12", "data.streams=auto"]
    command = ["--preset", "demo", "--images", shards[0], "--masks", shards[1], "--run", f"{tmp_path}/run"]
    command += ["--address", "head:6379", "--trusted-network", *(part for key in small for part in ("--set", key))]

    def plan(*settings):
        more = [part for key in settings for part in ("--set", key)]
        return train.check(train.parser().parse_args([*command, *more]))

    first = plan("scaling.workers=4")
    assert first.config.data.streams == 4 and train.describe_change(first) is None
    assert plan("scaling.workers=3").config.data.streams == 3
    assert plan("scaling.workers=3", "scaling.min_workers=2").config.data.streams == 6
    runs.settle_config(first.run, first.config)
    then = plan("scaling.workers=3")
    assert then.config.data == first.config.data
    assert train.describe_change(then).startswith("3 workers instead of 4: the same examples in the same order, each")
    with pytest.raises(UserError, match="data.streams is 4, asked for 6"):
        plan("data.streams=6")


def test_a_missing_or_cut_shard_is_named(tmp_path):
    write_datasets(tmp_path)
    shard = tmp_path / "masks" / "train-00000-of-00001.tfrecord"
    assert "all 1 shards" in dry_run.check_shards(f"{tmp_path}/masks", "mask", "train")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="train-00000-of-00001.tfrecord: expected a shard of .* bytes. Received"):
        dry_run.check_shards(f"{tmp_path}/masks", "mask", "train")
    shard.unlink()
    with pytest.raises(UserError, match="train-00000-of-00001.tfrecord is missing"):
        dry_run.check_shards(f"{tmp_path}/masks", "mask", "train")
