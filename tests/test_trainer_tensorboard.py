"""Event files, read back with TensorFlow's own reader and messages, and as curves."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer import storage, tensorboard


def read(run, scratch):
    """(file name, event) in the order in which TensorBoard reads them; TensorFlow checks every record's crc."""
    for number, address in enumerate(storage.find(f"{run}/logs")):
        path = scratch / f"{number}"
        path.write_bytes(storage.read(address))
        for record in tf.data.TFRecordDataset(str(path)):
            yield storage.relative(address, run), tf.compat.v1.Event.FromString(record.numpy())


def scalars(events):
    return {(v.tag, e.step): v.simple_value for _, e in events for v in e.summary.value if v.HasField("simple_value")}


def test_what_was_logged_is_read_back(bucket, tmp_path):
    log = tensorboard.EventLog(f"{bucket}/run", 7, every=0)
    log.add_scalars(8, {"loss/total": 0.5, "speed": 3})
    assert log.flush(8) is None
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    log.add_image(9, "pictures", picture)
    assert log.close() is None
    events = list(read(f"{bucket}/run", tmp_path))
    assert events[0][1].file_version == "brain.Event:2" and "tfevents" in events[0][0]
    assert (events[1][1].session_log.status, events[1][1].step) == (tf.compat.v1.SessionLog.START, 7)
    assert scalars(events) == {("loss/total", 8): 0.5, ("speed", 8): 3}
    (image,) = [(e.step, v.image) for _, e in events for v in e.summary.value if v.HasField("image")]
    assert image[0] == 9 and (image[1].height, image[1].width, image[1].colorspace) == (2, 3, 3)
    np.testing.assert_array_equal(tf.io.decode_png(image[1].encoded_image_string), picture)


def test_big_logs_go_on_in_another_file(tmp_path):
    log = tensorboard.EventLog(str(tmp_path / "run"), 0, every=0, file_bytes=300)
    for step in range(1, 41):
        log.add_scalars(step, {"a": step})
        log.flush(step)
        log._upload.result()  # each flush finds the last one over
    log.close()
    events = list(read(str(tmp_path / "run"), tmp_path))
    names = list(dict.fromkeys(name for name, _ in events))
    assert len(names) > 3 and names == sorted(names)
    assert all(next(e for n, e in events if n == name).file_version for name in names)
    assert list(scalars(events).values()) == list(range(1, 41))  # each once, in order


def test_a_store_that_refuses_loses_nothing(tmp_path, monkeypatch):
    real, refused = storage.overwrite, []

    def refuse(address, data):
        if len(refused) < 3:
            refused.append(address)
            raise ConnectionError("not now")
        real(address, data)

    monkeypatch.setattr(storage, "overwrite", refuse)
    log, errors = tensorboard.EventLog(str(tmp_path / "run"), 0, every=0, file_bytes=150), []
    for step in range(1, 31):
        log.add_scalars(step, {"a": step})
        errors.append(log.flush(step))
        log._upload.exception()  # waits
    assert log.close() is None
    assert [str(error) for error in errors if error] == ["not now"] * 3
    assert list(scalars(list(read(str(tmp_path / "run"), tmp_path))).values()) == list(range(1, 31))


def test_writing_waits_for_its_time(tmp_path):
    log = tensorboard.EventLog(str(tmp_path / "run"), 0, every=1000)
    log.flush(0)
    log._upload.result()
    log.add_scalars(1, {"a": 1})
    log.flush(1)
    assert scalars(list(read(str(tmp_path / "run"), tmp_path))) == {}
    log.close()
    assert scalars(list(read(str(tmp_path / "run"), tmp_path))) == {("a", 1): 1}


def write_log(run: str, first: int, values: dict[int, float], tag="loss/total") -> None:
    events = tensorboard.EventLog(run, first)
    for step, value in values.items():
        events.add_scalars(step, {tag: value, "other": 7.0})
    assert events.close() is None


def test_a_resumed_run_replaces_what_was_logged_beyond(tmp_path, monkeypatch):
    run = str(tmp_path / "run")
    times = iter((1000.0, 2000.0, 3000.0))
    for first, values in ((0, {10: 1.0, 20: 2.0, 30: 3.0}), (20, {30: 3.5, 40: 4.0})):
        began = next(times)
        monkeypatch.setattr("trainer.tensorboard.time.time", lambda began=began: began)
        write_log(run, first, values)
    assert tensorboard.read_curves(run, ["loss/total", "validation/psnr"]) == {
        "loss/total": [(10, 1.0), (20, 2.0), (30, 3.5), (40, 4.0)]
    }
    monkeypatch.setattr("trainer.tensorboard.time.time", lambda: 3000.0)
    write_log(run, 10, {15: 9.0})
    assert tensorboard.read_curves(run, ["loss/total"])["loss/total"] == [(10, 1.0), (15, 9.0)]
    assert (
        tensorboard.read_curves(run, ["nothing"]) == {}
        and tensorboard.read_curves(str(tmp_path / "none"), ["loss/total"]) == {}
    )


def test_long_curves_become_means_of_neighbors():
    curve = [(step, float(step)) for step in range(1, 1001)]
    short = tensorboard.thin(curve, 100)
    assert len(short) == 100 and short[0] == (10, 5.5) and short[-1] == (1000, 995.5)
    assert (
        tensorboard.thin(curve[:7], 3) == [(3, 2.0), (6, 5.0), (7, 7.0)]
        and tensorboard.thin(curve[:5]) == curve[:5]
        and tensorboard.thin([]) == []
    )
    assert tensorboard.MAX_POINTS == 200
