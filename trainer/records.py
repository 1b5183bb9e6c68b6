"""The two record formats, and the TFRecord framing they are stored in.

The training job reads these and so owns them; the Beam jobs write to them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import google_crc32c

from trainer.command import quiet_imports

with quiet_imports():  # Beam's worker processes import this module first
    import tensorflow as tf

_BYTES = tf.io.FixedLenFeature([], tf.string)
_INT = tf.io.FixedLenFeature([], tf.int64)
_FLOAT = tf.io.FixedLenFeature([], tf.float32)

IMAGE_FEATURES = {
    "image/encoded": _BYTES,  # JPEG, RGB, upright
    "image/format": _BYTES,  # "JPEG"
    "image/height": _INT,
    "image/width": _INT,
    "image/colorspace": _BYTES,  # "RGB"
    "image/channels": _INT,  # 3
    "image/filename": _BYTES,  # path below the dataset's source folder
    "image/class/label": _INT,  # position of the synset in sorted order, -1 when unknown
    "image/class/synset": _BYTES,
}
MASK_FEATURES = {
    "mask/encoded": _BYTES,  # 1-bit PNG, white = valid
    "mask/height": _INT,
    "mask/width": _INT,
    "mask/hole_ratio": _FLOAT,
    "mask/bucket": _INT,  # position in masks.coverage.RATIO_BUCKETS, -1 outside all of them
    "mask/touches_border": _INT,  # 0 or 1
    "mask/generator": _BYTES,
    "mask/index": _INT,  # what masks.sampling.sample_mask was called with
}
FEATURES = {"image": IMAGE_FEATURES, "mask": MASK_FEATURES}

_KINDS = {tf.string: "bytes_list", tf.int64: "int64_list", tf.float32: "float_list"}


def encode_record(values: dict, features: dict) -> bytes:
    """Serialized ``tf.train.Example`` with exactly the keys of ``features``; the same values give the same bytes.

    Raises:
        ValueError: a key is missing or unknown.
    """
    if values.keys() != features.keys():
        raise ValueError(f"record keys: expected {sorted(features)}. Received {sorted(values)}.")
    example = tf.train.Example()
    for key in sorted(features):
        value = values[key]
        kind = _KINDS[features[key].dtype]
        value = value.encode() if isinstance(value, str) else value
        getattr(example.features.feature[key], kind).value.append(value)
    return example.SerializeToString(deterministic=True)


def parse_image(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Scalar tensors under the keys of `IMAGE_FEATURES`."""
    return tf.io.parse_single_example(serialized, IMAGE_FEATURES)


def parse_mask(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Scalar tensors under the keys of `MASK_FEATURES`."""
    return tf.io.parse_single_example(serialized, MASK_FEATURES)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def frame_records(records: Iterable[bytes]) -> bytes:
    """One TFRecord file: length, its masked crc32c, the record, its masked crc32c, for each record.

    Made in memory because a shard is written as one object, whose checksum goes into the manifest;
    TensorFlow's own writer only writes to files. Format: tensorflow.org/tutorials/load_data/tfrecord.
    """
    parts = []
    for record in records:
        length = struct.pack("<Q", len(record))
        parts += [length, _masked_crc(length), record, _masked_crc(record)]
    return b"".join(parts)


def unframe_records(data: bytes) -> Iterator[bytes]:
    """The records of one TFRecord file whose checksum was compared before (`storage.read`)."""
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        yield data[position + 12 : position + 12 + length]
        position += 16 + length
