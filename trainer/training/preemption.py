"""Tells Ray that this machine is about to be taken away, so that training saves a checkpoint and counts no failure.

    python -m trainer.training.preemption --address HEAD:6379            as soon as Google Cloud announces it
    python -m trainer.training.preemption --address HEAD:6379 --now 25   now, 25 seconds ahead; ends when they are over

infra/ray/cluster.yaml starts the first on every worker: Google Cloud announces that it takes a spot machine back 30
seconds ahead, to programs of that machine alone. On other machines it waits in vain. A second one ends at once.
infra/kuberay/rayjob.yaml has the second for pods that are evicted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence

NOTICE_S = 30  # from Google Cloud's announcement to the end of the machine
_PATH = "/computeMetadata/v1/instance/preempted"
_WAIT_S = 60  # of one request for a change
_CONNECT_S = 5.0
_RETRY_S = 1.0
_PATIENCE_S = 15.0  # after a machine should have gone


class Notice:
    """What a worker does about a notice that a machine of its group will be taken away.

    Args:
        seconds_left: returns the seconds until then, None while there is no notice; all workers call it together.
    """

    def __init__(self, seconds_left: Callable[[], float | None]):
        self._seconds_left = seconds_left
        self._end: float | None = None

    def comes(self) -> bool:
        """Asks; whether the notice comes now, and did not before."""
        if self._end is not None or (left := self._seconds_left()) is None:
            return False
        self._end = time.monotonic() + left
        return True

    @property
    def came(self) -> bool:
        return self._end is not None

    def wait_for_the_end(self) -> None:
        """Does nothing until the machine should be gone and Ray should have ended this process.

        What workers learn after their checkpoint would be lost. If they are not ended after all, they go on.
        """
        if self._end is not None:
            time.sleep(max(0.0, self._end + _PATIENCE_S - time.monotonic()))


def is_announced(metadata: str, wait: bool) -> bool:
    """Whether Google Cloud announces a preemption, by the metadata server's address.

    Args:
        wait: for a change, which takes up to a minute.

    Raises:
        OSError: the server does not answer.
    """
    query = f"?wait_for_change=true&timeout_sec={_WAIT_S}" if wait else ""
    request = urllib.request.Request(metadata + _PATH + query, headers={"Metadata-Flavor": "Google"})
    # Never through a proxy: the server is this machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_WAIT_S + 10) as answer:
        return answer.read().strip() == b"TRUE"


def wait_for_announcement(metadata: str) -> None:
    """Returns once a preemption is announced, also one that was before; outages of the server are waited for."""
    wait = False  # what changed before the first request, or during an outage, does not change again
    while True:
        try:
            if is_announced(metadata, wait):
                return
            wait = True
        except (OSError, ValueError) as error:
            print(f"{metadata}: {error}", flush=True)
            wait = False
            time.sleep(_RETRY_S)


def drain(address: str, deadline: float) -> bool:
    """Tells Ray's head at ``address`` that the nodes of this machine end at ``deadline``, a time.monotonic().

    Returns:
        Whether the head was there and accepted it.
    """
    import ray

    host, _, port = address.rpartition(":")
    try:  # Ray's own attempts take minutes
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{address}: {error}", flush=True)
        return False
    try:
        # Not the node that Ray considers this driver's: on a machine that has several that may be any.
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and _is_own(node["NodeManagerAddress"])]
    finally:
        ray.shutdown()
    accepted = []
    for node in nodes:
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={address}"]
        command += [f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=preempted"]
        command += [f"--deadline-remaining-seconds={max(0, int(deadline - time.monotonic()))}"]
        done = subprocess.run(command, capture_output=True, text=True)
        accepted.append(done.returncode == 0)
        print(f"node {node}:", "told" if accepted[-1] else done.stderr.strip().rpartition("\n")[2], flush=True)
    return bool(accepted) and all(accepted)


def _is_own(address: str) -> bool:
    """Whether an IP address is this machine's: nobody can listen at another's."""
    with contextlib.suppress(OSError):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
            return True
    return False


def watch(address: str, metadata: str) -> None:
    """Waits for the announcement, then tells Ray until Ray accepts it or the machine is gone."""
    # Kept until the process ends. The folder is the machine's own, or the container's.
    lock = os.open(os.path.join(tempfile.gettempdir(), "pconv-preemption.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    wait_for_announcement(metadata)
    deadline = time.monotonic() + NOTICE_S
    print("a preemption is announced", flush=True)
    while not drain(address, deadline) and time.monotonic() < deadline:
        time.sleep(_RETRY_S)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.training.preemption",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = os.environ.get("RAY_ADDRESS")  # KubeRay sets it
    parser.add_argument("--address", default=known, required=known is None, help="of Ray's head (default: RAY_ADDRESS)")
    parser.add_argument("--now", type=float, metavar="SECONDS", help="the machine goes in so many")
    parser.add_argument("--metadata", default="http://metadata.google.internal", help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.now is None:
        watch(arguments.address, arguments.metadata)
        return 0
    deadline = time.monotonic() + arguments.now
    if drain(arguments.address, deadline):
        time.sleep(max(0.0, deadline - time.monotonic()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
