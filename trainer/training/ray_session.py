"""A Ray for one training or job: one of this machine alone, on loopback, or a cluster that is joined.

Ray is imported inside the functions: commands that only check use this module, too.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer import stopping
from trainer.command import quiet_imports
from trainer.config import ScalingConfig
from trainer.errors import UserError

# Where TensorFlow's servers listen, which several workers need. Firewalls and docs name this range: Ray's workers take
# 10002 to 19999, Linux gives out ports from 32768.
TENSORFLOW_PORTS = range(20000, 21000)
_CONNECT_S = 10.0  # to reach a cluster's address
_ANSWER_S = 60.0  # until Ray answers there, with its import; on a busy machine 15 are too few
_SOCKET_PATH = 107  # bytes of a Unix socket's path on Linux
# Ray's switch for laptops whose firewall asks about every port: with it, all its processes listen on 127.0.0.1.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Ray gives its own server 30 s to start, which is too little on a busy machine.
_PATIENCE = "RAY_gcs_server_port_wait_time_s", "120"
_MARK = "PCONV_TRAINING"  # variable by which the janitor knows the processes of a training
_PROBE = """
import sys
from ray._private import services
from ray._raylet import GcsClient
address = services.canonicalize_bootstrap_address(sys.argv[1])
GcsClient(address=address).internal_kv_get(b"pconv", namespace=b"pconv", timeout=5)
"""


def check_place(address: str | None, scaling: ScalingConfig, trusted_network: bool) -> str | None:
    """Where to work: the address of a Ray cluster, None for this machine. Asks nobody yet.

    Raises:
        UserError: it is not clear where, or several workers would open ports to a network that nobody vouches for.
    """
    if address is None and (meant := os.environ.get("RAY_ADDRESS")) not in (None, "", "local"):
        raise UserError(
            f"RAY_ADDRESS is {meant} and --address is not given: expected --address {meant} to join that cluster, or "
            "no RAY_ADDRESS to work on this machine"
        )
    if address in (None, "local"):
        _check_temporary_folder()
        return None
    if scaling.workers > 1 and not trusted_network:
        ports = f"{TENSORFLOW_PORTS[0]} to {TENSORFLOW_PORTS[-1]}"
        raise UserError(
            f"scaling.workers={scaling.workers} with --address: TensorFlow's workers would listen on ports {ports} of "
            "their machines without authentication, and whoever reaches them can read and write files there; "
            "expected --trusted-network if nobody else can reach these ports, or scaling.workers=1"
        )
    return address


def _check_temporary_folder() -> None:
    """Raises `UserError` if the paths of the sockets that Ray makes in its temporary folder would be too long."""
    names = [name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)]
    folder = os.environ[names[0]] if names else "/tmp"
    number = Path("/proc/sys/kernel/pid_max").read_text().strip() if os.path.exists("/proc") else "4194304"
    session = f"session_{datetime.datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{number}"
    room = _SOCKET_PATH - len(os.fsencode(os.path.join("", "ray", session, "sockets", "plasma_store"))) - 1
    if (length := len(os.fsencode(folder))) > room:
        raise UserError(
            f"{names[0]}: expected a path of at most {room} bytes, for Ray's sockets are below it. "
            f"Received {length} bytes: {folder}. RAY_TMPDIR=/tmp sets another for Ray alone."
        )


def check_cluster(address: str) -> None:
    """Raises `UserError` unless a Ray cluster answers at ``address``, within a minute or so."""
    if address != "auto" and "://" not in address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(
                f"--address: expected HOST:PORT of a Ray cluster, or auto. Received {address}: {error}"
            ) from None
    if "://" in address:  # Ray's client has checks of its own
        return
    try:
        # In a process of its own, for Ray's client cannot be interrupted: it tries for minutes.
        command = [sys.executable, "-c", _PROBE, address]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_ANSWER_S)
        lines = done.stderr.strip().splitlines()
        why = (lines[-1] if lines else "no answer") if done.returncode else None
    except subprocess.TimeoutExpired:
        why = f"no answer within {_ANSWER_S:.0f} s"
    if why is not None:
        raise UserError(f"--address: no Ray cluster answers at {address}: {why}")


@contextlib.contextmanager
def open_session(
    address: str | None,
    local: dict[str, Any],
    verbose: bool,
    variables: dict[str, str],
    keep: Callable[[str, list[str]], None] | None = None,
) -> Iterator[str]:
    """Starts or joins Ray; yields a folder of this machine for that time.

    At the end, and also if this process is killed, the local Ray's processes and files go.

    Args:
        local: of a Ray on this machine, as ``ray.init`` takes it: ``num_cpus`` and the like.
        variables: environment variables of the workers.
        keep: gets what processes of a cluster's other machines print, lines of a process at a time, and its name;
            without it nothing of that is fetched.

    Raises:
        UserError: Ray cannot be started or joined.
    """
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pconv-ray-", ignore_cleanup_errors=True))
        janitor = None
        options: dict[str, Any] = {}
        if address is None:
            janitor = stack.enter_context(_Janitor(scratch))
            os.environ.update(_LOOPBACK)
            os.environ.setdefault(*_PATIENCE)
            options = {**local, "include_dashboard": False}
        with quiet_imports():
            import ray

        try:
            with stopping.own_handlers():
                ray.init(
                    address=address or "local",
                    # A local Ray would need one process more for it.
                    log_to_driver=verbose or (address is not None and keep is not None),
                    logging_level=logging.INFO if verbose else logging.ERROR,
                    runtime_env={"env_vars": variables},
                    **options,
                )
        except Exception as error:
            what = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
            raise UserError(f"cannot {what}: {str(error).strip().partition(chr(10))[0]}") from None
        if janitor is not None and (node := ray._private.worker._global_node):
            janitor.clean(node.get_session_dir_path())
        stack.callback(ray.shutdown)
        # What Ray's debugger clears meanwhile: Ray prints a paragraph for each lost process or machine, on stdout.
        ray._private.worker._worker_logs_enabled = verbose
        if keep is not None:
            stack.enter_context(_keeping_lines(keep, verbose))
        yield scratch


@contextlib.contextmanager
def _keeping_lines(keep: Callable[[str, list[str]], None], verbose: bool) -> Iterator[None]:
    """Passes on what workers print; Ray prints it here, too, if ``verbose``."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    if not verbose:
        dispatcher.remove_handler("ray_print_logs")  # Ray's own
    dispatcher.add_handler("pconv", lambda batch: keep(f"{batch['ip']}-{batch['pid']}", batch["lines"]))
    try:
        yield
    finally:
        dispatcher.remove_handler("pconv")


class _Janitor:
    """A process that ends and removes what a local Ray leaves, once this process is through, or dead.

    Ray's own processes end with this one, but for two agents of a raylet, which notice after a minute, and none of them
    removes the session's files.
    """

    def __init__(self, *folders: str):
        self._folders = folders

    def __enter__(self) -> _Janitor:
        mark = os.urandom(8).hex()
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("janitor.py")), f"{_MARK}={mark}"]
        # In a session of its own: what interrupts this command must not interrupt cleaning up after it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.environ[_MARK] = mark  # all that is started from now on inherits it
        for folder in self._folders:
            self.clean(folder)
        return self

    def clean(self, folder: str) -> None:
        """Has a folder removed in the end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(os.fsencode(folder) + b"\n")
            self._process.stdin.flush()

    def __exit__(self, *_) -> None:
        os.environ.pop(_MARK, None)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
