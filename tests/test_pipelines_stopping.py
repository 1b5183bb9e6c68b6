"""Beam jobs that are stopped, or lose a worker process: real ones, of many masks, that would go on for minutes."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from running import Running, have_ended, is_alive

from pipelines.worker_processes import describe_end
from trainer import storage

MASKS = ["-m", "pipelines.build_masks", "--count", "500000", "--size", "128", "--output", "set"]
TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
THREADS = ["--direct_running_mode", "multi_threading", "--direct_num_workers", "2"]
PORTABLE = ["--runner", "PortableRunner", "--job_endpoint", "embed", "--environment_type", "LOOPBACK"]
WORKER = "worker_processes"
MEMORY = "; the usual cause is that memory ran out: try fewer processes (--direct_num_workers)"


@pytest.fixture
def scratch(tmp_path):
    """Folder for temporary files, which has to be empty at the end."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def without_progress(said: str) -> str:
    return re.sub(r"  \d+ of \d+ masks.*\n", "", said)


def job(tmp_path: Path, scratch: Path, *options: str) -> Running:
    return Running(*MASKS, *options, cwd=tmp_path, TMPDIR=str(scratch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "number", "code", "line"),
    [
        ([], signal.SIGINT, 130, "interrupted\n"),
        pytest.param([], signal.SIGTERM, 143, "interrupted by SIGTERM\n", marks=pytest.mark.soak),
        pytest.param(THREADS, signal.SIGINT, 130, "interrupted\n", marks=pytest.mark.soak),
        (PORTABLE, signal.SIGINT, 130, "interrupted\n"),
        (TWO_PROCESSES, signal.SIGINT, 130, "interrupted\n"),
        pytest.param(TWO_PROCESSES, signal.SIGTERM, 143, "interrupted by SIGTERM\n", marks=pytest.mark.soak),
    ],
)
def test_a_job_that_is_told_to_stop_does_with_all_it_started(tmp_path, scratch, options, number, code, line):
    with job(tmp_path, scratch, *options) as running:
        running.wait_for(" masks, ")
        below = running.below()
        assert len(below) == (2 if options is TWO_PROCESSES else 0)
        ended, said = running.stop(number)
        assert (ended, without_progress(said)) == (code, line)
    assert not any(map(is_alive, below))
    assert not (tmp_path / "set" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, "while they start"),
        (signal.SIGSEGV, "while they work"),
        pytest.param(signal.SIGSEGV, "while they start", marks=pytest.mark.soak),
        pytest.param(signal.SIGKILL, "while they work", marks=pytest.mark.soak),
    ],
)
def test_a_job_whose_worker_process_is_killed_fails_in_one_line(tmp_path, scratch, number, moment):
    with job(tmp_path, scratch, *TWO_PROCESSES) as running:
        while len(workers := running.below(WORKER)) < 2:
            assert running.process.poll() is None, running.wait()
        if moment == "while they work":
            running.wait_for(" masks, ")
        os.kill(workers[0], number)
        code, said = running.wait()
    memory = MEMORY if number == signal.SIGKILL else ""
    line = f"error: a worker process was killed by {signal.Signals(number).name}{memory}\n"
    assert (code, without_progress(said)) == (1, line)
    assert not any(map(is_alive, workers))


@pytest.mark.slow
def test_worker_processes_end_with_a_job_that_is_killed(tmp_path):
    with job(tmp_path, tmp_path, *TWO_PROCESSES) as running:
        running.wait_for(" masks, ")
        workers = running.below(WORKER)
        assert len(workers) == 2
        code, said = running.stop(signal.SIGKILL)  # until the last of them has closed the pipe
    assert code == -9 and without_progress(said) in ("", "a worker process has lost its job\n")  # if it was asking
    assert have_ended(workers)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], pytest.param(TWO_PROCESSES, marks=pytest.mark.soak)])
def test_a_job_leaves_no_temporary_files(tmp_path, scratch, options):
    (scratch / "beam-pipeline-temp-of-another").mkdir()
    for size, code in (("64", 0), ("1", 2)):
        command = ["-m", "pipelines.build_masks", "--count", "9", "--size", size, "--output", f"set{size}", *options]
        with Running(*command, cwd=tmp_path, TMPDIR=str(scratch)) as running:
            ended, said = running.wait()
            assert ended == code, said
    (scratch / "beam-pipeline-temp-of-another").rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_demo_ends_with_its_stage(tmp_path, number):
    storage.require_writable(str(tmp_path / "demo"))
    with Running("-m", "pipelines.demo", cwd=tmp_path, modules="apache_beam.coders") as demo:
        demo.wait_for("importing apache_beam.coders\n")
        (stage,) = demo.below("pipelines.build_masks")
        code, said = demo.stop(number)
    name = "" if number == signal.SIGINT else " by SIGTERM"
    assert (code, said) == (-9 if number == signal.SIGKILL else 128 + number, f"interrupted{name}\n")
    assert have_ended([stage])


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (-9, f"a worker process was killed by SIGKILL{MEMORY}"),
        (-11, "a worker process was killed by SIGSEGV"),
        (1, "a worker process ended with exit code 1 before the job was done"),
    ],
)
def test_a_sentence_says_how_a_worker_process_ended(code, sentence):
    assert describe_end(code) == sentence
