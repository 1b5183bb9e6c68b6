"""Beam's Prism runs the four jobs, with workers that Beam's boot program starts in the project's image.

Prism and the workers are on a machine of their own network; each worker is a container there, which starts as Dataflow
starts it: as root, with a folder that root owns. What they read and write is in buckets of a server.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from running import Running

from engines import jobs, tools
from trainer import storage

ENGINE = f"Prism {tools.BEAM}, boot, the image beam"

# As infra/beam's scripts have it.
NOTHING_STAGED = ["--no_save_main_session", "--experiments", "disable_logging_submission_environment"]


def launch(cloud, job: str, output: str, *options: str) -> Running:
    command = [*jobs.options_of(job, cloud.bucket, output), *cloud.options, *options]
    return Running("-m", f"pipelines.{job}", *command, cwd=cloud.folder)


def worker_of(processes: list[int]) -> int:
    """Of a container's processes the one that runs Beam's worker; 0 before it is there."""
    for pid in processes:
        with contextlib.suppress(OSError):
            if b"sdk_worker_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return 0


@pytest.mark.parametrize("job", jobs.JOBS)
def test_a_job_writes_the_same_bytes_as_in_process(cloud, expected, figure, job):
    wanted, started = expected(job), len(cloud.pool.workers)
    # A session is what jobs of others stage, and Dataflow's client if it is not told to.
    staging = ["--save_main_session"] if job == "build_masks" else []
    with launch(cloud, job, f"prism/{job}", *(staging or NOTHING_STAGED)) as running:
        code, _ = running.wait()
    logs = [worker.log.read_text(errors="replace")[-4000:] for worker in cloud.pool.workers[started:]]
    assert code == (3 if job == "build_imagenet" else 0), (running.told, *logs)
    found = jobs.contents(f"{cloud.bucket}/prism/{job}")
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    if staging:
        (worker,) = cloud.pool.workers[started:]
        session = worker.folder / "staged/pickled_main_session"
        assert session.stat().st_uid == worker.folder.stat().st_uid == 1000
    figure(f"{job}: {len(found)} objects")


def books(output: str) -> set[str]:
    """Names of the outputs that the inpainting job has in its books."""
    parts = [address for address in storage.find(f"{output}/.items") if address.endswith(".jsonl")]
    return {json.loads(line)["output"] for part in parts for line in storage.read(part).splitlines()}


@pytest.mark.soak  # it takes a minute, and Prism may wait for ever for a worker that is lost while it sends to it
def test_a_killed_worker_fails_the_job_and_the_next_run_makes_only_the_rest(cloud, expected, figure):
    wanted, output = expected("inpaint"), f"{cloud.bucket}/killed"
    images = [name for name in wanted if name.endswith(".png")]
    with launch(cloud, "inpaint", "killed", *NOTHING_STAGED) as running:
        until = time.monotonic() + 600
        while not books(output):
            assert running.process.poll() is None and time.monotonic() < until, running.wait()
            time.sleep(0.02)
        worker = cloud.pool.workers[-1]
        pid = worker_of(worker.processes())
        assert os.stat(f"/proc/{pid}").st_uid == 1000
        for kind in ("net", "mnt", "pid"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        worker.kill()
        code, _ = running.wait()
    last = running.told.splitlines()[-1]
    assert code == 1 and last.startswith("error: ") and "Traceback" not in running.told, running.told
    before = [name for name in jobs.names(output) if name in images]
    booked = books(output)
    assert 0 < len(booked) <= len(before) < len(images)
    written = {name: storage.read_versioned(f"{output}/{name}") for name in before}
    with launch(cloud, "inpaint", "killed", *NOTHING_STAGED) as running:
        assert running.wait()[0] == 0, running.told
    assert f"{len(images)} images: {len(images)} inpainted; {len(booked)} of them from an earlier run" in running.told
    assert {name: storage.read_versioned(f"{output}/{name}") for name in before} == written
    found = jobs.contents(output)
    assert [name for name in images if found[name] != wanted[name]] == []
    figure(f"killed after {len(before)} of {len(images)} images, then the other {len(images) - len(before)}")


def test_workers_find_the_driver_of_nvidia_where_google_mounts_it(cloud, monkeypatch, tmp_path):
    """At /usr/local/nvidia: here some library of the image, under the driver's name, which only that place has."""
    driver = tmp_path / "nvidia"  # pytest's own folder is root's alone
    (driver / "lib64").mkdir(parents=True)
    (driver / "lib64/libcuda.so.1").symlink_to(f"/usr/lib/{platform.machine()}-linux-gnu/libz.so.1")
    monkeypatch.setitem(cloud.pool.mounts, "/usr/local/nvidia", driver)
    options = PipelineOptions([*cloud.options, *NOTHING_STAGED])
    with beam.Pipeline(options=options) as pipeline:
        loaded = pipeline | beam.Create(["libcuda.so.1"])
        loaded | beam.Map(lambda name: __import__("ctypes").CDLL(name)._name)  # raises OSError if it is not found
