"""The watcher of preemptions against a stand-in for Google Cloud's metadata server."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from trainer.training import preemption


class Metadata(http.server.ThreadingHTTPServer):
    """Answers as https://cloud.google.com/compute/docs/metadata/querying-metadata says: at once, or after a change.

    Attributes:
        preempted: set when the machine is to be taken away; `change` wakes those who wait.
        faults: status codes that come before answers.
        asked: what was asked for, in order.
    """

    daemon_threads = True

    def __init__(self, *faults: int, port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.preempted, self.change, self.waiting = threading.Event(), threading.Event(), threading.Event()
        self.faults, self.asked = list(faults), []

    def preempt(self) -> None:
        self.preempted.set()
        self.change.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.headers["Metadata-Flavor"] != "Google":
            return self.send_error(403)  # as the real one
        if self.server.faults:
            return self.send_error(self.server.faults.pop(0))
        if not self.path.startswith("/computeMetadata/v1/instance/preempted"):
            return self.send_error(404)
        if "wait_for_change=true" in self.path:
            self.server.waiting.set()
            self.server.change.wait()
            self.server.change.clear()
        answer = b"TRUE" if self.server.preempted.is_set() else b"FALSE"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def metadata(*faults: int, port: int = 0) -> Iterator[Metadata]:
    with Metadata(*faults, port=port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(preemption, "_RETRY_S", 0.01)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody; the server is asked directly


def waits(url: str) -> threading.Thread:
    thread = threading.Thread(target=preemption.wait_for_announcement, args=(url,), daemon=True)
    thread.start()
    return thread


def test_an_announcement_ends_the_wait_and_another_change_does_not():
    with metadata() as server:
        waiter = waits(server.url)
        assert server.waiting.wait(30)
        server.waiting.clear()
        server.change.set()  # an answer after a minute without a change looks the same
        assert server.waiting.wait(30) and waiter.is_alive()
        server.preempt()
        waiter.join(30)
        assert not waiter.is_alive()
        first, *later = server.asked
        assert "wait_for_change" not in first and all("wait_for_change=true" in path for path in later)


def test_what_was_announced_before_is_seen():
    with metadata() as server:
        server.preempted.set()
        preemption.wait_for_announcement(server.url)
        assert len(server.asked) == 1


def test_an_announcement_during_an_outage_of_the_server_is_seen():
    """After a fault the question is asked without waiting: the change may be over."""
    with metadata(503, 500) as server:
        server.preempted.set()
        preemption.wait_for_announcement(server.url)
        assert not any("wait_for_change" in path for path in server.asked) and len(server.asked) == 3


def test_a_server_that_cannot_be_reached_is_waited_for(capfd):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        waiter = waits(f"http://127.0.0.1:{port}")
        while "refused" not in capfd.readouterr().out:
            assert waiter.is_alive()
    with metadata(port=port) as server:
        server.preempted.set()
        waiter.join(30)
        assert not waiter.is_alive()


def test_a_head_that_is_gone_is_told_nothing_and_not_waited_for(capfd):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert preemption.drain(address, 0.0) is False
        assert preemption.main(["--address", address, "--now", "1000"]) == 0
    assert address in capfd.readouterr().out


def test_a_machine_knows_its_own_addresses():
    assert preemption._is_own("127.0.0.1") and not preemption._is_own("192.0.2.7")


def test_a_second_watcher_of_a_machine_ends_at_once(tmp_path):
    with metadata() as server:
        command = [sys.executable, "-m", "trainer.training.preemption", "--address", "127.0.0.1:9"]
        command += ["--metadata", server.url]
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            assert server.waiting.wait(60)
            second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
            assert (second.returncode, second.stdout) == (0, "") and first.poll() is None
        finally:
            first.kill()
            first.wait()
            server.change.set()
