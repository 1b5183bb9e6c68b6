"""Image files of an ImageNet tree as records: the pure functions of the image job, and its transform.

    ROOT/train/n01440764/n01440764_10026.JPEG   -> split train, synset n01440764
    ROOT/val/ILSVRC2012_val_00000001.JPEG       -> split val, no synset, label -1
"""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from pipelines.shards import Record, Reject, reject
from trainer import images, records, storage
from trainer.command import UserError

SPLITS = ("train", "val", "test")
REJECTED = "rejected"


def list_tree(root: str, splits: tuple[str, ...]) -> dict[str, list[str]]:
    """Addresses of all files below each split's folder.

    Raises:
        UserError: there is none, naming the folders that were looked for.
    """
    found = {split: storage.find(storage.join(root, split)) for split in splits}
    if not any(found.values()):
        looked = ", ".join(f"{root}/{split}" for split in splits)
        raise UserError(f"expected image files below {looked}. Found none.")
    return {split: files for split, files in found.items() if files}


def list_files(split: str, root: str) -> list[tuple[str, str]]:
    """(split, address) of each file of one split."""
    return [(split, address) for address in storage.find(storage.join(root, split))]


def synset_of(address: str, root: str) -> str:
    """Name of the class folder of ``ROOT/split/synset/.../file``; empty if the file lies right below its split."""
    parts = storage.relative(address, root).split("/")
    return parts[1] if len(parts) > 2 else ""


def encode_image(data: bytes) -> tuple[bytes, int, int]:
    """The record's JPEG with its height and width: ``data`` itself if it is an upright RGB JPEG, else encoded anew.

    Raises:
        images.ImageError: ``data`` is not an image that can be used.
    """
    header = images.read_header(data)
    pixels = images.decode_rgb(data)  # in either case: a truncated file is found only so
    height, width = pixels.shape[:2]
    if header.format == "JPEG" and header.mode == "RGB" and header.upright:
        return data, height, width
    return images.encode_jpeg(pixels), height, width


def image_record(data: bytes, filename: str, synset: str, label: int) -> bytes:
    """Serialized record of one image file."""
    encoded, height, width = encode_image(data)
    values = {
        "image/encoded": encoded,
        "image/format": "JPEG",
        "image/height": height,
        "image/width": width,
        "image/colorspace": "RGB",
        "image/channels": 3,
        "image/filename": filename,
        "image/class/label": label,
        "image/class/synset": synset,
    }
    return records.encode_record(values, records.IMAGE_FEATURES)


def convert_file(
    item: tuple[str, str], root: str, labels: dict[str, int]
) -> Iterator[Record | beam.pvalue.TaggedOutput]:
    """One (split, address) becomes one record, or one reject under the tag ``rejected``."""
    split, address = item
    stage = "read"
    try:
        data = storage.read(address)
        stage = "decode"
        filename, synset = storage.relative(address, root), synset_of(address, root)
        yield split, filename, image_record(data, filename, synset, labels.get(synset, -1))
    except (images.ImageError, UserError, OSError) as error:
        yield beam.pvalue.TaggedOutput(REJECTED, reject(address, stage, error, split))


class ConvertFiles(beam.PTransform):
    """Twin of `convert_file`: from a PCollection of (split, address) to `Record`s and `Reject`s."""

    def __init__(self, root: str, labels: dict[str, int]):
        super().__init__()
        self._root, self._labels = root, labels

    def expand(self, files) -> tuple[beam.PCollection[Record], beam.PCollection[Reject]]:
        outputs = files | beam.FlatMap(convert_file, self._root, self._labels).with_outputs(REJECTED, main="records")
        return outputs.records, outputs[REJECTED]
