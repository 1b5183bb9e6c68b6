"""From real small datasets to batches: each record once, the same whoever computes them, and true to the pixels."""

from __future__ import annotations

import itertools
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from masks.sampling import MaskSpec, sample_mask
from samples import image_record, mask_record, write_dataset
from trainer import storage
from trainer.config import DataConfig
from trainer.data import shard_cache
from trainer.data.batches import check_datasets, training_batches
from trainer.data.manifest import MANIFEST, load_manifest
from trainer.errors import UserError

SIZE, IMAGES, MASKS = 16, 11, 7
# A window smaller than shards, fewer streams than shards, and masks as they are stored.
CONFIG = DataConfig(shuffle_buffer=4, streams=2, mask_flip=False, mask_turn=False)
SPEC = MaskSpec(generator="shapes", height=SIZE, width=SIZE, hole_ratio=(0.2, 0.5), seed=3)


def hole_record(index):
    return mask_record(sample_mask(SPEC, index), index)


def write_shards(folder, kind, made, shards, split="train"):
    """The last shard is empty, as a shard of few records can be."""
    parts = [made[i :: shards - 1] for i in range(shards - 1)]
    write_dataset(folder, kind, {split: [*parts, []]}, SIZE)


def write_both(root):
    """Images of one gray each, 10, 30, 50 ..., by which a crop can be told, and masks 0, 1, 2 ..."""
    grays = [np.full((20 + i, 30, 3), 10 + 20 * i, np.uint8) for i in range(IMAGES)]
    write_shards(f"{root}/images", "image", [image_record(gray, f"{i}.jpg") for i, gray in enumerate(grays)], shards=4)
    write_shards(f"{root}/masks", "mask", [hole_record(i) for i in range(MASKS)], shards=3)
    return str(root)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_both(tmp_path_factory.mktemp("data"))


def batches(root, count, batch_size=4, config=CONFIG, seed=0, **options):
    both = f"{root}/images", f"{root}/masks", config
    dataset = training_batches(*both, image_size=SIZE, batch_size=batch_size, seed=seed, **options)
    return [tuple(part.numpy() for part in batch) for batch in itertools.islice(dataset, count)]


def which(found):
    """Numbers of the images and of the masks in batches, in order."""
    grays = np.concatenate([target.mean(axis=(1, 2, 3)) * 255 for target, _ in found])
    known = [sample_mask(SPEC, i).tobytes() for i in range(max(IMAGES, MASKS))]
    masks = [known.index(mask[..., 0].astype(np.uint8).tobytes()) for _, part in found for mask in part]
    numbers = np.rint((grays - 10) / 20).astype(int)
    assert np.abs(grays - (10 + 20 * numbers)).max() < 2
    return numbers.tolist(), masks


def assert_same(found, expected):
    for (target, mask), (other_target, other_mask) in zip(found, expected, strict=True):
        assert target.dtype == mask.dtype == np.float32 and target.shape == (*mask.shape[:3], 3)
        np.testing.assert_array_equal(target, other_target, strict=True)
        np.testing.assert_array_equal(mask, other_mask, strict=True)


@pytest.fixture(scope="module")
def plain(root):
    """Three epochs of one worker."""
    return batches(root, IMAGES * MASKS, batch_size=1)


def test_each_record_comes_once_per_epoch(plain):
    assert all(target.shape == (1, SIZE, SIZE, 3) and np.isin(mask, (0, 1)).all() for target, mask in plain)
    images, masks = which(plain)
    image_epochs = [images[i : i + IMAGES] for i in range(0, len(images), IMAGES)]
    mask_epochs = [masks[i : i + MASKS] for i in range(0, len(masks), MASKS)]
    assert all(sorted(epoch) == list(range(IMAGES)) for epoch in image_epochs)
    assert all(sorted(epoch) == list(range(MASKS)) for epoch in mask_epochs)
    # The order is new each time, and so is the mask that an image gets.
    assert len(set(map(tuple, image_epochs))) == len(image_epochs)
    assert len(set(map(tuple, mask_epochs))) > len(mask_epochs) / 2
    assert len(set(zip(images, masks, strict=True))) > IMAGES * MASKS / 2


def test_the_order_follows_from_the_seed(root, plain):
    count = 2 * IMAGES
    assert_same(batches(root, count, batch_size=1), plain[:count])
    images, masks = which(plain[:count])
    other_images, other_masks = which(batches(root, count, batch_size=1, seed=1))
    assert other_images != images and other_masks != masks


def test_nothing_else_has_a_say_in_the_order(root, plain):
    keras.utils.set_random_seed(12345)
    try:
        assert_same(batches(root, 5, batch_size=1), plain[:5])
    finally:
        tf.random.set_seed(None)


def test_images_and_masks_have_orders_of_their_own(root, tmp_path):
    pathlib.Path(tmp_path, "images").symlink_to(f"{root}/images")
    write_shards(f"{tmp_path}/masks", "mask", [hole_record(i) for i in range(IMAGES)], shards=4)
    images, masks = which(batches(tmp_path, IMAGES, batch_size=1))
    assert sorted(images) == sorted(masks) and images != masks


@pytest.mark.parametrize("done", [1, 4, 9])  # in the first epoch and, of images and masks, in later ones
def test_an_interrupted_run_continues_bit_for_bit(root, done):
    whole = batches(root, done + 3)
    assert_same(batches(root, 3, start=done * 4), whole[done:])


@pytest.mark.parametrize("workers", [2, 3, 4])  # of two streams each reads one, or all of them read both
def test_workers_share_the_examples_of_one(root, workers):
    config = DataConfig(shuffle_buffer=4, streams=2, mask_dilate=3, mask_shift=0.2, mask_crop=0.5)
    whole = batches(root, 48, batch_size=1, config=config, keys=True)
    start, each = 12, 12 // workers
    for worker in range(workers):
        share = batches(root, 3, batch_size=each, config=config, keys=True, worker=worker, workers=workers, start=start)
        for batch, place in itertools.product(range(3), range(each)):
            number = start + batch * 12 + place * workers + worker
            for found, expected in zip(share[batch], whole[number], strict=True):
                np.testing.assert_array_equal(found[place], expected[0])


def test_the_keys_name_what_a_batch_was_made_of(root, plain):
    found = batches(root, 2 * IMAGES, batch_size=1, keys=True)
    assert_same([batch[:2] for batch in found], plain[: 2 * IMAGES])
    images, masks = which(plain[: 2 * IMAGES])
    assert [f"{i}.jpg".encode() for i in images] == [batch[2][0] for batch in found]
    assert masks == [batch[3][0] for batch in found]


def test_nothing_is_skipped_or_seen_twice_through_interruptions_and_other_numbers_of_workers(root):
    seen, masks, start = [], [], 0
    for workers, count in ((1, 2), (3, 1), (2, 3), (4, 1), (6, 2)):  # 12 examples a step
        parts = [
            batches(root, count, batch_size=12 // workers, keys=True, worker=w, workers=workers, start=start)
            for w in range(workers)
        ]
        for step in range(count):
            for place in range(12 // workers):
                seen += [part[step][2][place] for part in parts]
                masks += [part[step][3][place] for part in parts]
        start += 12 * count
    assert len(seen) == 108
    for keys, each in ((seen, IMAGES), (masks, MASKS)):
        epochs = [keys[i : i + each] for i in range(0, len(keys) - each + 1, each)]
        assert all(len(set(epoch)) == each for epoch in epochs)


def test_crops_and_turned_masks_are_new_each_time_and_independent(tmp_path):
    y, x = np.mgrid[:60, :60]
    ramps = np.stack([4 * x, 4 * y, 0 * x], axis=-1).astype(np.uint8)
    write_shards(f"{tmp_path}/images", "image", [image_record(ramps)], shards=2)
    write_shards(f"{tmp_path}/masks", "mask", [hole_record(1)], shards=2)
    variants = [np.rot90(sample_mask(SPEC, 1), k)[:, ::step] for k in range(4) for step in (1, -1)]
    crops, turns = [], []
    for target, mask in batches(tmp_path, 300, batch_size=1, config=DataConfig()):
        turns.append([np.array_equal(variant, mask[0, ..., 0]) for variant in variants])
        down = target[0, -1, 0, 1] - target[0, 0, 0, 1]
        crops.append([down, *target[0, ..., :2].mean(axis=(0, 1)), target[0, 0, 0, 0] < target[0, 0, -1, 0]])
    assert (np.sum(turns, axis=1) == 1).all() and np.min(np.sum(turns, axis=0)) > 15  # of 37.5, or five sigma less
    assert len(np.unique(crops, axis=0)) > 225  # the largest have few places to be; in pairs there would be 150
    assert np.abs(np.corrcoef(np.transpose(crops), np.transpose(turns))[:4, 4:]).max() < 4 / 300**0.5


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_record_that_cannot_be_decoded_stops_training_with_its_name(tmp_path, kind):
    grays = [image_record(np.full((20, 30, 3), 9, np.uint8), f"{i}.jpg") for i in range(3)]
    holes = [hole_record(i) for i in range(3)]
    damaged = (grays if kind == "images" else holes)[1]
    (grays if kind == "images" else holes)[1] = damaged.replace(b"\xff\xc4", b"\xff\xdd").replace(b"IDAT", b"IDAX")
    write_shards(f"{tmp_path}/images", "image", grays, shards=2)
    write_shards(f"{tmp_path}/masks", "mask", holes, shards=2)
    name = r"\(1\.jpg\)" if kind == "images" else rf"with record 1 of {tmp_path}/masks/train-00000-of-00002.tfrecord"
    with pytest.raises(tf.errors.UnknownError, match=rf"UserError: example \d+ cannot be decoded: .*{name}"):
        batches(tmp_path, 3, batch_size=1)


def test_only_the_configs_split_is_read(tmp_path):
    for split, gray in (("train", 30), ("val", 90)):
        folder = f"{tmp_path}/{split}"
        flat = np.full((20, 20, 3), gray, np.uint8)
        write_shards(f"{folder}/images", "image", [image_record(flat)], 2, split)
        write_shards(f"{folder}/masks", "mask", [hole_record(0)], 2, split)
        ((target, _),) = batches(folder, 1, batch_size=2, config=DataConfig(split=split))
        np.testing.assert_allclose(target * 255, gray, atol=1)
        with pytest.raises(UserError, match=f"split: expected one of \\['{split}'\\]. Received 'test'"):
            batches(folder, 1, config=DataConfig(split="test"))


def first_shard(folder):
    return next(path for path in sorted(pathlib.Path(folder).glob("*.tfrecord")) if path.stat().st_size)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_corrupt_or_missing_shard_stops_training_with_its_name(tmp_path, kind):
    root = write_both(tmp_path)
    shard = first_shard(f"{root}/{kind}")
    changed = bytearray(shard.read_bytes())
    changed[len(changed) // 2] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(tf.errors.UnknownError, match=f"{shard} is corrupt: expected crc32c"):
        batches(root, 3)
    shard.unlink()
    with pytest.raises(tf.errors.UnknownError, match=f"{shard} does not exist"):
        batches(root, 3)


def test_a_bucket_gives_the_same_batches_through_a_verified_cache(bucket, tmp_path, monkeypatch, root):
    monkeypatch.setattr(shard_cache, "cache_folder", lambda: str(tmp_path / "cache"))
    write_both(bucket)
    expected = batches(root, 7)
    assert_same(batches(bucket, 7), expected)
    cached = sorted((tmp_path / "cache").glob("*.tfrecord"))
    assert len(cached) == 5  # three shards of images and two of masks hold records
    cached[0].write_bytes(cached[0].read_bytes()[:-5])
    assert_same(batches(bucket, 7), expected)
    assert sorted((tmp_path / "cache").glob("*.tfrecord")) == cached
    for address in storage.select(bucket + "/**/*.tfrecord").find():
        storage.delete(address)
    assert_same(batches(bucket, 7), expected)


def test_check_datasets_counts(root, bucket, tmp_path):
    images, masks = f"{root}/images", f"{root}/masks"
    assert check_datasets(images, masks, CONFIG, SIZE) == (IMAGES, MASKS)
    write_shards(f"{tmp_path}/empty", "mask", [], shards=2)
    for arguments, message in [
        ((images, masks, CONFIG, 32), f"{masks}: expected masks of 32 x 32 .*Received 16 x 16"),
        ((masks, masks, CONFIG, SIZE), f"{masks}: expected a dataset of image records"),
        ((images, images, CONFIG, SIZE), f"{images}: expected a dataset of mask records"),
        ((images, masks, DataConfig(split="val"), SIZE), "split: expected one of .*'train'.*Received 'val'"),
        ((images, f"{tmp_path}/empty", CONFIG, SIZE), "empty has no records in split 'train'"),
        ((f"{tmp_path}/no", masks, CONFIG, SIZE), f"image dataset {tmp_path}/no does not exist"),
        ((images, f"{bucket}-no/masks", CONFIG, SIZE), f"{bucket}-no does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            check_datasets(*arguments)


def test_a_cache_too_small_for_what_is_open_at_once_is_refused(bucket, root):
    write_both(bucket)
    sizes = [
        shard.bytes
        for name in ("images", "masks")
        for shard in load_manifest(f"{bucket}/{name}", name[:-1]).split("train")
    ]
    both = f"{bucket}/images", f"{bucket}/masks"
    # With two streams three shards may be open, of each dataset; the images have three, the masks two.
    fits, short = (DataConfig(streams=2, cache_gb=(sum(sizes) + change) / 1e9) for change in (1, -1))
    assert check_datasets(*both, fits, SIZE) == (IMAGES, MASKS)
    with pytest.raises(UserError, match="data.cache_gb: expected .* data.streams=2"):
        check_datasets(*both, short, SIZE)
    assert check_datasets(*both, short, SIZE, workers=2) == (IMAGES, MASKS)
    assert check_datasets(f"{root}/images", f"{root}/masks", short, SIZE) == (IMAGES, MASKS)


def test_masks_that_are_not_square_are_refused(root, tmp_path):
    write_shards(f"{tmp_path}/masks", "mask", [hole_record(0)], shards=2)
    manifest = tmp_path / "masks" / MANIFEST
    fields = json.loads(manifest.read_bytes())
    fields["parameters"]["width"] = 32
    manifest.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="Received 16 x 32"):
        check_datasets(f"{root}/images", f"{tmp_path}/masks", CONFIG, SIZE)
