"""A real storage server on loopback, for tests that use buckets, and a headless Chromium."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import clouds
import cv2
import numpy as np
import pytest

from engines import tools

# For the processes that tests start; TensorFlow's log is not what they look at.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Ray gives its server 30 s to start, which is nothing on a busy machine.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "600")


collect_ignore = ["engines"]  # unless it is asked for, as `make engines` does


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="the same tests with far bigger counts (make soak)")
    parser.addoption(
        "--store",
        choices=clouds.CLOUDS,
        default="gs",
        help="scheme of the buckets that tests use; leaves out what uses none",
    )


def pytest_configure(config):
    # A shell starts what it runs in the background with SIGINT ignored, nohup with SIGHUP, and so would be what tests
    # start and interrupt.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
    clouds.chosen = clouds.CLOUDS[config.getoption("--store")]


def uses_buckets(item) -> bool:
    cases = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return "server" in item.fixturenames or any(isinstance(case, str) and case == "bucket" for case in cases)


def pytest_collection_modifyitems(config, items):
    """Files with slow tests come first: of two processes one would wait long for the other at the end.

    With ``--store``, tests that use no bucket are left out: the same run without it has them.
    """
    if config.getoption("--store") != "gs":
        config.hook.pytest_deselected(items=[item for item in items if not uses_buckets(item)])
        items[:] = filter(uses_buckets, items)
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="make soak runs it"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def soak(request) -> bool:
    """Whether tests shall use their big counts."""
    return request.config.getoption("--soak")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """URL of the server of buckets."""
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(clouds.chosen.serve("127.0.0.1", tmp_path_factory.mktemp("server")))
        except tools.Missing as error:
            pytest.skip(str(error))
        yield url


@pytest.fixture(scope="session")
def gcs_server(request):
    """The same for what only Cloud Storage has, or its client."""
    if clouds.chosen.scheme != "gs":
        pytest.skip("is of gs:// alone")
    return request.getfixturevalue("server")


@pytest.fixture
def bucket(server, monkeypatch):
    """Address of a new, empty bucket; this process and the ones it starts reach the server."""
    from trainer.storage import attempts

    monkeypatch.setattr(attempts, "_DOUBT", 0.1)  # this server is right about what it does not have
    name = f"pconv-{uuid.uuid4().hex[:12]}"
    clouds.chosen.make_bucket(server, name)
    with clouds.reached(server):
        yield f"{clouds.chosen.scheme}://{name}"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-port=0"


class Browser:
    """One page of a headless Chromium, driven through its DevTools protocol; all events are kept."""

    def __init__(self, folder: Path):
        from websockets.sync.client import connect

        self.events: list[dict] = []
        self._numbers = itertools.count(1)
        self._session = None
        with contextlib.ExitStack() as opening:
            log = opening.enter_context(open(folder / "chromium.log", "wb"))
            command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "about:blank"]
            process = subprocess.Popen(command, stdout=log, stderr=log)
            opening.callback(process.wait, timeout=240)
            opening.callback(process.terminate)
            port_file, deadline = folder / "profile" / "DevToolsActivePort", time.monotonic() + 240
            while not port_file.exists() or "\n" not in port_file.read_text():
                assert process.poll() is None and time.monotonic() < deadline, (folder / "chromium.log").read_text()
                time.sleep(0.05)
            port, path = port_file.read_text().split("\n")
            connection = connect(f"ws://127.0.0.1:{port}{path}", max_size=2**26, open_timeout=240, proxy=None)
            self._socket = opening.enter_context(connection)
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            self._open = opening.pop_all()

    def close(self) -> None:
        self._open.close()

    def call(self, method: str, **parameters) -> dict:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=600))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def run(self, script: str):  # promises are awaited
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        phone = width < 800
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def open(self, url: str, has: str = "#theme") -> None:
        """Opens a page that has an element which the selector ``has`` finds."""
        self.call("Page.navigate", url=url)
        while not self.run(f"document.readyState == 'complete' && document.querySelector('{has}') != null"):
            time.sleep(0.05)

    def press(self, x: float, y: float, to: float | None = None) -> None:
        """A click at a place of the window, or a drag to another x."""
        mouse = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **mouse)
        if to is not None:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=to, y=y, button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x if to is None else to, y=y, **mouse)

    def key(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}  # without it Chromium presses no button
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self) -> np.ndarray:
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium): the page was not opened in a browser")
    pytest.importorskip("websockets", reason="no websockets here: the page was not opened in a browser")
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()
