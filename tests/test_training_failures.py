"""Two hosts train from a bucket and lose a worker, a host and the command; what they learn does not show it.

The hosts are network namespaces where root allows it (infra/local). What the workers see and compute is written down by
a module that Python imports into them at their start, so it does not rest on what the program says of itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from storage_server import serve_storage
from trainer import checkpoints, storage
from trainer.data import manifest
from trainer.images import rgb
from trainer.storage import gcs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PHOTOS = sorted((ROOT / "pipelines" / "photos").glob("*/*/*.jpg"))
IMAGES, MASKS, BATCH, SIZE = 197, 90, 8, 32  # no epoch ends with a batch
# A module named sitecustomize: each attempt to train leaves a file per worker, its batches line by line, and of
# worker 0 the loss terms besides.
RECORDER = """
import importlib.abc, importlib.util, json, os, sys, time

class Recorder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in ("trainer.data.batches", "trainer.training.progress.monitor") or name in self.__dict__:
            return None
        self.__dict__[name] = True
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            if name == "trainer.data.batches":
                module.training_batches = batches_of(module.training_batches)
            else:
                module.Monitor.show_step = shown_by(module.Monitor.show_step)
        spec.loader.exec_module = exec_module
        return spec

def write(**values):
    print(json.dumps(values), file=FILE[0], flush=True)

def batches_of(training_batches):
    def batches(*args, **kwargs):
        FILE.append(open(f"{os.environ['RECORDS']}/{time.time_ns()}-{os.getpid()}.jsonl", "w"))
        group = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]
        write(start=kwargs["start"], worker=kwargs["worker"], group=group, pid=os.getpid())
        for batch in training_batches(*args, **kwargs):
            write(images=[name.decode() for name in batch[2].numpy().tolist()], masks=batch[3].numpy().tolist())
            yield batch
    return batches

def shown_by(show_step):
    def show(self, event, *args):
        if self._worker == 0:
            write(step=event.step, terms=event.terms)
        return show_step(self, event, *args)
    return show

FILE = []
if "RECORDS" in os.environ:
    sys.meta_path.insert(0, Recorder())
"""

# A worker of a training that nothing happens to, with what Ray would have started left out.
UNBROKEN = """
import sys
from trainer import presets
from trainer.training import loop
from trainer.training.devices import prepare_devices

prepare_devices("cpu", 1, 1)
data, worker, config = sys.argv[1:4], int(sys.argv[4]), presets.override(presets.PRESETS["demo"], sys.argv[5:])
loop.train(config, *data, worker=worker, workers=2, report=lambda event: None)
"""


def call(*command, **options) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Place:
    """The hosts, the storage that they share and what they write down."""

    def __init__(self, stack: contextlib.ExitStack):
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pconv-fail-"))
        self.folder, self.records = f"{scratch}/c", f"{scratch}/records"  # short: Ray puts sockets there
        os.mkdir(self.records)
        Path(scratch, "sitecustomize.py").write_text(RECORDER)
        self.environment = os.environ | {"RECORDS": self.records}
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [scratch, os.environ.get("PYTHONPATH")]))
        told = self.cluster("start", "--nodes", "0")
        stack.callback(self.cluster, "stop")
        self.address = re.search(r"--address (\S+)", told)[1]
        # Only now is there an address at which the hosts can reach a server of this machine.
        ours = re.search(r"this machine at (\S+)", told)
        url = stack.enter_context(serve_storage(ours[1] if ours else "127.0.0.1", Path(scratch)))
        self.environment["STORAGE_EMULATOR_HOST"] = url
        self.cluster("join", "node1", "node2")

    def cluster(self, action, *arguments) -> str:
        return call(ROOT / "infra/local/cluster.py", action, *arguments, "--folder", self.folder, env=self.environment)


@pytest.fixture
def place(monkeypatch):
    with contextlib.ExitStack() as stack:
        place = Place(stack)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", place.environment["STORAGE_EMULATOR_HOST"])
        gcs.client.cache_clear()
        stack.callback(gcs.client.cache_clear)
        gcs.client().create_bucket("pconv")
        yield place


def build_datasets(place):
    rng = np.random.default_rng(0)
    photos = [cv2.imread(str(path)) for path in PHOTOS]
    for number in range(IMAGES):
        photo = photos[number % len(photos)]
        y, x = (rng.integers(0, length - 64) for length in photo.shape[:2])
        storage.create(f"gs://pconv/photos/{number:03d}.jpg", rgb.encode_jpeg(photo[y : y + 64, x : x + 64]))
    shards = ["--num-shards", 4]
    size = ["--count", MASKS, "--size", SIZE]
    call("-m", "pipelines.build_masks", "--output", "gs://pconv/masks", *size, *shards)
    call("-m", "pipelines.build_imagenet", "--input", "gs://pconv/photos", "--output", "gs://pconv/images", *shards)
    counts = {kind: manifest.load_manifest(f"gs://pconv/{kind}s", kind).counts["records"] for kind in ("image", "mask")}
    assert counts == {"image": IMAGES, "mask": MASKS}


def settings_of(steps: int, every: int) -> list[str]:
    settings = {"unet.image_size": SIZE, "unet.filters": "4,8,8", "unet.kernels": "5,3,3", "precision": "float32"}
    settings |= {"initial.steps": steps, "initial.learning_rate": 0.0005, "global_batch_size": BATCH, "log_every": 1}
    settings |= {"checkpoint.every": every, "validation.every": 0, "scaling.max_failures": 99}
    return [f"{key}={value}" for key, value in settings.items()]


def train_unbroken(place: Place, run: str, steps: int, every: int) -> None:
    """Two processes of this machine: nothing may be different on Ray."""
    hosts, started = [f"127.0.0.1:{port}" for port in free_ports(2)], []
    for worker in range(2):
        task = json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": worker}})
        command = [sys.executable, "-c", UNBROKEN, "gs://pconv/images", "gs://pconv/masks", run, str(worker)]
        command += settings_of(steps, every)
        started.append(subprocess.Popen(command, env=place.environment | {"TF_CONFIG": task}))
    try:
        assert [process.wait(600) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Command:
    """python -m trainer.train, on the head; typed again it goes on."""

    def __init__(self, place: Place, run: str, steps: int, every: int):
        self._command = [sys.executable, str(ROOT / "infra/local/cluster.py"), "run", "--folder", place.folder, "--"]
        self._command += [sys.executable, "-m", "trainer.train", "--address", place.address, "--preset", "demo"]
        self._command += ["--trusted-network"]
        self._command += ["--images", "gs://pconv/images", "--masks", "gs://pconv/masks", "--run", run]
        self._command += [part for value in settings_of(steps, every) for part in ("--set", value)]
        self._place, self._log = place, Path(tempfile.mkstemp(dir=place.records, suffix=".log")[1])

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(self._command, env=self._place.environment, stdout=log, stderr=log)

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, happened) -> float:
        """Returns the seconds until ``happened()``; fails if the command ends before."""
        begin = time.monotonic()
        while not happened():
            assert self.process.poll() is None or (self.process.returncode == 0 and happened()), self.output()[-4000:]
            assert time.monotonic() < begin + 1500, self.output()[-4000:]
            time.sleep(0.02)
        return time.monotonic() - begin


def read_attempts(place) -> list[dict]:
    """By group of workers, oldest first: where it began, pids, batches by worker, loss terms by step."""
    groups: dict[tuple, dict] = {}
    for file in sorted(Path(place.records).glob("*.jsonl")):
        lines = file.read_text().splitlines(keepends=True)
        head, *rest = [json.loads(line) for line in lines if line.endswith("\n")] or [None]
        if head is None:
            continue
        group = groups.setdefault(
            tuple(head["group"]), {"start": head["start"], "pids": {}, "batches": {}, "terms": {}}
        )
        assert group["start"] == head["start"]
        group["pids"][head["worker"]] = head["pid"]
        group["batches"][head["worker"]] = [line for line in rest if "images" in line]
        group["terms"] |= {line["step"]: line["terms"] for line in rest if "terms" in line}
    return list(groups.values())


def what_counts(attempts, steps) -> tuple[list[str], list[int], dict[int, dict]]:
    """Image and mask of each example in order, and loss terms by step: of each step, from the attempt that was kept."""
    names, masks, terms = [], [], {}
    starts = [attempt["start"] // BATCH for attempt in attempts] + [steps]
    assert starts[0] == 0 and starts == sorted(starts)  # what was saved once is never computed again
    for attempt, (begin, end) in zip(attempts, itertools.pairwise(starts), strict=True):
        for step in range(begin, end):
            batches = [attempt["batches"][worker][step - begin] for worker in range(2)]
            names += itertools.chain(*zip(*(batch["images"] for batch in batches), strict=True))
            masks += itertools.chain(*zip(*(batch["masks"] for batch in batches), strict=True))
            terms[step + 1] = attempt["terms"][step + 1]
    return names, masks, terms


NOTICE = "preemption notice: saving checkpoint at step"


def break_it(what, place, command, others, rng) -> None:
    if what == "worker":
        with contextlib.suppress(ProcessLookupError):
            os.kill(read_attempts(place)[-1]["pids"][rng.randrange(2)], 9)
    elif what in ("node", "notice"):
        if what == "notice":
            told = command.output().count(NOTICE)
            place.cluster("warn", others[0])
            command.wait(lambda: command.output().count(NOTICE) > told)
        place.cluster("kill", others[0])
        others.append(others.pop(0) + "b")  # another takes its place
        place.cluster("join", others[-1])
    else:
        command.process.kill()
        command.process.wait()
        command.start()


@pytest.mark.timeout(7200)
def test_a_run_that_loses_a_worker_a_host_and_its_command_equals_one_that_did_not(place, soak):
    """A worker is lost with its host; if there is time, by itself, too, and ten more failures in a row follow, at
    random moments and in a checkpoint's upload mostly.

    The sum of two workers' gradients is the same in either order, and a worker's own threads are one: 1e-6 is room that
    two need not have, and more than two would, whose order of summation may change when they start again.
    """
    build_datasets(place)
    failures, every, apart = ["node", "driver"], 8, 26
    rng = random.Random(time.time_ns() if soak else 0)
    if soak:
        failures = ["worker", *failures, "notice", *rng.choices(["worker", *failures], k=10)]
        every, apart = 2, 60
    steps, seconds = apart * (len(failures) + 1), {}
    train_unbroken(place, "gs://pconv/whole", steps, every)
    expected = what_counts(read_attempts(place), steps)
    for file in Path(place.records).glob("*.jsonl"):
        file.unlink()

    command, nodes = Command(place, "gs://pconv/broken", steps, every), ["node1", "node2"]
    command.start()
    for number, what in enumerate(failures):
        step = apart * number + rng.randint(apart // 4, apart - 5)
        command.wait(lambda step=step: f" step {step}/{steps} " in command.output())
        time.sleep(rng.uniform(0, 0.1))
        known = len(read_attempts(place))
        begin = time.monotonic()
        break_it(what, place, command, nodes, rng)
        checkpoints.load_checkpoint(checkpoints.find_latest("gs://pconv/broken"))  # raises what cannot be read
        command.wait(lambda known=known: any(attempt["terms"] for attempt in read_attempts(place)[known:]))
        seconds[f"{number} {what} at {step}"] = time.monotonic() - begin
    command.wait(lambda: command.process.poll() is not None)
    print({what: round(value, 1) for what, value in seconds.items()})

    attempts = read_attempts(place)
    assert len(attempts) >= len(failures) + 1
    assert re.search(r"^worker [01] has failed: \w+: \S", command.output(), re.MULTILINE)
    names, masks, terms = what_counts(attempts, steps)
    for found, count in ((names, IMAGES), (masks, MASKS)):
        for epoch in range(len(found) // count):
            assert len(set(found[epoch * count : (epoch + 1) * count])) == count
    assert (names, masks) == expected[:2]
    assert terms.keys() == expected[2].keys() == set(range(1, steps + 1))
    for step, values in terms.items():
        assert values == pytest.approx(expected[2][step], rel=1e-6), step
    ours, theirs = (
        checkpoints.load_checkpoint(checkpoints.find_latest(f"gs://pconv/{run}")) for run in ("broken", "whole")
    )
    assert ours.state == theirs.state
    for part, arrays in theirs.variables.items():
        for name, array in arrays.items():
            np.testing.assert_allclose(ours.variables[part][name], array, rtol=1e-6, atol=1e-9, err_msg=name)
