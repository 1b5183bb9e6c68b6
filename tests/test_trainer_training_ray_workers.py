"""How a training ends: what workers report, against events and failures made up here; and once for real."""

from __future__ import annotations

import errno
import os
import pickle
import queue
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from google.cloud.storage.exceptions import DataCorruption
from ray.exceptions import RaySystemError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from samples import image_record, mask_record, write_dataset
from trainer import presets
from trainer.errors import Outage, UserError
from trainer.training import ray_workers
from trainer.training.progress import failures
from trainer.training.progress.events import Exported, SummaryWritten, WorkerError


class Shown:
    """A log that keeps nothing."""

    def show(self, line):
        print(line)


class Fit:
    """A training that is over, or goes on for ever."""

    def __init__(self, over, error=None):
        self.done, self.error = threading.Event(), error
        if over:
            self.done.set()


def follow(events, fit, workers=2):
    made = queue.Queue()
    for event in events:
        made.put(pickle.dumps(event))
    ray_workers._follow(made, fit, workers, Shown())


def error(worker, message):
    return WorkerError(worker=worker, message=message)


EXPORT = Exported(step=1, address="gs://b/e")


def test_all_that_was_reported_is_printed(capsys):
    follow([EXPORT, SummaryWritten(address="gs://b/e")], Fit(over=True))
    assert capsys.readouterr().out.splitlines() == ["export gs://b/e", "summary gs://b/e"]


def test_an_error_of_one_worker_ends_a_training_that_would_wait_for_ever(monkeypatch, capsys):
    monkeypatch.setattr(ray_workers, "_GATHER_S", 0.1)
    with pytest.raises(UserError, match="^a.tfrecord is corrupt$"):
        follow([error(1, "a.tfrecord is corrupt"), EXPORT], Fit(over=False))
    assert capsys.readouterr().out == "export gs://b/e\n"  # what came after is still told


def test_why_a_worker_failed_is_one_line():
    died = RaySystemError(
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tpid: 7\n"
        "The actor is dead because its worker process has died. Worker exit detail: " + 40 * "many words "
    )
    events = queue.Queue()
    failures.TellFailures(events).after_exception(
        None,
        {
            1: WorkerHealthCheckFailedError("health check", died),
            0: UserExceptionWithTraceback(RuntimeError("a\nb"), "Traceback ..."),
            2: UserExceptionWithTraceback(UserError("the user's"), "Traceback ..."),
        },
    )
    first, second = str(pickle.loads(events.get_nowait())), str(pickle.loads(events.get_nowait()))
    assert first == "worker 0 has failed: RuntimeError: a b" and events.empty()
    assert second.startswith("worker 1 has failed: RaySystemError: ") and "class_name" not in second
    assert "before finishing this task. The actor is dead because" in second
    assert second.endswith(" ...") and len(second) < 350


def test_what_all_workers_say_is_said_once():
    with pytest.raises(UserError, match="^the checkpoint does not fit$"):
        follow([error(0, "the checkpoint does not fit"), error(1, "the checkpoint does not fit")], Fit(over=False))


def test_what_only_some_say_is_put_together():
    same = "step 3: non-finite loss (total nan)"
    with pytest.raises(UserError) as caught:
        follow([error(1, f"{same}; examples of worker 1: b.jpg"), error(0, f"{same}; examples of worker 0: a.jpg")],
               Fit(over=False))  # fmt: skip
    assert str(caught.value) == f"{same}; examples of worker 0: a.jpg; examples of worker 1: b.jpg"


def test_failures_of_ray_are_raised():
    with pytest.raises(RuntimeError, match="the cluster is gone"):
        follow([EXPORT], Fit(over=True, error=RuntimeError("the cluster is gone")))
    wrapped = RuntimeError("ray::worker\ntrainer.errors.UserError: gs://b/x is corrupt\nmore")
    with pytest.raises(UserError, match="^gs://b/x is corrupt$"):
        follow([], Fit(over=True, error=wrapped))


def test_a_full_disk_is_no_wrong_use():
    told = WorkerError(worker=0, message="cannot write to /r: No space left on device", outage=True)
    with pytest.raises(Outage, match="^cannot write to /r: No space left on device$"):
        follow([told], Fit(over=False), workers=1)


def test_an_outage_that_outlasted_all_attempts_is_told():
    wrapped = RuntimeError("ray::worker\ntrainer.errors.Outage: gs://b/x: no answer for 120 s\nmore")
    with pytest.raises(Outage, match="^gs://b/x: no answer for 120 s$"):
        follow([], Fit(over=True, error=wrapped))


# In a worker


def crossing(error):
    """What comes of an error when a worker sends it to another process."""
    return pickle.loads(pickle.dumps(error))


def test_an_error_that_cannot_be_unpickled_keeps_its_cause():
    error = DataCorruption(None, "Checksum mismatch while downloading:\nexpected a, received b")
    assert str(crossing(error)) == ""  # and with other arguments a TypeError: what Ray would make of it
    failure = ray_workers.describe_failure(error)
    arrived = crossing(failure.error)
    assert isinstance(arrived, Outage) and not failure.final
    assert str(arrived) == "DataCorruption: Checksum mismatch while downloading: expected a, received b"


def test_a_full_disk_ends_the_training_and_an_outage_does_not():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/file")
    for error in (full, Outage("cannot write to /run/file: No space left on device"), UserError("a is corrupt")):
        failure = ray_workers.describe_failure(error)
        assert failure.final and isinstance(crossing(failure.error), UserError | Outage)
    assert "No space left on device" in str(ray_workers.describe_failure(full).error)
    assert not ray_workers.describe_failure(Outage("gs://b/x: no answer")).final
    bug = KeyError("a")
    assert ray_workers.describe_failure(bug) == ray_workers.Failure(bug, final=False)


def test_each_number_of_workers_that_may_be_left_divides_the_batch():
    message = "of each number of workers from scaling.min_workers=2 to scaling.workers=4. Received 8"
    with pytest.raises(ValueError, match=message):
        presets.override(presets.PRESETS["demo"], ["scaling.workers=4", "scaling.min_workers=2"])
    presets.override(presets.PRESETS["demo"], ["scaling.workers=2", "scaling.min_workers=1"])


def test_a_corrupt_shard_ends_the_command_with_one_line_and_no_second_try(tmp_path):
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8), (40, 40))
    write_dataset(f"{tmp_path}/images", "image", {"train": [[image_record(pixels)] * 4]}, flaw=255)
    mask = np.ones((32, 32), np.uint8)
    mask[8:20] = 0
    write_dataset(f"{tmp_path}/masks", "mask", {"train": [[mask_record(mask)] * 4]}, size=32)
    command = [sys.executable, "-m", "trainer.train", "--preset", "demo", "--run", f"{tmp_path}/run"]
    command += ["--images", f"{tmp_path}/images", "--masks", f"{tmp_path}/masks"]
    for setting in ("unet.image_size=32", "unet.filters=4,8", "unet.kernels=3,3", "global_batch_size=4"):
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "train-00000-of-00001.tfrecord is corrupt" in done.stderr, done.stderr
    assert done.stdout.count("training starts") == 1
