"""dataflow.sh with Beam's own client of Dataflow, against a service that answers on this machine and runs nothing."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainer.data import manifest

ROOT = Path(__file__).resolve().parents[1]
JOB = "2026-11-26_00_00_00-123"


@pytest.fixture
def service():
    """Address of a service that calls every job ``service.state``, and ``service.requests``, the jobs it was sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = self.path.partition("?")[0].rpartition("/")[2]
            if sent and asked == "jobs":
                server.requests.append(json.loads(sent))
            server.asked.append(asked)
            job = {"id": JOB, "projectId": "some-project", "location": "us-central1", "currentState": server.state}
            data = json.dumps(job if asked in ("jobs", JOB) else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.asked, server.state = [], [], "JOB_STATE_DONE"
    server.address = f"http://localhost:{server.server_port}"  # without credentials Beam speaks to this name alone
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def submit(service, tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        for name in ("temp", "files"):
            (tmp_path / name).mkdir(exist_ok=True)
        names = ("PROJECT", "REGION", "SUBNETWORK", "REPOSITORY", "TAG", "SCRATCH", "MASKS_ACCOUNT")
        values = ("some-project", "us-central1", "regions/r/subnetworks/s", "r/pconv", "1", "gs://s", "masks@x")
        environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PCONV_COMMIT": "abc"}
        environment |= {f"PCONV_{name}": value for name, value in zip(names, values, strict=True)}
        where = ("--temp_location", tmp_path / "temp", "--staging_location", tmp_path / "files")
        command = ["bash", ROOT / "infra/beam/dataflow.sh", *arguments, "--output", tmp_path / "out", *where]
        command += ["--dataflow_endpoint", service.address, "--no_auth"]
        return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)

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
