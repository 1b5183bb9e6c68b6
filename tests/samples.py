"""Small datasets of pixels that a test knows, as the jobs would have written them."""

from __future__ import annotations

import numpy as np

from masks.codec import encode_mask
from masks.coverage import bucket_of, hole_ratio
from masks.sampling import MaskSpec, sample_mask
from trainer import storage
from trainer.data import records
from trainer.data.manifest import MANIFEST, Manifest, Shard, dump_manifest, shard_name
from trainer.images import rgb


def image_record(pixels: np.ndarray, name: str = "a.jpg", quality: int = 100) -> bytes:
    """Serialized record of uint8 [H, W, 3]."""
    values = {"image/encoded": rgb.encode_jpeg(pixels, quality), "image/format": "JPEG", "image/colorspace": "RGB"}
    values |= {"image/height": pixels.shape[0], "image/width": pixels.shape[1], "image/channels": 3}
    values |= {"image/filename": name, "image/class/label": -1, "image/class/synset": ""}
    return records.encode_record(values, records.IMAGE_FEATURES)


def mask_record(mask: np.ndarray, index: int = 0) -> bytes:
    """Serialized record of uint8 [H, W] of {0, 1}."""
    ratio = hole_ratio(mask)
    values = {"mask/encoded": encode_mask(mask), "mask/height": mask.shape[0], "mask/width": mask.shape[1]}
    values |= {"mask/hole_ratio": ratio, "mask/bucket": bucket_of(ratio), "mask/touches_border": 0}
    values |= {"mask/generator": "shapes", "mask/index": index}
    return records.encode_record(values, records.MASK_FEATURES)


def write_dataset(
    folder: object, kind: str, shards: dict[str, list[list[bytes]]], size: int | None = None, flaw: int = 0
) -> str:
    """Writes the records of each shard of each split, and the manifest; returns the folder.

    Args:
        size: of masks, side in pixels.
        flaw: is XORed with the byte in the middle of each shard, whose checksum is that of the bytes before.
    """
    written = []
    for split, parts in shards.items():
        for number, part in enumerate(parts):
            data, name = records.frame_records(part), shard_name(split, number, len(parts))
            stored = bytearray(data)
            if flaw:
                stored[len(data) // 2] ^= flaw
            storage.create(f"{folder}/{name}", bytes(stored))
            crc = storage.crc32c(data)
            written.append(Shard(name=name, split=split, records=len(part), bytes=len(data), crc32c=crc))
    count = sum(shard.records for shard in written)
    manifest = Manifest(
        kind=kind,
        parameters={"height": size, "width": size} if size else {},
        seed=0,
        code_version="test",
        counts={"inputs": count, "records": count, "rejects": 0},
        shards=tuple(written),
    )
    storage.create(f"{folder}/{MANIFEST}", dump_manifest(manifest))
    return str(folder)


def write_noise(root: object, size: int, num_images: int, num_masks: int) -> None:
    """Images of noise in ``root``/images and masks of ``size`` with holes of 10 to 40 % in ``root``/masks."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (size + 8, size + 18, 3), np.uint8) for _ in range(num_images)]
    spec = MaskSpec(generator="shapes", height=size, width=size, hole_ratio=(0.1, 0.4))
    made = [image_record(picture, f"{i}.jpg") for i, picture in enumerate(pictures)]
    write_dataset(f"{root}/images", "image", {"train": [made]})
    made = [mask_record(sample_mask(spec, i), i) for i in range(num_masks)]
    write_dataset(f"{root}/masks", "mask", {"train": [made]}, size)
