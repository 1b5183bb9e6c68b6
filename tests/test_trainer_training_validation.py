"""Which pairs are held out, by a rule written out, and their scores, against a network called for one at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from masks.coverage import RATIO_BUCKETS, bucket_of, hole_ratio
from masks.sampling import MaskSpec, sample_mask
from samples import image_record, mask_record, write_dataset
from trainer import checkpoints, storage
from trainer.config import PhaseConfig, ScalingConfig, TrainConfig, UNetConfig, ValidationConfig
from trainer.errors import UserError
from trainer.images import rgb
from trainer.metrics import intervals, validation_metrics
from trainer.model.unet import build_unet
from trainer.training import validation

SIZE, IMAGES, MASKS = 16, 3, 20
CONFIG = TrainConfig(
    unet=UNetConfig(image_size=SIZE, filters=(4, 6), kernels=(5, 3)),
    initial=PhaseConfig(steps=1),
    scaling=ScalingConfig(workers=1),
    validation=ValidationConfig(every=10, examples=MASKS, pictures=3),
    global_batch_size=3,
)


def picture(index):
    return np.random.default_rng(index).integers(0, 256, (SIZE + 5 * index, SIZE + 9, 3), np.uint8)


def mask(index):
    spec = MaskSpec(generator="shapes", height=SIZE, width=SIZE, hole_ratio=RATIO_BUCKETS[index % 6], seed=3)
    return sample_mask(spec, index)


def halves(made):
    return [made[: len(made) // 2], made[len(made) // 2 :]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("validation")
    pictures = [image_record(picture(i), f"{i}.jpg", quality=95) for i in range(IMAGES)]
    holes = [mask_record(mask(i), i) for i in range(MASKS)]
    for prefix, split in (("", "val"), ("train-", "train")):
        write_dataset(f"{root}/{prefix}images", "image", {split: halves(pictures)})
        write_dataset(f"{root}/{prefix}masks", "mask", {split: halves(holes)}, SIZE)
    return root


def held_out(place, pairs=MASKS):
    return validation.HeldOut(images=f"{place}/images", masks=f"{place}/masks", pairs=pairs)


def test_masks_take_turns_through_the_intervals_on_every_image(place):
    pairs = validation.read_pairs(held_out(place), "val", 0, 1)
    assert [pair.number for pair in pairs] == list(range(MASKS))
    for pair in pairs:
        np.testing.assert_array_equal(pair.mask, mask(pair.number))
        assert pair.bucket == pair.number % 6 == bucket_of(hole_ratio(pair.mask))
        # Six neighbors share an image, in the order of the split, again from the first after the last.
        pixels = rgb.decode_rgb(rgb.encode_jpeg(picture([0, 1, 2, 0][pair.number // 6])))
        np.testing.assert_array_equal(pair.target, rgb.center_square(pixels, SIZE))


@pytest.mark.parametrize("workers", [2, 3, 30])
def test_workers_share_the_pairs(place, workers):
    whole = {pair.number: pair for pair in validation.read_pairs(held_out(place), "val", 0, 1)}
    parts = [validation.read_pairs(held_out(place), "val", worker, workers) for worker in range(workers)]
    assert sorted(pair.number for part in parts for pair in part) == list(range(MASKS))
    for worker, part in enumerate(parts):
        for pair in part:
            assert pair.number % workers == worker
            np.testing.assert_array_equal(pair.target, whole[pair.number].target)


def test_only_the_shards_that_are_needed_are_read(place, monkeypatch):
    read, real = [], storage.read
    monkeypatch.setattr(storage, "read", lambda address, *rest: read.append(address) or real(address, *rest))
    pairs = validation.read_pairs(held_out(place, pairs=6), "val", 0, 1)
    # Image 0 is the only one of the first of two shards, and masks 0 to 5 are among its ten.
    assert len(pairs) == 6
    assert read == [f"{place}/{name}/val-00000-of-00002.tfrecord" for name in ("images", "masks")]


def test_a_corrupt_shard_is_named(place, tmp_path):
    folder = write_dataset(tmp_path / "masks", "mask", {"val": [[mask_record(mask(i), i)] for i in (0, 1)]}, SIZE)
    with open(f"{folder}/val-00001-of-00002.tfrecord", "ab") as file:
        file.write(b"more")
    broken = validation.HeldOut(images=f"{place}/images", masks=folder, pairs=2)
    with pytest.raises(UserError, match="val-00001-of-00002.tfrecord is corrupt"):
        validation.read_pairs(broken, "val", 0, 1)


def test_cells_are_means_of_the_scores_of_each_pair(place):
    network = build_unet(CONFIG.unet, seed=5)
    arrays = checkpoints.read_variables(network.variables)
    pairs = validation.read_pairs(held_out(place), "val", 0, 1)
    validator = validation.Validator(tf.distribute.get_strategy(), CONFIG, pairs, MASKS)
    validator.load(arrays)
    cells = validator.validate(7).cells

    rows = []
    for pair in pairs:  # one by one, and with anything under the holes
        holes = pair.mask[..., None] == 0
        output = network([np.where(holes, 0.7, pair.target / 255)[None], pair.mask[None, ..., None]], training=False)
        filled = np.rint(np.clip(output[0], 0, 1) * 255).astype(np.uint8)
        found = intervals.score(np.where(holes, filled, pair.target), pair.target, pair.mask)
        rows.append(found | {"bucket": pair.bucket})
    for bucket in (*range(6), intervals.ALL):
        members = [row for row in rows if bucket in (row["bucket"], intervals.ALL)]
        assert cells[bucket]["count"] == len(members)
        for name in validation_metrics():
            expected = math.fsum(row[name] for row in members) / len(members)
            assert cells[bucket][name] == pytest.approx(expected, rel=1e-4), (bucket, name)
    # Other weights, other scores; the same ones, the same.
    validator.load({name: array * 0.9 for name, array in arrays.items()})
    assert validator.validate(8).cells[intervals.ALL]["psnr"] != cells[intervals.ALL]["psnr"]
    validator.load(arrays)
    assert validator.validate(9) == validation.Validated(step=9, cells=cells)


def test_outputs_that_are_not_finite_fail_and_enter_no_mean(place):
    pairs = validation.read_pairs(held_out(place, pairs=3), "val", 0, 1)
    validator = validation.Validator(tf.distribute.get_strategy(), CONFIG, pairs, 3)
    arrays = checkpoints.read_variables(build_unet(CONFIG.unet, seed=5).variables)
    validator.load({name: array * np.float32("nan") for name, array in arrays.items()})
    cells = validator.validate(7).cells
    assert all(cell["count"] == cell["failed"] and np.isnan(cell["psnr"]) for cell in cells.values())
    assert cells[intervals.ALL]["count"] == 3
    output = pairs[0].target / np.float32(255)
    assert validation._score(pairs[0], output)[0] == np.inf
    output[0, 0, 0] = np.nan  # a valid pixel, which the composite does not take from the network
    assert np.all(np.isnan(validation._score(pairs[0], output)))


def test_pictures_show_the_first_pairs(place):
    pairs = validation.read_pairs(held_out(place), "val", 0, 1)
    validator = validation.Validator(tf.distribute.get_strategy(), CONFIG, pairs, MASKS)
    targets, masks = validator.examples()
    assert targets.shape == (3, SIZE, SIZE, 3) and masks.shape == (3, SIZE, SIZE, 1)
    np.testing.assert_allclose(targets[2] * 255, pairs[2].target, atol=1e-3)
    assert validator.draw(targets, masks).shape == (3 * SIZE, 4 * SIZE, 3)


def find(place, config=CONFIG.validation, size=SIZE, kind="", val_images=None, val_masks=None):
    folders = (f"{place}/{kind}images", f"{place}/{kind}masks")
    return validation.find_held_out(config, size, *folders, val_images, val_masks)


def test_what_is_held_out_is_found_and_told(place):
    found, told = find(place)
    assert found == held_out(place)
    assert told == "validation every 10 steps: 20 masks on 3 images of split 'val'"
    found, told = find(place, ValidationConfig(every=5, examples=7))
    assert found.pairs == 7 and "7 masks on 2 images" in told
    found, told = find(place, kind="train-")
    assert found is None and "train-images has no split 'val' (--val-images names another)" in told
    found, _ = find(place, kind="train-", val_images=f"{place}/images", val_masks=f"{place}/masks")
    assert found == held_out(place)
    found, told = find(place, kind="train-", val_images=f"{place}/images")
    assert found is None and "train-masks has no split 'val' (--val-masks" in told
    assert find(place, size=8)[1] == "no validation: it needs unet.image_size of 11 or more"
    assert find(place, ValidationConfig(every=0)) == (None, "no validation: validation.every is 0")


def test_what_was_asked_for_has_to_be_there(place):
    with pytest.raises(UserError, match="train-images: split 'val' has no records"):
        find(place, val_images=f"{place}/train-images")
    with pytest.raises(UserError, match="expected masks of 32 x 32 .*Received 16 x 16"):
        find(place, size=32)
    with pytest.raises(UserError, match="does not exist"):
        find(place, val_masks=f"{place}/gone")


def test_a_row_shows_holes_output_composite_target():
    targets, outputs = np.full((2, 4, 4, 3), 1.0, np.float32), np.full((2, 4, 4, 3), -3.0, np.float32)
    masks = np.ones((2, 4, 4, 1), np.float32)
    masks[1, :2] = 0
    outputs[1, 0, 0] = np.nan
    grid = validation.image_grid(targets, masks, outputs)
    assert grid.shape == (8, 16, 3) and grid.dtype == np.uint8
    first, second = grid[:4], grid[4:]
    assert np.all(first[:, :4] == 255) and np.all(first[:, 4:8] == 0) and np.all(first[:, 8:] == 255)
    assert np.all(second[:2, :4] == 128) and np.all(second[2:, :4] == 255)
    assert np.all(second[:2, 8:12] == 0) and np.all(second[2:, 8:12] == 255) and np.all(second[:, 12:] == 255)
    assert validation.image_grid(targets, masks, outputs, side=2).shape == (4, 8, 3)


@pytest.mark.parametrize("side", [4, 9])
def test_small_images_keep_their_size(side):
    image = np.zeros((1, 4, 4, 3), np.float32)
    assert validation.image_grid(image, image[..., :1], image, side=side).shape == (4, 16, 3)
