"""The watcher of preemptions against a stand-in for Google Cloud's metadata server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest
from metadata_server import serve_metadata

from trainer.training import preemption


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(preemption, "_RETRY_S", 0.01)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody; the server is asked directly


def waits(url: str) -> threading.Thread:
    thread = threading.Thread(target=preemption.wait_for_announcement, args=(url,), daemon=True)
    thread.start()
    return thread


def test_an_announcement_ends_the_wait_and_another_change_does_not():
    with serve_metadata() as server:
        waiter = waits(server.url)
        server.await_waiting()
        server.change()  # an answer after a minute without a change looks the same
        server.await_waiting(2)
        assert waiter.is_alive()
        server.preempt()
        waiter.join(30)
        assert not waiter.is_alive()
        first, *later = server.asked
        assert "wait_for_change" not in first and all("wait_for_change=true" in path for path in later)


def test_what_was_announced_before_is_seen():
    with serve_metadata() as server:
        server.preempt()
        preemption.wait_for_announcement(server.url)
        assert len(server.asked) == 1


def test_an_announcement_during_an_outage_of_the_server_is_seen():
    """After a fault the question is asked without waiting: the change may be over."""
    with serve_metadata(503, 500) as server:
        server.preempt()
        preemption.wait_for_announcement(server.url)
        assert not any("wait_for_change" in path for path in server.asked) and len(server.asked) == 3


def test_a_server_that_cannot_be_reached_is_waited_for(capfd):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        waiter = waits(f"http://127.0.0.1:{port}")
        while "refused" not in capfd.readouterr().out:
            assert waiter.is_alive()
    with serve_metadata(port=port) as server:
        server.preempt()
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
    with serve_metadata() as server:
        command = [sys.executable, "-m", "trainer.training.preemption", "--address", "127.0.0.1:9"]
        command += ["--metadata", server.url]
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            server.await_waiting()
            second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
            assert (second.returncode, second.stdout) == (0, "") and first.poll() is None
        finally:
            first.kill()
            first.wait()
