"""The two record formats, and the TFRecord framing they are stored in.

The training job reads them and so owns the formats; the Beam jobs write them. Writing does not import
TensorFlow, which would take seconds in every worker process of a Beam job.
"""

from __future__ import annotations

import contextlib
import io
import numbers
import struct
from collections.abc import Callable, Iterable, Iterator

import google_crc32c

from trainer import storage

_BYTES, _FLOAT, _INT = "bytes", "float", "int"  # kinds of values
_FIELDS = {_BYTES: 1, _FLOAT: 2, _INT: 3}  # number of a kind's field in the Feature message, see encode_record
_LISTS = {_BYTES: "bytes_list", _FLOAT: "float_list", _INT: "int64_list"}  # its name there

IMAGE_FEATURES = {
    "image/encoded": _BYTES,  # JPEG, RGB, upright
    "image/format": _BYTES,  # "JPEG"
    "image/height": _INT,
    "image/width": _INT,
    "image/colorspace": _BYTES,  # "RGB"
    "image/channels": _INT,  # 3
    "image/filename": _BYTES,  # split/synset/name, or split/name where there is no synset
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
_KINDS = IMAGE_FEATURES | MASK_FEATURES

_DIGITS = tuple(bytes([digit]) for digit in range(0x80))


def _varint(value: int) -> bytes:
    """Base 128, low digits first, in 64-bit two's complement."""
    if 0 <= value < 0x80:
        return _DIGITS[value]
    value &= 0xFFFFFFFFFFFFFFFF
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protocol buffer field."""
    return _DIGITS[number << 3 | 2] + _varint(len(data)) + data


def _encode_value(value: object, kind: str) -> bytes:
    """The list of one value: BytesList, FloatList or Int64List."""
    if kind == _BYTES and isinstance(value, (bytes, str)):
        return _field(1, value.encode() if isinstance(value, str) else value)
    if kind == _INT and isinstance(value, numbers.Integral) and -(2**63) <= int(value) < 2**63:
        return _field(1, _varint(int(value)))
    if kind == _FLOAT and isinstance(value, numbers.Real):
        return _field(1, struct.pack("<f", value))
    raise ValueError(f"expected a value of kind {kind}. Received {value!r}.")


def encode_record(values: dict, features: dict) -> bytes:
    """Serialized ``tf.train.Example`` with exactly the keys of ``features``; the same values give the same bytes.

    The bytes are those of the message's own deterministic serialization:

        message Example  { Features features = 1; }
        message Features { map<string, Feature> feature = 1; }         entries in key order: 1 the key, 2 the value
        message Feature  { oneof kind { BytesList = 1; FloatList = 2; Int64List = 3; } }

    Raises:
        ValueError: a key is missing or unknown, or a value of another kind.
    """
    if values.keys() != features.keys():
        raise ValueError(f"record keys: expected {sorted(features)}. Received {sorted(values)}.")
    entries = []
    for key in sorted(features):
        feature = _field(_FIELDS[features[key]], _encode_value(values[key], features[key]))
        entries.append(_field(1, _field(1, key.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def parsing_spec(features: dict) -> dict:
    """``features`` as ``tf.io.parse_example`` takes them."""
    import tensorflow as tf

    dtypes = {_BYTES: tf.string, _FLOAT: tf.float32, _INT: tf.int64}
    return {key: tf.io.FixedLenFeature([], dtypes[kind]) for key, kind in features.items()}


def parse_image(serialized) -> dict:
    """Scalar tensors under the keys of `IMAGE_FEATURES` of a scalar string tensor."""
    import tensorflow as tf

    return tf.io.parse_single_example(serialized, parsing_spec(IMAGE_FEATURES))


def parse_mask(serialized) -> dict:
    """Scalar tensors under the keys of `MASK_FEATURES` of a scalar string tensor."""
    import tensorflow as tf

    return tf.io.parse_single_example(serialized, parsing_spec(MASK_FEATURES))


def decode_record(serialized: bytes, *keys: str) -> list:
    """The values under ``keys`` of a serialized record: bytes, float or int each.

    Raises:
        ValueError: it is not a record, or has no value of the right kind under one of the keys.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        found = tf.train.Example.FromString(serialized).features.feature
    except DecodeError as error:
        raise ValueError(f"expected a serialized tf.train.Example: {error}") from None
    values = [getattr(found[key], _LISTS[_KINDS[key]]).value for key in keys]
    for key, value in zip(keys, values, strict=True):
        if len(value) != 1:
            raise ValueError(f"{key}: expected one value of kind {_KINDS[key]}. Received {len(value)}.")
    return [value[0] for value in values]


@contextlib.contextmanager
def naming(position: int, where: str) -> Iterator[None]:
    """Turns the `ValueError` that is raised inside into `Corrupt`, which names the record: ``position``, in ``where``.

    For shards that are as their manifest says, byte for byte, but hold something else.
    """
    try:
        yield
    except ValueError as error:
        raise storage.Corrupt(f"record {position} of {where}: {error}") from None


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def frame_records(records: Iterable[bytes]) -> bytes:
    """One TFRecord file: length, its masked crc32c, the record, its masked crc32c, for each record.

    Built in memory because a shard is written as one object, whose checksum goes into the manifest;
    TensorFlow's own writer only writes to files. Format: tensorflow.org/tutorials/load_data/tfrecord.
    """
    file = io.BytesIO()  # grows in place: a list to be joined would hold every record twice
    for record in records:
        length = struct.pack("<Q", len(record))
        file.write(length + _masked_crc(length))
        file.write(record)
        file.write(_masked_crc(record))
    return file.getvalue()


def find_frames(read: Callable[[int, int], bytes], size: int) -> Iterator[tuple[int, int]]:
    """Position and length of each record of a TFRecord file; checksums are not looked at.

    Args:
        read: returns so many (second argument) of the file's bytes from a position (first argument) on.
        size: of the file in bytes.

    Raises:
        ValueError: the file does not end where a record ends.
    """
    position = 0
    while position < size:
        header = read(position, 8)
        end = position + 16 + struct.unpack("<Q", header)[0] if len(header) == 8 else size + 1
        if end > size:
            raise ValueError(f"expected records up to byte {size}. Received one that is cut short at byte {position}.")
        yield position + 12, end - position - 16
        position = end


def unframe_records(data: bytes) -> Iterator[bytes]:
    """The records of one TFRecord file whose checksum has been verified (`storage.read`); raises as `find_frames`."""
    for position, length in find_frames(lambda at, count: data[at : at + count], len(data)):
        yield data[position : position + length]


def read_records(
    address: str, checksum: str | None = None, max_bytes: int | None = None, count: int | None = None
) -> Iterator[bytes]:
    """The records of the TFRecord file at ``address``, in order.

    Args:
        checksum: crc32c of the file, from the dataset's manifest; None skips the check.
        max_bytes: that the file may have.
        count: of its records, from the manifest; None skips the check.

    Raises:
        NotFound: there is no such file.
        Corrupt: its checksum differs, it is too large, it does not end where a record ends, or has another number.
    """
    try:
        data = storage.read(address, checksum, max_bytes)
    except storage.TooLarge as error:
        raise storage.Corrupt(f"{address} is corrupt: {error}") from None
    try:
        places = list(find_frames(lambda at, length: data[at : at + length], len(data)))
        if count not in (None, len(places)):
            raise ValueError(f"expected {count} records, as in the manifest. Received {len(places)}.")
    except ValueError as error:
        raise storage.Corrupt(f"{address}: {error}") from None
    return (data[position : position + length] for position, length in places)
