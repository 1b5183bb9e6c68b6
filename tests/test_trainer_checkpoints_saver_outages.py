"""Checkpoints through failures of a real store and of the process: an outage, and SIGKILL at any moment."""

from __future__ import annotations

import http.client
import http.server
import math
import random
import re
import signal
import subprocess
import sys
import threading
import urllib.parse

import clouds
import numpy as np
import pytest
from faults import DELETE, UPLOAD

from trainer import checkpoints, presets, storage
from trainer.checkpoints import files, pointers, retention
from trainer.checkpoints.files import is_whole
from trainer.checkpoints.saver import Saver
from trainer.storage import attempts

CONFIG = presets.override(presets.PRESETS["demo"], ["checkpoint.keep=2"])
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Count:
    """Counts, and lets others wait for a number."""

    def __init__(self):
        self.value, self._changed = 0, threading.Condition()

    def add(self):
        with self._changed:
            self.value += 1
            self._changed.notify_all()

    def wait(self, value):
        with self._changed:
            assert self._changed.wait_for(lambda: self.value >= value, 120), f"{self.value} of {value}"


def is_of(pattern: str, request) -> bool:
    return re.match(pattern, f"{request.command} {request.path}") is not None


class Proxy:
    """In front of the server: ``pass``es requests on, answers ``503``, ``cut``s off answers of work that was done.

    Attributes:
        refused: `Count` of the requests that were not answered as the server would have.
        heal_at: number of those at which the server is there again.
    """

    def __init__(self, upstream):
        self.mode, self.refused, self.heal_at = "pass", Count(), math.inf
        self._upstream = urllib.parse.urlsplit(upstream).netloc
        self._address = ("127.0.0.1", 0)
        self.open()

    def open(self):
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_one_request(self):
                self.raw_requestline = self.rfile.readline(65537)
                if self.raw_requestline and self.parse_request():
                    proxy.answer(self)
                self.close_connection = True

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self._server = Server(self._address, Handler)
        self._address = self._server.server_address
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        """From now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if self.mode == "503":
            self.refused.add()
            if self.refused.value >= self.heal_at:
                self.mode = "pass"
            request.send_error(503)
            return
        connection = http.client.HTTPConnection(self._upstream, timeout=30)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        connection.request(request.command, request.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        if self.mode == "cut" and is_of(UPLOAD, request) and response.status < 300:
            self.mode = "pass"
            self.refused.add()
            return
        request.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in HOP:
                request.send_header(name, value)
        known = response.getheader("Content-Length") if request.command == "HEAD" else None
        request.send_header("Content-Length", known or str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    @property
    def url(self):
        return "http://{}:{}".format(*self._address)


@pytest.fixture
def proxied(server, bucket):
    """A proxy and the address of a run behind it."""
    proxy = Proxy(server)
    with clouds.reached(proxy.url):
        yield proxy, bucket + "/run"
    proxy.close()


def make(step):
    return {"model": {"w": np.full(1000, step)}, "optimizer": {}}


@pytest.fixture
def unanswered(monkeypatch):
    """`Count` of this process's requests that got no answer."""
    count, patience = Count(), attempts._patience

    def counted(kind, *rest):
        if kind == "unanswered":
            count.add()
        return patience(kind, *rest)

    monkeypatch.setattr(attempts, "_patience", counted)
    return count


def test_training_outlasts_a_store_that_refuses(proxied, unanswered, soak):
    """How long it refuses is counted in attempts."""
    proxy, run = proxied
    least = 12 if soak else 3
    with Saver(run, CONFIG) as saver:
        saver.save(make(1), {"step": 1})
        saver.wait()
        proxy.close()  # connections are refused at first, then answered with errors
        assert saver.save(make(2), {"step": 2}) == 0  # the store has not healed: training does not notice
        unanswered.wait(least)
        proxy.mode = "503"
        proxy.open()
        proxy.refused.wait(least)
        assert [x.step for x in saver.finished()] == [1]
        proxy.heal_at = proxy.refused.value + least
        waited = saver.save(make(3), {"step": 3})  # one upload at a time
        assert waited > 0 and proxy.mode == "pass" and proxy.refused.value >= proxy.heal_at
        assert [x.step for x in saver.finished()] == [2]
    assert [x.step for x in saver.finished()] == [3]
    found = checkpoints.load_newest(run)
    assert found.checkpoint.state == {"step": 3} and found.skipped == []
    assert [step for step, _ in files.newest_first(run)] == [3, 2]
    assert is_whole(checkpoints.find(run, 2))


def test_a_store_that_does_not_delete_holds_nothing_up(proxied):
    """Checkpoints are complete and the saver closes, while not one answer to a delete has been of use."""
    proxy, run = proxied
    answer, go = proxy.answer, threading.Event()

    def refuse_deletes(request):
        if is_of(DELETE, request) and not go.is_set():
            proxy.refused.add()
            request.send_error(503)
        else:
            answer(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "answer", refuse_deletes)
        patch.setattr(retention, "GRACE", 0.2)
        with Saver(run, CONFIG) as saver:
            for step in range(1, 6):
                saver.save(make(step), {"step": step})
            saver.wait()
            assert [x.step for x in saver.finished()] == [1, 2, 3, 4, 5] and not go.is_set()
            proxy.refused.wait(1)
        assert len(files.newest_first(run)) == 5 and checkpoints.load_newest(run).checkpoint.state == {"step": 5}
        go.set()
    with Saver(run, CONFIG) as saver:
        saver.save(make(6), {"step": 6})
    assert [step for step, _ in files.newest_first(run)] == [6, 5]


@pytest.mark.parametrize("write", range(1, 7))
def test_an_answer_that_is_lost_on_its_way_is_no_failure(proxied, write, monkeypatch):
    """Of each write of a checkpoint in turn: two parts, state, config, manifest, pointer."""
    proxy, run = proxied
    answer, posts = proxy.answer, []

    def count(request):
        posts.extend([request.path] if is_of(UPLOAD, request) else [])
        if is_of(UPLOAD, request) and len(posts) == write:
            proxy.mode = "cut"
        answer(request)

    with Saver(run, CONFIG) as saver:
        monkeypatch.setattr(proxy, "answer", count)
        saver.save(make(1), {"step": 1})
    assert proxy.refused.value == 1 and len(posts) == 7  # six writes, one of them twice
    (saved,) = saver.finished()
    assert saved.latest and checkpoints.find_latest(run) == saved.pin and is_whole(saved.pin)


# Kills itself before the n-th thing of the saver's that it asks of the system: to open, link or remove a file, to send.
PROGRAM = """
import os
import signal
import sys
import numpy as np
from trainer import checkpoints, presets
from trainer.checkpoints.saver import Saver
from trainer.storage import attempts

run, left = sys.argv[1], int(sys.argv[2])

def count(event, _arguments):
    global left
    if event.startswith(("open", "os.", "http.client.send", "request")):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

config = presets.override(presets.PRESETS["demo"], ["checkpoint.keep=2"])
found = checkpoints.load_newest(run)
assert not (found and found.skipped), found.skipped
step = found.checkpoint.state["step"] if found else 0
print(step, flush=True)
sys.addaudithook(count)
repeat = attempts.repeat
attempts.repeat = lambda *arguments: (count("request", ()), repeat(*arguments))[1]  # some clients are no Python
with Saver(run, config) as saver:
    while True:
        step += 1
        rng = np.random.default_rng(step)
        arrays = {f"w{i}": rng.random(int(rng.integers(1, 60_000))) for i in range(3)}
        value = float(rng.random())
        score = checkpoints.Score(metric="psnr", value=value, higher_is_better=True) if step % 3 == 0 else None
        saver.save({"model": arrays, "optimizer": {"m": arrays["w0"]}}, {"step": step}, score)
"""


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_killed_at_any_moment_latest_and_best_can_be_read(place, request, tmp_path, soak):
    run = str(tmp_path / "run") if place == "folder" else request.getfixturevalue("bucket") + "/run"
    moments, step, unfinished = random.Random(5), 0, 0
    for _ in range(25 if soak else 3):
        # A checkpoint is 60 to 110 of them in a folder.
        command = [sys.executable, "-c", PROGRAM, run, str(moments.randint(1, 400))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        # It continues where the pointer was; at a whole checkpoint if it was killed before there was one.
        assert int(done.stdout) == step or (int(done.stdout) == 1 and step == 0)
        names = storage.folders(run + "/checkpoints")
        unfinished += sum(not storage.exists(f"{run}/checkpoints/{name}/manifest.json") for name in names)
        for which in ("latest", "best"):
            if not storage.exists(f"{run}/checkpoints/{which}.json"):
                continue
            pointer = pointers.read(run, which)
            if pointer.checkpoint is None:  # killed before the first was written
                continue
            checkpoint = checkpoints.load_checkpoint(pointer.pin(run))
            rng = np.random.default_rng(pointer.step)
            for i in range(3):
                expected = rng.random(int(rng.integers(1, 60_000)))
                np.testing.assert_array_equal(checkpoint.variables["model"][f"w{i}"], expected)
            assert checkpoint.state == {"step": pointer.step}
            if which == "latest":
                assert pointer.step >= step
                step = pointer.step
    assert step > 0 and (unfinished > 0 or not soak)
    with Saver(run, CONFIG) as saver:
        saver.save({"model": {"w0": np.zeros(3)}, "optimizer": {}}, {"step": step + 1})
    names = storage.folders(run + "/checkpoints")  # the latest, one before it, and the best
    assert len(names) <= 3 and all(storage.exists(f"{run}/checkpoints/{name}/manifest.json") for name in names)
