"""Where a training runs, who can reach it, and what it leaves: against real sockets, processes and folders of /proc."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from running import have_ended, is_alive

from samples import write_noise
from trainer import presets
from trainer.config import ScalingConfig
from trainer.errors import UserError
from trainer.training import ray_session
from trainer.training.ray_session import check_cluster, check_place

ONE, TWO = ScalingConfig(workers=1), ScalingConfig(workers=2)
SMALL = ["unet.image_size=32", "unet.filters=4,8", "unet.kernels=3,3", "global_batch_size=4", "log_every=1"]


@pytest.fixture
def folder():
    """A folder with a short path: Ray makes sockets below it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_noise(root, 32, num_images=5, num_masks=7)
    return root


def command(datasets, run, *options):
    line = [sys.executable, "-m", "trainer.train", "--preset", "demo", "--run", str(run), *options]
    line += ["--images", str(datasets / "images"), "--masks", str(datasets / "masks")]
    return line + [part for setting in SMALL for part in ("--set", setting)]


# Where to train


def test_this_machine_is_the_default_and_needs_no_trust(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert check_place(None, TWO, False) is None
    assert check_place("local", TWO, False) is None


def test_an_address_that_only_the_environment_has_is_no_silent_choice(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    with pytest.raises(UserError, match="RAY_ADDRESS is 10.0.0.9:6379 .*expected --address 10.0.0.9:6379 .* or no RAY"):
        check_place(None, ONE, False)
    assert check_place("auto", ONE, False) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert check_place(None, ONE, False) is None


def test_several_workers_on_a_network_need_somebody_who_vouches_for_it():
    first, last = ray_session.TENSORFLOW_PORTS[0], ray_session.TENSORFLOW_PORTS[-1]
    with pytest.raises(UserError, match=f"ports {first} to {last} .*without authentication.*--trusted-network"):
        check_place("10.0.0.9:6379", TWO, False)
    assert check_place("10.0.0.9:6379", TWO, True) == check_place("10.0.0.9:6379", ONE, False) == "10.0.0.9:6379"


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"RAY_ADDRESS": "10.0.0.9:6379"}, [], "RAY_ADDRESS is 10.0.0.9:6379 and --address is not given"),
        ({}, ["--address", "127.0.0.1:1"], "--address: expected HOST:PORT .* Received 127.0.0.1:1: .*refused"),
        ({}, ["--address", "127.0.0.1:1", "--set", "scaling.workers=2"], "scaling.workers=2 with --address: .*ports"),
        ({"TMPDIR": "/tmp/" + "x" * 95}, [], "TMPDIR: expected a path of at most .* Received 100 bytes"),
        ({"RAY_TMPDIR": "/tmp/" + "x" * 95}, [], "RAY_TMPDIR: expected a path of at most .* Received 100 bytes"),
    ],
    ids=["environment", "refused", "untrusted", "long", "long-for-ray"],
)
def test_what_cannot_work_is_one_line(tmp_path, variables, options, message):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | variables
    line = command(tmp_path, tmp_path / "run", "--set", "scaling.workers=1", *options)
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 2 and done.stdout == "", (done.stdout, done.stderr)
    assert re.fullmatch(f"error: {message}.*\n", done.stderr), done.stderr


def test_a_path_that_ray_takes_is_not_refused(monkeypatch):
    """The limit is that of the socket which Ray really makes: one byte more and the kernel would refuse it."""
    made = "/ray/session_2026-11-26_01-00-57_287311_" + Path("/proc/sys/kernel/pid_max").read_text().strip()
    room = 107 - len(made + "/sockets/plasma_store")
    for length, refused in ((room, False), (room + 1, True)):
        monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (length - 1))
        with pytest.raises(UserError) if refused else contextlib.nullcontext():
            check_place(None, ONE, False)


def test_a_server_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(ray_session, "_ANSWER_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=f"^--address: no Ray cluster answers at {address}: "):
            check_cluster(address)


@pytest.mark.parametrize("address", ["somewhere", "127.0.0.1:http", "127.0.0.1:99999", "nowhere.invalid:6379"])
def test_what_is_no_address_is_told_with_what_is(address):
    with pytest.raises(
        UserError, match=f"^--address: expected HOST:PORT of a Ray cluster, or auto. Received {address}"
    ):
        check_cluster(address)


# On this machine. That a finished training leaves no files is in test_end_to_end.py, which has such trainings.


def processes_of(root: int) -> set[int]:
    """A process and all that it has started, and they."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def addresses_listened_on(processes: set[int]) -> dict[int, list[str]]:
    """IP addresses of the listening TCP sockets of each process that has any."""
    inodes = {}
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                words = bytes.fromhex(fields[1].partition(":")[0])
                packed = struct.pack(f">{len(words) // 4}I", *struct.unpack(f"<{len(words) // 4}I", words))
                inodes[fields[9]] = socket.inet_ntop(family, packed)
    found: dict[int, list[str]] = {}
    for process in processes:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inode = os.readlink(descriptor).removeprefix("socket:[").removesuffix("]")
                    if inode in inodes:
                        found.setdefault(process, []).append(inodes[inode])
    return found


def test_a_local_training_listens_on_loopback_alone_and_a_kill_leaves_nothing(folder, datasets):
    line = command(datasets, folder / "run", "--set", "scaling.workers=2", "--set", "initial.steps=100000")
    log = open(folder / "log", "wb")
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    os.mkdir(folder / "tmp")
    training = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        for told in training.stdout:
            if " step 3/" in told:
                break
        else:
            pytest.fail((folder / "log").read_text())
        processes = processes_of(training.pid)
        listened = addresses_listened_on(processes)
        assert len(listened) >= 3  # of Ray: the test looks at the right ones
        assert {address for found in listened.values() for address in found} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        commands = [Path(f"/proc/{process}/cmdline").read_bytes() for process in processes if is_alive(process)]
        assert sum(b"RayTrainWorker" in line for line in commands) == 1  # two devices in one process
    finally:
        training.send_signal(signal.SIGKILL)
        training.wait()
        training.stdout.close()
        log.close()
    assert have_ended(processes)
    deadline = time.monotonic() + 30
    while (names := [name for name in os.listdir(folder / "tmp") if name.startswith("pconv-ray-")]) or list(
        (folder / "tmp" / "ray").glob("session_*")
    ):
        assert time.monotonic() < deadline, names
        time.sleep(0.1)


def test_a_gpu_that_is_not_there_is_one_line_and_no_second_try(tmp_path, folder, datasets):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine may have a GPU")
    line = command(datasets, tmp_path / "run", "--set", "scaling.workers=1", "--set", "scaling.device=gpu")
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stderr
    wanted = "error: scaling.device=gpu: this machine has no GPU .*driver.*LD_LIBRARY_PATH.*\n"
    assert re.fullmatch(wanted, done.stderr), done.stderr
    assert "training starts" not in done.stdout and not (tmp_path / "run" / "checkpoints").exists()


def test_the_number_of_ports_is_enough_for_each_worker_to_find_a_free_one():
    from trainer.training import tensorflow_cluster

    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(socket.socket())
        with contextlib.suppress(OSError):  # somebody else's will do
            taken.bind(("", ray_session.TENSORFLOW_PORTS[1]))
            taken.listen()
        addresses = [tensorflow_cluster.find_address(rank, 3) for rank in range(3)]
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    assert len(set(ports)) == 3 and set(ports) <= set(ray_session.TENSORFLOW_PORTS)
    assert ray_session.TENSORFLOW_PORTS[1] not in ports
    assert presets.PRESETS["demo"].scaling.workers == 2  # what is trained here by default
