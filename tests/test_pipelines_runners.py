"""The mask job on every runner that is here, and after a worker process is killed: the same bytes each time."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.build_masks import main

OPTIONS = ["--count", "3000", "--size", "64", "--num-shards", "5", "--seed", "8"]
TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
PORTABLE = ["--runner", "PortableRunner", "--job_endpoint", "embed", "--environment_type", "LOOPBACK"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def start(folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.build_masks", "--output", str(folder), *options]
    return subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in-process") / "set"
    assert main(["--output", str(folder), *OPTIONS]) == 0
    return digests(folder)


@pytest.mark.slow
@pytest.mark.parametrize("runner", [TWO_PROCESSES, PORTABLE], ids=["two-processes", "portable"])
def test_3000_masks_are_the_same_bytes_on_every_runner(in_process, runner, tmp_path):
    job = start(tmp_path / "set", *OPTIONS, *runner)
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, said
    assert digests(tmp_path / "set") == in_process and len(in_process) == 7


def worker_processes(job: int) -> list[int]:
    """Beam's worker processes below process ``job``, without the shells that start them."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except (ValueError, OSError):  # not a process, or gone by now
            continue
        if b"apache_beam.runners.worker.sdk_worker_main" in command:
            found.append(int(entry.name))

    def descends(pid: int) -> bool:
        return pid == job or (pid in parents and descends(parents[pid]))

    return [pid for pid in found if descends(pid)]


@pytest.mark.slow
def test_a_worker_killed_halfway_leaves_no_dataset_and_the_next_run_makes_it(tmp_path, soak):
    options = ["--count", "16000", "--size", "256"]
    assert main(["--output", str(tmp_path / "undisturbed"), *options]) == 0
    for seed in range(10 if soak else 1):
        folder = tmp_path / f"killed-{seed}"
        job = start(folder, *options, *TWO_PROCESSES)
        while len(workers := worker_processes(job.pid)) < 2:
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.05)
        for line in job.stdout:  # they are drawing
            if " masks, " in line:
                break
        time.sleep(random.Random(seed).uniform(0, 0.5))
        os.kill(workers[seed % 2], signal.SIGKILL)
        said, _ = job.communicate(timeout=120)
        assert job.returncode == 1, said
        assert not (folder / "manifest.json").exists()
        again = start(folder, *options, *TWO_PROCESSES)
        said, _ = again.communicate(timeout=240)
        assert again.returncode == 0, said
        assert digests(folder) == digests(tmp_path / "undisturbed")
