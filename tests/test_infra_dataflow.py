"""dataflow.sh with Beam's own client of Dataflow, against a service that answers on this machine and runs nothing."""

from __future__ import annotations

import subprocess

import pytest

from dataflow_service import JOB, serve_dataflow
from trainer.data import manifest


@pytest.fixture
def service():
    with serve_dataflow() as server:
        yield server


@pytest.fixture
def submit(service, tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        for name in ("temp", "files"):
            (tmp_path / name).mkdir(exist_ok=True)
        where = ("--temp_location", tmp_path / "temp", "--staging_location", tmp_path / "files")
        return service.submit(*arguments, "--output", tmp_path / "out", *where)

    return run


def masks(*options: str) -> list[str]:
    return [*options, "build_masks", "--count", "60", "--size", "32"]


def test_a_job_that_is_done_and_wrote_nothing_is_no_success(submit, service, tmp_path):
    done = submit(*masks())
    assert done.returncode == 1 and "60 masks" not in done.stdout, done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: the job is done, says its runner, but has not written ")
    assert str(tmp_path / "out" / manifest.MANIFEST) in done.stderr and "Traceback" not in done.stderr


def test_the_request_has_what_the_job_needs_and_stages_nothing_but_the_pipeline(submit, service, tmp_path):
    submit(*masks())
    (request,) = service.requests
    (pool,) = request["environment"]["workerPools"]
    assert (pool["machineType"], pool["diskSizeGb"], pool["numThreadsPerWorker"]) == ("n2-standard-4", 50, 2)
    assert pool["workerHarnessContainerImage"] == "r/pconv/beam:1" and not pool.get("packages")
    assert request["labels"] == {"app": "pconv", "job": "build-masks"}
    assert [path.name for path in (tmp_path / "files").rglob("*") if path.is_file()] == ["pipeline.pb"]
    # The workers compare their code with that of this machine.
    assert b"compare_code" in (tmp_path / "files/pipeline.pb").read_bytes()


def test_without_waiting_the_id_is_all_that_is_printed_and_the_job_keeps_its_claim(submit, service, tmp_path):
    service.state = "JOB_STATE_RUNNING"
    done = submit(*masks("--no-wait"), "--overwrite")
    assert (done.returncode, done.stdout) == (0, f"{JOB}\n"), done.stderr
    assert JOB not in service.asked  # not once
    assert len(list((tmp_path / "out/.claims").iterdir())) == 1


def test_a_canceled_job_is_one_line(submit, service):
    service.state = "JOB_STATE_CANCELLED"
    done = submit(*masks())
    assert done.returncode == 1 and done.stdout == f"{JOB}\n" and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"error: the job {JOB} ended in the state CANCELLED"
