"""A cloud on this machine: buckets on a server, and a machine on a network of its own with Prism and workers."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dataflow_service import COMMIT
from engines import tools
from engines.images import Pool
from storage_server import serve_storage
from trainer.storage import attempts, gcs

PORT = 8073
_START_TIMEOUT = 240.0  # seconds


@dataclass(frozen=True)
class Cloud:
    """
    Attributes:
        bucket: address of a bucket on a server that this process, its children and the workers reach.
        endpoint: of Prism's job service.
        options: of Beam, for a job that Prism runs.
    """

    folder: Path
    bucket: str
    endpoint: str
    pool: Pool
    options: list[str]


def _hosts(folder: Path):
    spec = importlib.util.spec_from_file_location("hosts", tools.ROOT / "infra/local/hosts.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.Hosts(str(folder), f"en{os.getpid() % 10**8:08x}", module.choose_prefix())


def _wait_for(address: str, port: int, process, log: Path) -> None:
    until = time.monotonic() + _START_TIMEOUT
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 5):
            return
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.05)


@contextlib.contextmanager
def make_cloud(folder: Path, image: str, prism: Path) -> Iterator[Cloud]:
    """Nothing of it is left: processes, containers, namespaces."""
    hosts = _hosts(folder)
    with contextlib.ExitStack() as opened:
        opened.callback(hosts.remove)
        hosts.make_bridge()
        hosts.add("machine")
        here, there = f"{hosts.prefix}1", hosts.address("machine")
        url = opened.enter_context(serve_storage(here, folder))
        patch = opened.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("PCONV_COMMIT", COMMIT)  # it stands in what jobs write, whoever submits them
        patch.setattr(attempts, "_DOUBT", 0.1)  # this server is right about what it does not have
        opened.callback(gcs.client.cache_clear)
        gcs.client.cache_clear()
        gcs.client().create_bucket("pconv")
        pool = Pool(image, folder, hosts._namespace("machine"), {"STORAGE_EMULATOR_HOST": url})
        opened.callback(pool.close)
        command = [str(prism), f"--job_port={PORT}", "--serve_http=false"]
        process = hosts.launch("machine", command, dict(os.environ))
        opened.callback(process.wait, 60)
        opened.callback(process.kill)
        _wait_for(there, PORT, process, folder / "machine.log")
        endpoint = f"{there}:{PORT}"
        options = ["--runner", "PortableRunner", "--job_endpoint", endpoint, "--artifact_endpoint", endpoint]
        options += ["--environment_type", "EXTERNAL", "--environment_config", f"{here}:{pool.port}"]
        yield Cloud(folder, "gs://pconv", endpoint, pool, options)
