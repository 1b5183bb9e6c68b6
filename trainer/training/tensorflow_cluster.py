"""How TensorFlow's workers on several machines find each other: addresses in ``TF_CONFIG``, ports of a known range.

Each of several workers runs a TensorFlow server that listens on all addresses of its machine and asks nobody who he is:
whoever reaches it can read and write files as the worker. That is TensorFlow's design; a firewall has to keep others
off the range. A worker that is alone gets no ``TF_CONFIG``, so it starts none.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket

import ray
from ray.train.backend import Backend
from ray.train.tensorflow import TensorflowConfig

from trainer.training.ray_session import TENSORFLOW_PORTS


def find_address(rank: int, workers: int) -> str:
    """An address of this machine with a port of the range that is free, and that no other worker of the group takes."""
    host = ray.util.get_node_ip_address()
    # Any of them: workers of an earlier group that still run, cut off, must not take this one for theirs.
    mine = TENSORFLOW_PORTS[rank::workers]
    for port in random.sample(mine, len(mine)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return f"{host}:{port}"
    raise RuntimeError(f"no port from {TENSORFLOW_PORTS[0]} to {TENSORFLOW_PORTS[-1]} is free on {host}")


def set_config(addresses: list[str], rank: int) -> None:
    """Tells TensorFlow in this process of its cluster."""
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
    os.environ["TF_CONFIG"] = json.dumps(task)


class _Backend(Backend):
    def on_start(self, worker_group, backend_config) -> None:
        workers = len(worker_group)
        if workers == 1:
            return
        asked = [worker_group.execute_single_async(rank, find_address, rank, workers) for rank in range(workers)]
        addresses = ray.get(asked)
        ray.get([worker_group.execute_single_async(rank, set_config, addresses, rank) for rank in range(workers)])


class ClusterConfig(TensorflowConfig):
    """Ray's `TensorflowConfig` with the ports and the exception above."""

    @property
    def backend_cls(self):
        return _Backend
