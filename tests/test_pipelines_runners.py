"""The mask job on every runner that is here, and after a worker process is killed: the same bytes each time."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.build_masks import main

OPTIONS = ["--count", "3000", "--size", "64", "--num-shards", "5", "--seed", "8"]
TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
PORTABLE = ["--runner", "PortableRunner", "--job_endpoint", "embed", "--environment_type", "LOOPBACK"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def run(folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and all that was said."""
    command = [sys.executable, "-m", "pipelines.build_masks", "--output", str(folder), *options]
    done = subprocess.run(
        command, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in-process") / "set"
    assert main(["--output", str(folder), *OPTIONS]) == 0
    return digests(folder)


@pytest.mark.slow
@pytest.mark.parametrize("runner", [TWO_PROCESSES, PORTABLE], ids=["two-processes", "portable"])
def test_3000_masks_are_the_same_bytes_on_every_runner(in_process, runner, tmp_path):
    code, said = run(tmp_path / "set", *OPTIONS, *runner)
    assert code == 0, said
    assert digests(tmp_path / "set") == in_process and len(in_process) == 7


# A module named sitecustomize, which Python imports at its start: a worker process dies when it is to draw one mask.
KILLER = """
import os, signal, sys
if "pipelines.worker_processes" in sys.orig_argv:
    from masks import sampling
    draw = sampling.sample_mask
    def draw_or_die(spec, index):
        if index == int(os.environ["DIE_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(spec, index)
    sampling.sample_mask = draw_or_die
"""


@pytest.mark.slow
def test_a_worker_killed_halfway_leaves_no_dataset_and_the_next_run_makes_it(in_process, tmp_path, monkeypatch, soak):
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLER)
    path = os.pathsep.join(filter(None, [str(tmp_path / "killer"), os.environ.get("PYTHONPATH")]))
    for seed in range(10 if soak else 1):
        folder = tmp_path / f"killed-{seed}"
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", path)
            patch.setenv("DIE_AT", str(random.Random(seed).randrange(3000)))
            killed, said = run(folder, *OPTIONS, *TWO_PROCESSES)
        assert killed == 1, said
        assert not (folder / "manifest.json").exists()
        assert run(folder, *OPTIONS, *TWO_PROCESSES)[0] == 0
        assert digests(folder) == in_process
