"""Examples per second and core from the training reader, and from a loop that opens files with Pillow.

    make bench                                   # or: python tests/benchmarks/reader.py 500 2000
    ROUNDS=15 python tests/benchmarks/reader.py  # steadier medians

Targets and masks of 256 x 256 in batches of 16. The loop opens a photograph and a mask, cuts a random square of 0.5 to
1 of the shorter side, resizes it (bilinear), mirrors half of them, and stacks float32 arrays. `reused` is the same loop
writing into arrays that it keeps: the plain one gets fresh memory from the system for every batch, at a cost that
differs between machines. The reader does the same from records of the same files, shuffled, with masks rotated and
mirrored. The photographs are those of pipelines/photos with a longer side of 500 pixels (ImageNet's are about 500 x
400), or of the sizes given. In the last row the loops open photographs of 500 pixels and the reader records with a
shorter side of 256, as `build_imagenet --short-side 256` writes them.

The process keeps to one core; times are CPU times of all its threads; the three take turns. Below each row is where an
example's time goes: its target, its mask, and the JPEG decoder alone at full size.
"""

import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _timing import SMALL, rounds

from trainer.command import quiet_imports

with quiet_imports():
    import cv2
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from masks.codec import encode_mask
    from masks.sampling import MaskSpec, sample_mask
    from trainer import storage
    from trainer.config import DataConfig
    from trainer.data import examples, records
    from trainer.data.batches import training_batches
    from trainer.data.manifest import MANIFEST, Manifest, Shard, dump_manifest, load_manifest, shard_name

PHOTOS = Path(__file__).parents[2] / "pipelines" / "photos"
SIZE, BATCH, FILES, MASKS, BATCHES = (32, 2, 8, 8, 2) if SMALL else (256, 16, 192, 128, 20)
ROUNDS = rounds()
CONFIG = DataConfig()


def resized(pixels, longer=None, shorter=None):
    height, width = pixels.shape[:2]
    scale = longer / max(height, width) if longer else min(1, shorter / min(height, width))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=how)


def write_dataset(folder, kind, examples, shards, **parameters):
    written = []
    for i in range(shards):
        mine = [records.encode_record(values, records.FEATURES[kind]) for values in examples[i::shards]]
        framed, name = records.frame_records(mine), shard_name("train", i, shards)
        storage.create(f"{folder}/{name}", framed)
        crc = storage.crc32c(framed)
        written.append(Shard(name=name, split="train", records=len(mine), bytes=len(framed), crc32c=crc))
    counts = {"inputs": len(examples), "records": len(examples), "rejects": 0}
    manifest = Manifest(kind=kind, parameters=parameters, seed=0, code_version="", counts=counts, shards=tuple(written))
    storage.create(f"{folder}/{MANIFEST}", dump_manifest(manifest))


def write_images(folder, pictures):
    """Writes FILES photographs and a dataset of them; returns the mean size of a file in bytes."""
    examples = []
    os.makedirs(f"{folder}/files")
    for i in range(FILES):
        pixels = pictures[i % len(pictures)]
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        Path(f"{folder}/files/{i}.jpg").write_bytes(encoded)
        values = {"image/encoded": encoded, "image/format": "JPEG", "image/colorspace": "RGB", "image/channels": 3}
        values |= {"image/height": pixels.shape[0], "image/width": pixels.shape[1], "image/filename": f"{i}.jpg"}
        examples.append(values | {"image/class/label": -1, "image/class/synset": ""})
    write_dataset(folder, "image", examples, shards=8)
    return statistics.mean(len(values["image/encoded"]) for values in examples)


def write_masks(folder):
    spec = MaskSpec(generator="shapes", height=SIZE, width=SIZE, hole_ratio=(0.01, 0.6))
    examples = []
    os.makedirs(f"{folder}/files")
    for i in range(MASKS):
        encoded = encode_mask(sample_mask(spec, i))
        Path(f"{folder}/files/{i}.png").write_bytes(encoded)
        values = {"mask/encoded": encoded, "mask/height": SIZE, "mask/width": SIZE, "mask/hole_ratio": 0.0}
        values |= {"mask/bucket": -1, "mask/touches_border": 0, "mask/generator": "shapes", "mask/index": i}
        examples.append(values)
    write_dataset(folder, "mask", examples, shards=4, height=SIZE, width=SIZE)


def open_example(images, masks, rng):
    """Target uint8 [H, W, 3] and mask uint8 [H, W] of one example of the loops."""
    low, high = CONFIG.crop_scale
    with Image.open(f"{images}/files/{rng.integers(FILES)}.jpg") as picture:
        picture = picture.convert("RGB")
    side = int(min(picture.size) * rng.uniform(low, high))
    left, top = (int(rng.integers(extent - side + 1)) for extent in picture.size)
    crop = picture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    with Image.open(f"{masks}/files/{rng.integers(MASKS)}.png") as mask:
        return np.asarray(crop), np.asarray(mask.convert("L"))


def plain_batch(images, masks, rng):
    both = [open_example(images, masks, rng) for _ in range(BATCH)]
    targets = np.stack([target.astype(np.float32) / 255 for target, _ in both])
    return targets, np.stack([mask[..., None].astype(np.float32) / 255 for _, mask in both])


REUSED = np.empty((BATCH, SIZE, SIZE, 3), np.float32), np.empty((BATCH, SIZE, SIZE, 1), np.float32)


def reused_batch(images, masks, rng):
    for target, mask in zip(*REUSED, strict=True):
        pixels, holes = open_example(images, masks, rng)
        np.multiply(pixels, np.float32(1 / 255), out=target)
        np.multiply(holes[..., None], np.float32(1 / 255), out=mask)
    return REUSED


def loop_ms(read_batch, images, masks):
    rng = np.random.default_rng(0)
    begin = time.process_time()
    for _ in range(BATCHES):
        read_batch(images, masks, rng)
    return (time.process_time() - begin) * 1000 / (BATCHES * BATCH)


def reader_ms(batches):
    found = iter(batches)
    for _ in range(4):  # opens the shards and fills the buffers, which are equally full at the end
        next(found)
    begin = time.process_time()
    for _ in range(BATCHES):
        next(found)
    spent = time.process_time() - begin
    del found
    gc.collect()
    return spent * 1000 / (BATCHES * BATCH)


def parts_ms(images, masks):
    """Milliseconds for an example's target, its mask, and the decoder alone on squares of the same size."""
    found = []
    for folder, kind in ((images, "image"), (masks, "mask")):
        shards = load_manifest(folder, kind).shards
        serialized = [r for shard in shards for r in records.unframe_records(storage.read(f"{folder}/{shard.name}"))]
        parsed = [(records.parse_image if kind == "image" else records.parse_mask)(r) for r in serialized[:MASKS]]
        found.append([{key: value.numpy() for key, value in record.items()} for record in parsed])
    pictures = [tuple(record[f"image/{name}"] for name in ("encoded", "height", "width")) for record in found[0]]
    draws = [examples.draw_numbers(0, number).tolist() for number in range(MASKS)]

    def decode(i):
        encoded, height, width = pictures[i]
        top, left, side, _ = examples.choose_crop(height, width, draws[i][:3], SIZE, CONFIG.crop_scale)
        tf.image.decode_and_crop_jpeg(encoded, [top, left, side, side], channels=3)

    parts = {
        "target": lambda i: examples.make_target(*pictures[i], draws[i][:4], SIZE, CONFIG),
        "decoder alone, at full size": decode,
        "mask": lambda i: examples.make_mask(found[1][i]["mask/encoded"], draws[i][4:], SIZE, CONFIG),
    }
    times = {}
    for name, part in parts.items():
        taken = []
        for _ in range(ROUNDS):
            begin = time.process_time()
            for i in range(MASKS):
                part(i)
            taken.append((time.process_time() - begin) * 1000 / MASKS)
        times[name] = statistics.median(taken)
    return times


def bench(name, images, masks, files):
    batches = training_batches(images, masks, CONFIG, image_size=SIZE, batch_size=BATCH, seed=0)
    turns = {
        "plain": lambda: loop_ms(plain_batch, files, masks),
        "reused": lambda: loop_ms(reused_batch, files, masks),
        "reader": lambda: reader_ms(batches),
    }
    for turn in turns.values():
        turn()
    ms = {key: [] for key in turns}
    for _ in range(ROUNDS):
        for key, turn in turns.items():
            ms[key].append(turn())
    plain, reused, reader = (statistics.median(values) for values in ms.values())
    print(
        f"{name:32}examples/s: plain {1000 / plain:5.0f}  reused {1000 / reused:5.0f}  reader {1000 / reader:5.0f}"
        f"   reader over plain {plain / reader:.2f}, over reused {reused / reader:.2f}"
    )
    print(" " * 32 + ", ".join(f"{part} {value:.2f} ms" for part, value in parts_ms(images, masks).items()), flush=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # TensorFlow counts the cores when it is first used
    cv2.setNumThreads(1)
    originals = [cv2.imread(str(path)) for path in sorted(PHOTOS.rglob("*.jpg"))]
    with tempfile.TemporaryDirectory(prefix="pconv-bench-") as root:
        write_masks(f"{root}/masks")
        for longer in [int(argument) for argument in sys.argv[1:]] or [500, 1024, 2048]:
            size = write_images(f"{root}/{longer}", [resized(pixels, longer=longer) for pixels in originals])
            bench(f"{longer} pixels, {size / 1000:.0f} kB", f"{root}/{longer}", f"{root}/masks", f"{root}/{longer}")
        small = [resized(resized(pixels, longer=500), shorter=SIZE) for pixels in originals]
        size = write_images(f"{root}/small", small)
        if Path(f"{root}/500").exists():
            bench(f"500 pixels, records {SIZE}, {size / 1000:.0f} kB", f"{root}/small", f"{root}/masks", f"{root}/500")
