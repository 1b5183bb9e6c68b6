"""A stand-in of Dataflow's REST interface, for Beam's own client of it."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JOB = "2026-11-26_00_00_00-123"
COMMIT = "abc"
VARIABLES = {
    **{"PROJECT": "some-project", "REGION": "us-central1", "SUBNETWORK": "regions/r/subnetworks/s", "TAG": "1"},
    **{"REPOSITORY": "r/pconv", "SCRATCH": "gs://s"},
    **{f"{name}_ACCOUNT": f"{name.lower()}@x" for name in ("MASKS", "IMAGENET", "INFERENCE", "EVALUATION")},
}


class DataflowService(http.server.ThreadingHTTPServer):
    """
    Attributes:
        address: its URL.
        state: what it says of every job.
        errors: the messages of that job, all of them errors.
        requests: the jobs it was sent.
        asked: last words of the paths that it was asked for.
        on_asked: called with each of ``asked``, before it is answered.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://localhost:{self.server_port}"  # without credentials Beam speaks to this name alone
        self.state = "JOB_STATE_DONE"
        self.errors: list[str] = []
        self.requests: list[dict] = []
        self.asked: list[str] = []
        self.on_asked: Callable[[str], None] = lambda asked: None

    def command(self, *arguments: object, **variables: str) -> tuple[list[str], dict[str, str]]:
        """The command line and the environment of dataflow.sh for this service."""
        environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PCONV_COMMIT": COMMIT}
        environment |= {f"PCONV_{name}": value for name, value in {**VARIABLES, **variables}.items()}
        command = ["bash", ROOT / "infra/beam/dataflow.sh", *arguments]
        command += ["--dataflow_endpoint", self.address, "--no_auth"]
        return list(map(str, command)), environment

    def submit(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess:
        """Runs dataflow.sh with this service; ``variables`` in place of those in ``VARIABLES``."""
        command, environment = self.command(*arguments, **variables)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: DataflowService

    def do_GET(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = self.path.partition("?")[0].rpartition("/")[2]
        if sent and asked == "jobs":
            self.server.requests.append(json.loads(sent))
        self.server.asked.append(asked)
        self.server.on_asked(asked)
        job = {"id": JOB, "projectId": "some-project", "location": "us-central1", "currentState": self.server.state}
        message = {"time": "2026-11-26T00:00:00Z", "messageImportance": "JOB_MESSAGE_ERROR"}
        messages = [message | {"id": str(n), "messageText": text} for n, text in enumerate(self.server.errors)]
        answers = {"jobs": job, JOB: job, "messages": {"jobMessages": messages}}
        data = json.dumps(answers.get(asked, {})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve_dataflow() -> Iterator[DataflowService]:
    with DataflowService() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
