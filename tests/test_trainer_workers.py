"""The same training on one worker, on two and on one with two devices, under TensorFlow's strategies for each.

Two workers are real processes, each with a server of TensorFlow's; two devices are of one process, which has none.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from samples import write_noise
from trainer import checkpoints

STEPS, FINETUNE = 50, 20
# Worker 1 of two waits half a second for each batch, and one example of steps 2 and 6 is planted with a NaN.
PROGRAM = """
import dataclasses, json, sys, time
import numpy as np
import tensorflow as tf
from trainer import presets
from trainer.data import batches as data
from trainer.errors import UserError
from trainer.training import loop, validation
from trainer.training.devices import prepare_devices

root, run, worker, workers, devices = *sys.argv[1:3], *map(int, sys.argv[3:6])
prepare_devices("cpu", devices, 1)
config = presets.override(presets.PRESETS["demo"], [f"scaling.workers={workers}", *sys.argv[6:]])
held = validation.HeldOut(images=f"{root}/images", masks=f"{root}/masks", pairs=13)
if run == "planted" and worker == 1:
    real = data.training_batches
    def planted(*args, **kwargs):
        for number, (target, *rest) in enumerate(real(*args, **kwargs), start=1):
            time.sleep(0.5)
            nan = tf.tensor_scatter_nd_update(target, [[2, 3, 3, 0]], [np.nan])
            yield (nan if number in (2, 6) else target, *rest)
    data.training_batches = planted
events, folders = [], (f"{root}/images", f"{root}/masks", f"{root}/{run}")
report = lambda event: events.append({"event": type(event).__name__, **dataclasses.asdict(event)})
try:
    options = dict(worker=worker, workers=workers, devices=devices, report=report, held_out=held)
    loop.train(config, *folders, **options)
except UserError as error:
    events.append({"event": "raised", "message": str(error)})
open(f"{root}/{run}-{worker}.json", "w").write(json.dumps(events))
"""
SMALL = ["unet.image_size=32", "unet.filters=4,8,8", "unet.kernels=5,3,3", "log_every=1", "precision=float32"]
SMALL += ["global_batch_size=8", "initial.schedule=constant", "initial.learning_rate=0.0005", "checkpoint.every=1000"]
SMALL += ["validation.split=train", "validation.every=25", "clip_norm=0.3", "ema_decay=0.9"]
# Three terms and an image to learn, whatever the preset has, and the whole rate within the steps.
SMALL += ["unet.residual=false", "loss.valid=1", "loss.total_variation=0.1", "initial.warmup_steps=10"]


def train(root, run, workers, *settings, devices=1):
    """Events of each worker."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    with contextlib.ExitStack() as stack:
        started = []
        for worker in range(workers):
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": worker}}
            environment = os.environ | ({"TF_CONFIG": json.dumps(task)} if workers > 1 else {})
            numbers = [str(number) for number in (worker, workers, devices)]
            command = [sys.executable, "-c", PROGRAM, str(root), run, *numbers, *SMALL, *settings]
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            stack.enter_context(process)  # closes its pipe and waits for it
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            _, error = process.communicate(timeout=600)
            assert process.returncode == 0, error[-4000:]
    return [json.loads((root / f"{run}-{worker}.json").read_text()) for worker in range(workers)]


def of(events, kind):
    return [event for event in events if event["event"] == kind]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("workers")
    write_noise(root, 32, num_images=9, num_masks=13)
    return root


ONE, WORKERS, DEVICES = "one", "workers", "devices"  # runs


@pytest.fixture(scope="module")
def curves(place):
    """Events of worker 0, by run."""
    settings = [f"initial.steps={STEPS}", f"finetune.steps={FINETUNE}", "finetune.learning_rate=0.002"]
    settings += ["checkpoint.every=50", "checkpoint.keep=9"]
    with ThreadPoolExecutor() as pool:
        runs = {
            ONE: pool.submit(train, place, ONE, 1, *settings),
            # Packs of 2 kB, several in each phase; the second, which freezes variables, has others.
            WORKERS: pool.submit(train, place, WORKERS, 2, *settings, "scaling.pack_mb=0.002"),
            DEVICES: pool.submit(train, place, DEVICES, 1, *settings, devices=2),
        }
        return {name: run.result()[0] for name, run in runs.items()}


both_divisions = pytest.mark.parametrize("divided", [WORKERS, DEVICES])


@both_divisions
def test_the_loss_curve_is_the_same_on_two_workers(curves, divided):
    """Every term of every step; float32, synchronized BatchNorm, clipped by the norm of the whole gradient."""
    one, two = (of(curves[run], "StepDone") for run in (ONE, divided))
    assert len(one) == len(two) == STEPS + FINETUNE
    for event, other in zip(one[:STEPS], two[:STEPS], strict=True):
        for name, value in event["terms"].items():
            assert other["terms"][name] == pytest.approx(value, abs=1e-4), (event["step"], name)
    totals = [event["terms"]["total"] for event in one]
    assert np.mean(totals[40:50]) < 0.8 * np.mean(totals[:10])  # it learns: a curve of constants would agree too


@both_divisions
def test_validation_is_the_same_on_two_workers(curves, divided):
    one, two = (of(curves[run], "Validated") for run in (ONE, divided))
    assert [event["step"] for event in one] == [event["step"] for event in two] == [25, 50, 70]
    for event, other in zip(one, two, strict=True):
        assert event["cells"].keys() == other["cells"].keys()
        for bucket, cell in event["cells"].items():
            for name, value in cell.items():
                # Pictures are rounded to bytes; the weights differ by rounding after the first steps. What a standard
                # error is of cancels out for the most part, and so do the digits that it has in common.
                close = pytest.approx(value, rel=1e-2 if name.endswith("_error") else 1e-3, nan_ok=True)
                assert other["cells"][bucket][name] == close, (bucket, name)


def load(place, run, step, parts=None):
    return checkpoints.load_checkpoint(checkpoints.find(f"{place}/{run}", step), parts)


@pytest.mark.parametrize("run", [ONE, WORKERS, DEVICES])
def test_finetune_leaves_the_encoders_batch_norm_bit_for_bit(place, curves, run):
    before, after = (load(place, run, step).variables["model"] for step in (STEPS, STEPS + FINETUNE))
    frozen = {name for name in before if name.startswith("encoder_") and "_bn/" in name}
    assert len(frozen) == 2 * 4  # two levels: gamma, beta, mean, variance
    assert {name for name in before if np.array_equal(before[name], after[name])} == frozen
    for name in before.keys() - frozen:
        assert np.mean(before[name] != after[name]) > 0.9, name


@both_divisions
def test_weights_and_averages_end_up_the_same(place, curves, divided):
    one, two = (load(place, run, STEPS).variables for run in (ONE, divided))
    for part in ("model", "ema"):
        for name, array in one[part].items():
            np.testing.assert_allclose(two[part][name], array, rtol=1e-2, atol=1e-3, err_msg=f"{part} {name}")


def test_a_division_among_devices_is_that_among_workers(place, curves):
    """The same rows on each, and the sum of two does not depend on their order: nothing has to differ, bit for bit."""
    workers, devices = (load(place, run, STEPS).variables for run in (WORKERS, DEVICES))
    for part in ("model", "ema", "optimizer"):
        for name, array in workers[part].items():
            np.testing.assert_array_equal(devices[part][name], array, err_msg=f"{part} {name}")


@pytest.fixture(scope="module")
def accumulated(place):
    """Events of worker 0: a batch of 16 at once, and as four parts of four on two workers and on two devices.

    The network has one level, and no normalization.
    """
    settings = ["unet.filters=6", "unet.kernels=5", "initial.steps=12", "finetune.steps=0", "validation.every=99"]
    four = [*settings, "global_batch_size=4", "accumulate=4"]
    with ThreadPoolExecutor() as pool:
        runs = {
            ONE: pool.submit(train, place, "sixteen", 1, *settings, "global_batch_size=16"),
            WORKERS: pool.submit(train, place, "four workers", 2, *four),
            DEVICES: pool.submit(train, place, "four devices", 1, *four, devices=2),
        }
        return {name: run.result()[0] for name, run in runs.items()}


@pytest.mark.soak
@both_divisions
def test_four_parts_of_four_are_a_batch_of_sixteen(place, accumulated, divided):
    one, four = (of(accumulated[run], "StepDone") for run in (ONE, divided))
    assert len(one) == len(four) == 12
    for event, other in zip(one, four, strict=True):
        assert other["terms"] == pytest.approx(event["terms"], rel=1e-5), event["step"]
    whole, parts = (load(place, run, 12) for run in ("sixteen", f"four {divided}"))
    assert whole.state["examples"] == parts.state["examples"] == 12 * 16
    assert not [name for name in whole.variables["model"] if "_bn/" in name]
    for part in ("model", "ema"):
        for name, array in whole.variables[part].items():
            np.testing.assert_allclose(parts.variables[part][name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.soak
def test_a_nan_on_one_worker_stops_all_at_the_same_step(place):
    one, two = train(place, "planted", 2, "initial.steps=7", "finetune.steps=0", "skip_nonfinite=1")
    for events in (one, two):
        raised = events[-1]["message"]
        assert raised.startswith("step 6: non-finite loss (total nan, ") and "after 1 skipped step" in raised
    assert "examples of worker 1: " in two[-1]["message"] and two[-1]["message"].count(".jpg") == 1
    assert (
        [event["step"] for event in of(one, "StepSkipped")]
        == [2]
        == [event["step"] for event in of(two, "StepSkipped")]
    )
    assert np.isfinite(of(one, "StepDone")[-1]["terms"]["total"])
    own = [[event["own_seconds"] for event in of(events, "Pace")] for events in (one, two)]
    assert own[0][:2] == own[1][:2] == [None, None]  # compiling
    # Steps take equally long on both, and the slow one is known all the same.
    assert len(own[0]) == len(own[1]) == 5 and min(own[1][2:]) > 0.49 and min(own[0][2:]) < 0.49, own
