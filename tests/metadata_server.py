"""A stand-in for Google Cloud's metadata server: who asks, from which address, whether his machine is taken away."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator


class Metadata(http.server.ThreadingHTTPServer):
    """Answers as https://cloud.google.com/compute/docs/metadata/querying-metadata says: at once, or after a change.

    Attributes:
        preempted: addresses of machines that are to be taken away.
        waiting: for each address, how often a change was waited for.
        faults: status codes that come before answers.
        asked: what was asked for, in order.
    """

    daemon_threads = True

    def __init__(self, *faults: int, host: str = "127.0.0.1", port: int = 0):
        super().__init__((host, port), _Handler)
        self.changed, self.changes = threading.Condition(), 0
        self.preempted: set[str] = set()
        self.waiting: dict[str, int] = {}
        self.faults, self.asked = list(faults), []
        self.url = f"http://{host}:{self.server_address[1]}"

    def change(self) -> None:
        """Answers all who wait."""
        with self.changed:
            self.changes += 1
            self.changed.notify_all()

    def preempt(self, machine: str = "127.0.0.1") -> None:
        self.preempted.add(machine)
        self.change()

    def await_waiting(self, times: int = 1, machines: int = 1, timeout: float = 60) -> None:
        """Returns once so many machines have waited for a change so many times."""

        def is_met() -> bool:
            return sum(count >= times for count in self.waiting.values()) >= machines

        with self.changed:
            assert self.changed.wait_for(is_met, timeout), self.asked


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self):
        server, machine = self.server, self.client_address[0]
        server.asked.append(self.path)
        if self.headers["Metadata-Flavor"] != "Google":
            return self.send_error(403)  # as the real one
        if server.faults:
            return self.send_error(server.faults.pop(0))
        if not self.path.startswith("/computeMetadata/v1/instance/preempted"):
            return self.send_error(404)
        if "wait_for_change=true" in self.path:
            with server.changed:
                seen = server.changes
                server.waiting[machine] = server.waiting.get(machine, 0) + 1
                server.changed.notify_all()
                server.changed.wait_for(lambda: server.changes != seen)
        answer = b"TRUE" if machine in server.preempted else b"FALSE"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked may be gone
            self.wfile.write(answer)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve_metadata(*faults: int, host: str = "127.0.0.1", port: int = 0) -> Iterator[Metadata]:
    with Metadata(*faults, host=host, port=port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.change()
            server.shutdown()
