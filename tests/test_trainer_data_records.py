"""Record formats against the written contract, and TFRecord files against TensorFlow's own reader and writer."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from trainer import storage
from trainer.data import records

# The contract other people's tools read, written down once more by hand: key and kind of value.
IMAGE_KEYS = {
    "image/encoded": bytes,
    "image/format": bytes,
    "image/height": int,
    "image/width": int,
    "image/colorspace": bytes,
    "image/channels": int,
    "image/filename": bytes,
    "image/class/label": int,
    "image/class/synset": bytes,
}
MASK_KEYS = {
    "mask/encoded": bytes,
    "mask/height": int,
    "mask/width": int,
    "mask/hole_ratio": float,
    "mask/bucket": int,
    "mask/touches_border": int,
    "mask/generator": bytes,
    "mask/index": int,
}
IMAGE = {
    "image/encoded": b"\xff\xd8\x00jpeg",
    "image/format": "JPEG",
    "image/height": 480,
    "image/width": 640,
    "image/colorspace": "RGB",
    "image/channels": 3,
    "image/filename": "train/n01440764/é.JPEG",
    "image/class/label": -1,
    "image/class/synset": "",
}
MASK = {
    "mask/encoded": b"\x89PNG",
    "mask/height": 512,
    "mask/width": 256,
    "mask/hole_ratio": 0.25,
    "mask/bucket": 2,
    "mask/touches_border": 1,
    "mask/generator": "shapes",
    "mask/index": 2**40,
}
GOLDEN = "4b8504114c2672ae9c85539cd250fc25dcc24c277a150e01d83d6df6f00c3ce9"


@pytest.mark.parametrize(("kind", "keys"), [("image", IMAGE_KEYS), ("mask", MASK_KEYS)])
def test_formats_are_the_contract(kind, keys):
    dtypes = {bytes: tf.string, int: tf.int64, float: tf.float32}
    spec = records.parsing_spec(records.FEATURES[kind])
    assert {key: feature.dtype for key, feature in spec.items()} == {key: dtypes[of] for key, of in keys.items()}
    assert all(feature.shape == [] and feature.default_value is None for feature in spec.values())


def tensorflows_bytes(values, keys):
    """The record as TensorFlow's own protocol buffer writes it."""
    example = tf.train.Example()
    for key, value in values.items():
        feature, value = example.features.feature[key], value.encode() if isinstance(value, str) else value
        lists = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}
        lists[keys[key]].value.append(value)
    return example.SerializeToString(deterministic=True)


EDGES = {  # lengths and numbers at the steps of the varint, of the sign, and empty or not a number
    bytes: [b"", b"a", "é", bytes(100), bytes(127), bytes(128), bytes(16_383), bytes(16_384), bytes(1 << 21)],
    int: [0, 1, -1, 127, 128, 255, 300, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, -(2**63)],
    float: [0.0, -0.0, 1, 0.1, 1e-45, -3.4e38, float("inf"), float("nan"), 0.3],
}


@pytest.mark.parametrize(("kind", "keys"), [("image", IMAGE_KEYS), ("mask", MASK_KEYS)])
def test_bytes_are_those_of_tensorflows_protocol_buffer(kind, keys, soak):
    rng = np.random.default_rng(0)
    for _ in range(2000 if soak else 100):
        values = {key: EDGES[of][rng.integers(len(EDGES[of]))] for key, of in keys.items()}
        assert records.encode_record(values, records.FEATURES[kind]) == tensorflows_bytes(values, keys)


def test_writing_needs_no_tensorflow():
    code = (
        "import sys\nfrom trainer.data import records\n"
        f"records.frame_records([records.encode_record({IMAGE!r}, records.IMAGE_FEATURES)])\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def read_example(serialized):
    """Plain values by key, through the protocol buffer alone."""
    example = tf.train.Example.FromString(serialized)
    found = {}
    for key, feature in example.features.feature.items():
        (found[key],) = getattr(feature, feature.WhichOneof("kind")).value
    return found


@pytest.mark.parametrize(
    ("values", "features"), [(IMAGE, records.IMAGE_FEATURES), (MASK, records.MASK_FEATURES)], ids=["image", "mask"]
)
def test_encoded_values_are_read_back(values, features):
    expected = {key: value.encode() if isinstance(value, str) else value for key, value in values.items()}
    serialized = records.encode_record(values, features)
    assert read_example(serialized) == expected
    parse = records.parse_image if features is records.IMAGE_FEATURES else records.parse_mask
    parsed = parse(tf.constant(serialized))
    assert {key: tensor.numpy() for key, tensor in parsed.items()} == expected
    assert all(tensor.shape == [] for tensor in parsed.values())


def test_numpy_scalars_are_values_too():
    values = MASK | {"mask/index": np.int64(5), "mask/hole_ratio": np.float64(0.5), "mask/bucket": np.int32(-1)}
    found = read_example(records.encode_record(values, records.MASK_FEATURES))
    assert (found["mask/index"], found["mask/hole_ratio"], found["mask/bucket"]) == (5, 0.5, -1)


def test_keys_must_be_exactly_the_formats():
    for values in (MASK | {"mask/color": 1}, {k: v for k, v in MASK.items() if k != "mask/index"}, IMAGE, {}):
        with pytest.raises(ValueError, match="record keys: expected .*mask/bucket.* Received"):
            records.encode_record(values, records.MASK_FEATURES)


@pytest.mark.parametrize(
    "change",
    [{"mask/index": 1.5}, {"mask/index": "1"}, {"mask/index": 2**63}, {"mask/hole_ratio": "a"}, {"mask/encoded": 1}],
)
def test_values_of_another_kind_are_refused(change):
    with pytest.raises(ValueError, match="expected a value of kind (int|float|bytes). Received "):
        records.encode_record(MASK | change, records.MASK_FEATURES)


def test_records_that_lack_a_key_do_not_parse():
    with pytest.raises(tf.errors.InvalidArgumentError, match="mask/bucket"):
        records.parse_mask(tf.constant(records.encode_record(IMAGE, records.IMAGE_FEATURES)))


def test_same_values_give_the_same_bytes():
    backwards = dict(reversed(MASK.items()))
    encoded = records.encode_record(MASK, records.MASK_FEATURES)
    assert encoded == records.encode_record(backwards, records.MASK_FEATURES)
    # Golden: finished datasets hold these bytes. A job that is run again over one compares with them.
    digest = hashlib.sha256(encoded + records.encode_record(IMAGE, records.IMAGE_FEATURES)).hexdigest()
    assert digest == GOLDEN


LENGTHS = [0, 1, 7, 12, 1000, 0, 70_000]


def some_records():
    rng = np.random.default_rng(0)
    return [rng.bytes(length) for length in LENGTHS]


def test_tensorflow_reads_what_was_framed(tmp_path):
    path = tmp_path / "file.tfrecord"
    path.write_bytes(records.frame_records(some_records()))
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == some_records()


def test_framed_bytes_are_those_of_tensorflows_writer(tmp_path):
    path = tmp_path / "file.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in some_records():
            writer.write(record)
    assert records.frame_records(iter(some_records())) == path.read_bytes()
    assert list(records.unframe_records(path.read_bytes())) == some_records()
    checksum = storage.crc32c(path.read_bytes())
    assert list(records.read_records(str(path))) == list(records.read_records(str(path), checksum)) == some_records()
    with pytest.raises(storage.Corrupt, match="file.tfrecord is corrupt"):
        records.read_records(str(path), "AAAAAA==")


def test_no_records_are_no_bytes():
    assert records.frame_records([]) == b"" and list(records.unframe_records(b"")) == []


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_values_are_those_that_tensorflow_parses(kind):
    values, features = {"image": IMAGE, "mask": MASK}[kind], records.FEATURES[kind]
    serialized = records.encode_record(values, features)
    parsed = tf.io.parse_single_example(serialized, records.parsing_spec(features))
    found = dict(zip(features, records.decode_record(serialized, *features), strict=True))
    assert {key: type(value) for key, value in found.items()} == {
        key: {tf.string: bytes, tf.int64: int, tf.float32: float}[tensor.dtype] for key, tensor in parsed.items()
    }
    assert found == {key: tensor.numpy() for key, tensor in parsed.items()}


def test_what_is_not_a_record_is_refused():
    serialized = records.encode_record(IMAGE, records.IMAGE_FEATURES)
    with pytest.raises(ValueError, match=r"mask/index: expected one value of kind int. Received 0."):
        records.decode_record(serialized, "image/height", "mask/index")
    for data in (serialized[:-1], b"\xff" * 20):
        with pytest.raises(ValueError, match=r"expected a serialized tf.train.Example"):
            records.decode_record(data, "image/height")
    example = tf.train.Example()
    example.features.feature["image/height"].float_list.value.append(3)
    example.features.feature["image/width"].int64_list.value.extend([3, 4])
    for key, count in (("image/height", 0), ("image/width", 2)):
        with pytest.raises(ValueError, match=f"{key}: expected one value of kind int. Received {count}."):
            records.decode_record(example.SerializeToString(), key)


@pytest.mark.parametrize("cut", [1, 5, 12, 20])
def test_a_file_that_is_cut_short_is_refused_after_its_whole_records(cut):
    data = records.frame_records([b"a" * 10, b"b" * 6])
    found = records.unframe_records(data[:-cut])
    assert next(found) == b"a" * 10
    with pytest.raises(ValueError, match=f"up to byte {len(data) - cut}. Received one that is cut short at byte 26"):
        next(found)
