"""Jobs with workers elsewhere: the code that both sides must have, and jobs that outlive the command."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from pipelines import remote
from trainer.data import manifest
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def other_code(tmp_path):
    """A folder with the project's packages, where one line of one file differs."""
    for package in ("masks", "trainer", "pipelines"):
        ignored = shutil.ignore_patterns("__pycache__", "*.jpg")
        shutil.copytree(ROOT / package, tmp_path / "code" / package, ignore=ignored)
    with open(tmp_path / "code/masks/coverage.py", "a") as file:
        file.write("# another day\n")
    return tmp_path / "code"


def digest_of(folder: Path) -> str:
    command = [sys.executable, "-c", "from pipelines import remote; print(remote.digest())"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_digest_is_of_the_code_and_not_of_where_it_lies(other_code):
    changed = digest_of(other_code)
    text = (ROOT / "masks/coverage.py").read_text("utf-8")
    (other_code / "masks/coverage.py").write_text(text)
    (other_code / "masks/__pycache__").mkdir()
    (other_code / "masks/README.md").write_text("Not code.")
    assert digest_of(other_code).strip() == remote.digest() != changed.strip()


def test_other_code_is_refused_unless_it_is_allowed(caplog):
    remote.compare_code((remote.digest(), "0.1.0"), allowed=False)
    with pytest.raises(UserError, match=r"expected 0\.1\.0\+abc \(0123\)\. Received .*PCONV_OTHER_CODE=allow"):
        remote.compare_code(("0123", "0.1.0+abc"), allowed=False)
    assert not caplog.records
    remote.compare_code(("0123", "0.1.0+abc"), allowed=True)
    assert "other code" in caplog.text


@pytest.mark.parametrize(
    ("options", "elsewhere", "outlives"),
    [
        (["--runner", "FnApiRunner"], False, False),
        (["--runner", "DataflowRunner"], True, True),
        (["--runner", "PortableRunner", "--job_endpoint", "embed", "--environment_type", "LOOPBACK"], False, False),
        (["--runner", "PortableRunner", "--job_endpoint", "embed", "--environment_type", "EXTERNAL"], True, False),
        (["--runner", "PortableRunner", "--job_endpoint", "h:1", "--environment_type", "LOOPBACK"], False, False),
        (["--runner", "PortableRunner", "--job_endpoint", "h:1", "--environment_type", "DOCKER"], True, True),
        (["--runner", "FlinkRunner", "--environment_type", "EXTERNAL"], True, False),  # its job server is ours
    ],
)
def test_where_workers_are_and_what_outlives_the_command(options, elsewhere, outlives):
    options = PipelineOptions(options)
    assert (remote.has_workers_elsewhere(options), remote.outlives_us(options)) == (elsewhere, outlives)


TRACEBACK = "Traceback (most recent call last):\n  File 'a.py', line 1, in f\nKeyError: 'a'\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Dataflow pipeline failed. State: FAILED, Error:\nWorkflow failed.\n  Causes: a.",
            "Workflow failed. Causes: a.",
        ),
        (f"Dataflow pipeline failed. State: FAILED, Error:\n{TRACEBACK}", "KeyError: 'a'"),
        (f"Pipeline job-001[job] failed in state FAILED: bundle inst-1 failed: {TRACEBACK}\n", "KeyError: 'a'"),
        ("Dataflow pipeline failed. State: FAILED, Error:\nNone", ""),
        ("", ""),
    ],
)
def test_of_what_a_service_says_one_line_is_the_reason(text, reason):
    assert remote.reason_in(text) == reason


def test_a_job_of_this_process_does_not_outlive_it(capsys):
    options = PipelineOptions(["--runner", "FnApiRunner"])
    remote.leave(object(), options)
    remote.leave(None, PipelineOptions(["--runner", "DataflowRunner"]))  # none has been started
    assert capsys.readouterr() == ("", "")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def running(module: str, port: int, code: Path, *options: str):
    """A server of Beam's at a port, with the project's code from a folder; it listens when this begins."""
    # The pool calls python by its name.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(code), "PCONV_COMMIT": "theirs"}
    command = [sys.executable, "-m", module, *options]
    with subprocess.Popen(command, env=environment, cwd=code, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as server:  # fmt: skip
        try:
            with grpc.insecure_channel(f"localhost:{port}") as channel:
                grpc.channel_ready_future(channel).result(timeout=120)
            yield
        finally:
            os.killpg(server.pid, 9)


@contextlib.contextmanager
def workers(code: Path):
    """Address of a pool that starts workers in processes of their own."""
    port = free_port()
    pool = "apache_beam.runners.worker.worker_pool_main"
    with running(pool, port, code, "--service_port", str(port)):
        yield f"localhost:{port}"


def submit(output: Path, pool: str, *options: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipelines.build_masks", "--output", str(output), "--count", "30", "--size", "32"]
    command += ["--runner", "PortableRunner", "--environment_type", "EXTERNAL", "--environment_config", pool, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PCONV_COMMIT": "ours", **variables}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_workers_with_other_code_fail_the_job_in_one_line(other_code, tmp_path):
    with workers(other_code) as pool:
        refused = submit(tmp_path / "out", pool, "--job_endpoint", "embed")
        allowed = submit(tmp_path / "out", pool, "--job_endpoint", "embed", PCONV_OTHER_CODE="allow")
    assert refused.returncode == 2, refused.stderr
    assert "error: the workers' image has other code than the machine that submits" in refused.stderr
    assert "expected 0.1.0+ours" in refused.stderr and "Received 0.1.0+theirs" in refused.stderr
    assert allowed.returncode == 0, allowed.stderr
    assert manifest.load_manifest(str(tmp_path / "out"), "mask").code_version == "0.1.0+ours"


@pytest.mark.slow
def test_a_job_that_is_not_waited_for_ends_well_without_its_command(tmp_path):
    port = free_port()
    service = "apache_beam.runners.portability.local_job_service_main"
    with workers(ROOT) as pool, running(service, port, ROOT, "--job_port", str(port)):
        where = ("--job_endpoint", f"localhost:{port}")
        done = submit(tmp_path / "out", pool, *where, "--no-wait", "--overwrite")
        assert done.returncode == 0 and len(done.stdout.split()) == 1, done.stderr
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            jobs = beam_job_api_pb2_grpc.JobServiceStub(channel)
            request = beam_job_api_pb2.GetJobStateRequest(job_id=done.stdout.strip())
            *_, last = jobs.GetStateStream(request, timeout=300)
        assert last.state == beam_job_api_pb2.JobState.DONE
        again = submit(tmp_path / "out", pool, *where)
    assert again.returncode == 0 and "is already complete" in again.stderr
    assert manifest.load_manifest(str(tmp_path / "out"), "mask").counts["records"] == 30
