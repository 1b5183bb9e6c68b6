"""From real small datasets to batches: each record once, the same whoever computes them, and true to the pixels."""

from __future__ import annotations

import itertools
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from masks.codec import encode_mask
from masks.sampling import MaskSpec, sample_mask
from trainer import data, datasets, records, storage
from trainer.command import UserError
from trainer.config import DataConfig
from trainer.images import encode_jpeg

SIZE, IMAGES, MASKS = 16, 11, 7
CONFIG = DataConfig(shuffle_buffer=4)  # smaller than the datasets
SPEC = MaskSpec(generator="shapes", height=SIZE, width=SIZE, hole_ratio=(0.2, 0.5), seed=3)


def image_record(pixels, quality=100):
    values = {"image/encoded": encode_jpeg(pixels, quality), "image/format": "JPEG", "image/colorspace": "RGB"}
    values |= {"image/height": pixels.shape[0], "image/width": pixels.shape[1], "image/channels": 3}
    values |= {"image/filename": "a", "image/class/label": -1, "image/class/synset": ""}
    return records.encode_record(values, records.IMAGE_FEATURES)


def mask_record(index):
    values = {"mask/encoded": encode_mask(sample_mask(SPEC, index)), "mask/height": SIZE, "mask/width": SIZE}
    values |= {"mask/hole_ratio": 0.3, "mask/bucket": 2, "mask/touches_border": 0}
    values |= {"mask/generator": "shapes", "mask/index": index}
    return records.encode_record(values, records.MASK_FEATURES)


def write_dataset(folder, kind, serialized, shards, split="train"):
    written = []
    for i in range(shards):
        # The last shard is empty, as a shard of few records can be.
        mine = serialized[i :: shards - 1] if i < shards - 1 else []
        framed, name = records.frame_records(mine), datasets.shard_name(split, i, shards)
        storage.create(storage.join(folder, name), framed)
        crc = storage.crc32c(framed)
        written.append(datasets.Shard(name=name, split=split, records=len(mine), bytes=len(framed), crc32c=crc))
    count = len(serialized)
    manifest = datasets.Manifest(
        kind=kind,
        parameters={"height": SIZE, "width": SIZE},
        seed=0,
        code_version="test",
        counts={"inputs": count, "records": count, "rejects": 0},
        shards=tuple(written),
    )
    storage.create(storage.join(folder, datasets.MANIFEST), datasets.dump_manifest(manifest))


def write_both(root):
    """Images of one grey each, 10, 30, 50 ..., by which a crop can be told, and masks 0, 1, 2 ..."""
    greys = [np.full((20 + i, 30, 3), 10 + 20 * i, np.uint8) for i in range(IMAGES)]
    write_dataset(f"{root}/images", "image", [image_record(grey) for grey in greys], shards=4)
    write_dataset(f"{root}/masks", "mask", [mask_record(i) for i in range(MASKS)], shards=3)
    return str(root)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_both(tmp_path_factory.mktemp("data"))


def batches(root, count, batch_size=4, config=CONFIG, seed=0, **options):
    both = f"{root}/images", f"{root}/masks", config
    dataset = data.training_batches(*both, image_size=SIZE, batch_size=batch_size, seed=seed, **options)
    return [tuple(part.numpy() for part in batch) for batch in itertools.islice(dataset, count)]


def which(found):
    """Numbers of the images and of the masks in batches, in order."""
    greys = np.concatenate([target.mean(axis=(1, 2, 3)) * 255 for target, _ in found])
    known = [sample_mask(SPEC, i).tobytes() for i in range(max(IMAGES, MASKS))]
    masks = [known.index(mask[..., 0].astype(np.uint8).tobytes()) for _, part in found for mask in part]
    numbers = np.rint((greys - 10) / 20).astype(int)
    assert np.abs(greys - (10 + 20 * numbers)).max() < 2
    return numbers.tolist(), masks


def assert_same(found, expected):
    for (target, mask), (other_target, other_mask) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(target, other_target, strict=True)
        np.testing.assert_array_equal(mask, other_mask, strict=True)


@pytest.fixture(scope="module")
def plain(root):
    """Three epochs of one worker."""
    return batches(root, IMAGES * MASKS, batch_size=1)


def test_each_record_comes_once_per_epoch(plain):
    images, masks = which(plain)
    image_epochs = [images[i : i + IMAGES] for i in range(0, len(images), IMAGES)]
    mask_epochs = [masks[i : i + MASKS] for i in range(0, len(masks), MASKS)]
    assert all(sorted(epoch) == list(range(IMAGES)) for epoch in image_epochs)
    assert all(sorted(epoch) == list(range(MASKS)) for epoch in mask_epochs)
    # The order is new each time, and so is the mask that an image gets.
    assert len(set(map(tuple, image_epochs))) == len(image_epochs)
    assert len(set(map(tuple, mask_epochs))) > len(mask_epochs) / 2
    assert len(set(zip(images, masks, strict=True))) > IMAGES * MASKS / 2


def test_batches_are_float32_in_range(plain):
    for target, mask in plain:
        assert target.shape == (1, SIZE, SIZE, 3) and mask.shape == (1, SIZE, SIZE, 1)
        assert target.dtype == mask.dtype == np.float32
        assert target.min() >= 0 and target.max() <= 1 and np.isin(mask, (0, 1)).all()


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


@pytest.mark.parametrize(("shards", "buffer"), [(4, 1), (2, IMAGES)])  # shards alone change places; records alone
def test_shards_and_records_are_shuffled_by_seed_stream_and_epoch(tmp_path, shards, buffer):
    serialized = [image_record(np.zeros((20 + i, 30, 3), np.uint8)) for i in range(IMAGES)]
    write_dataset(str(tmp_path), "image", serialized, shards)
    written = datasets.load_manifest(str(tmp_path), "image").split("train")

    def order(seed, stream):
        found = data.record_stream(str(tmp_path), written, (seed, stream), buffer).take(6 * IMAGES)
        return np.array([serialized.index(record) for record in found.as_numpy_iterator()]).reshape(6, IMAGES)

    orders = np.array([order(*path) for path in ((0, 0), (0, 1), (1, 0), (2**63 - 1, 0))])
    assert (np.sort(orders, axis=-1) == np.arange(IMAGES)).all()
    assert all(len(np.unique(epochs, axis=0)) >= 3 for epochs in orders)  # three shards have six orders
    assert len(np.unique(orders, axis=0)) == len(orders)
    if buffer == IMAGES:
        # Every epoch of each path is new, and any record may be the first: 24 epochs miss one of 11 in 10 times.
        assert len(np.unique(orders.reshape(-1, IMAGES), axis=0)) == 24
        assert len(set(orders[..., 0].flat)) >= 8


def test_images_and_masks_have_orders_of_their_own(root, tmp_path):
    pathlib.Path(tmp_path, "images").symlink_to(f"{root}/images")
    write_dataset(f"{tmp_path}/masks", "mask", [mask_record(i) for i in range(IMAGES)], shards=4)
    images, masks = which(batches(tmp_path, IMAGES, batch_size=1))
    assert sorted(images) == sorted(masks) and images != masks


@pytest.mark.parametrize("done", [1, 4, 9])  # in the first epoch and, of images and masks, in later ones
def test_an_interrupted_run_continues_bit_for_bit(root, done):
    whole = batches(root, done + 3)
    assert_same(batches(root, 3, start=done * 4), whole[done:])


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_share_the_examples_of_one(root, plain, workers):
    shares = [batches(root, 6, batch_size=4 // workers, worker=w, workers=workers, start=8) for w in range(workers)]
    for number in range(8, 8 + 6 * 4):
        batch, place = divmod(number - 8, 4)
        target, mask = shares[place % workers][batch]
        np.testing.assert_array_equal(target[place // workers], plain[number][0][0])
        np.testing.assert_array_equal(mask[place // workers], plain[number][1][0])


def test_only_the_configs_split_is_read(tmp_path):
    for split, grey in (("train", 30), ("val", 90)):
        folder = f"{tmp_path}/{split}"
        flat = np.full((20, 20, 3), grey, np.uint8)
        write_dataset(f"{folder}/images", "image", [image_record(flat)], 2, split)
        write_dataset(f"{folder}/masks", "mask", [mask_record(0)], 2, split)
        ((target, _),) = batches(folder, 1, batch_size=2, config=DataConfig(split=split))
        np.testing.assert_allclose(target * 255, grey, atol=1)
        with pytest.raises(UserError, match=f"split: expected one of \\['{split}'\\]. Received 'test'"):
            batches(folder, 1, config=DataConfig(split="test"))


def first_shard(folder):
    return next(path for path in sorted(pathlib.Path(folder).glob("*.tfrecord")) if path.stat().st_size)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_corrupt_shard_stops_training_with_its_name(tmp_path, kind):
    root = write_both(tmp_path)
    shard = first_shard(f"{root}/{kind}")
    changed = bytearray(shard.read_bytes())
    changed[len(changed) // 2] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(tf.errors.UnknownError, match=f"{shard} is corrupt: expected crc32c"):
        batches(root, 3)


def test_a_missing_shard_stops_training_with_its_name(tmp_path):
    root = write_both(tmp_path)
    shard = first_shard(f"{root}/masks")
    shard.unlink()
    with pytest.raises(tf.errors.UnknownError, match=f"{shard} does not exist"):
        batches(root, 3)


def test_a_bucket_gives_the_same_batches_through_a_verified_cache(bucket, tmp_path, monkeypatch, root):
    monkeypatch.setattr(data, "cache_folder", lambda: str(tmp_path / "cache"))
    write_both(bucket)
    expected = batches(root, 7)
    assert_same(batches(bucket, 7), expected)
    cached = sorted((tmp_path / "cache").iterdir())
    assert len(cached) == 5  # three shards of images and two of masks hold records
    cached[0].write_bytes(cached[0].read_bytes()[:-5])
    assert_same(batches(bucket, 7), expected)
    assert sorted((tmp_path / "cache").iterdir()) == cached
    for address in storage.find(bucket + "/**/*.tfrecord"):
        storage.delete(address)
    assert_same(batches(bucket, 7), expected)


def test_the_cache_is_one_users_own():
    assert pathlib.Path(data.cache_folder()).is_absolute()


def test_check_datasets_counts(root, bucket, tmp_path):
    images, masks = f"{root}/images", f"{root}/masks"
    assert data.check_datasets(images, masks, CONFIG, SIZE) == (IMAGES, MASKS)
    write_dataset(f"{tmp_path}/empty", "mask", [], shards=2)
    for arguments, message in [
        ((images, masks, CONFIG, 32), f"{masks}: expected masks of 32 x 32 .*Received 16 x 16"),
        ((masks, masks, CONFIG, SIZE), f"{masks}: expected a dataset of image records"),
        ((images, images, CONFIG, SIZE), f"{images}: expected a dataset of mask records"),
        ((images, masks, DataConfig(split="val"), SIZE), "split: expected one of .*'train'.*Received 'val'"),
        ((images, f"{tmp_path}/empty", CONFIG, SIZE), "empty: expected records in split 'train'. Received none"),
        ((f"{tmp_path}/no", masks, CONFIG, SIZE), f"image dataset {tmp_path}/no does not exist"),
        ((images, f"{bucket}-no/masks", CONFIG, SIZE), f"{bucket}-no does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            data.check_datasets(*arguments)


def test_masks_that_are_not_square_are_refused(root, tmp_path):
    write_dataset(f"{tmp_path}/masks", "mask", [mask_record(0)], shards=2)
    manifest = tmp_path / "masks" / datasets.MANIFEST
    fields = json.loads(manifest.read_bytes())
    fields["parameters"]["width"] = 32
    manifest.write_text(json.dumps(fields))
    with pytest.raises(UserError, match="Received 16 x 32"):
        data.check_datasets(f"{root}/images", f"{tmp_path}/masks", CONFIG, SIZE)


def test_masks_are_decoded_to_zero_and_one():
    for index in range(3):
        mask = data.decode_mask(records.parse_mask(tf.constant(mask_record(index))), SIZE)
        np.testing.assert_array_equal(mask.numpy()[..., 0], sample_mask(SPEC, index).astype("float32"), strict=True)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        data.decode_mask(records.parse_mask(tf.constant(mask_record(0))), SIZE * 2)
