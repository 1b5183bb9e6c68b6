"""Faults on the way to a storage server: a proxy that counts requests and spoils those that a test chooses."""

from __future__ import annotations

import contextlib
import gc
import http.client
import http.server
import json
import re
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterator

import clouds

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}

# What of a request is matched: the method and the path with its query, as in "GET /storage/v1/b/x/o?prefix=a". Of each,
# first Cloud Storage's form, then S3's and Azure's, where the buckets of tests are pconv or pconv-...
BUCKET = r"(devstoreaccount1/)?pconv[^/?]*"
DOWNLOAD = rf"GET (/(download/storage|storage)/v1/b/[^/]+/o/.*alt=media|/{BUCKET}/[^?]+$)"
LIST = rf"GET (/storage/v1/b/[^/]+/o\?|/{BUCKET}/?\?.*(list-type=2|comp=list))"
METADATA = r"GET /storage/v1/b/[^/]+/o/(?!.*alt=media)|HEAD /"
UPLOAD = rf"(POST|PUT) /upload/|PUT /{BUCKET}/[^?]+$"
DELETE = r"DELETE |POST /.*\?(delete|.*comp=batch)"
ANY = r""


class Fault:
    """What is done to the requests that ``pattern`` finds: to those whose number, from 0, ``chooses``.

    Kinds, of answers: ``cut`` (the connection, in the middle of the body), ``short`` (half of the body, announced as
    all), ``empty`` (no body), ``flip`` (one bit of the middle byte), ``lost`` (the request is done, the connection
    closed instead of an answer). Instead of an answer: ``closed`` (the connection), or a status such as ``403``.

    Attributes:
        count: how often it was done.
    """

    def __init__(
        self, kind: str | int, pattern: str = ANY, chooses: Callable[[int], bool] = lambda number: number == 0
    ):
        self.kind, self.count, self._seen = kind, 0, 0
        self._pattern, self._chooses, self._lock = re.compile(pattern), chooses, threading.Lock()

    def takes(self, line: str) -> bool:
        with self._lock:
            if not self._pattern.search(line):
                return False
            taken = self._chooses(self._seen)
            self._seen, self.count = self._seen + 1, self.count + taken
            return taken


def always(number: int) -> bool:
    return True


def once_each(number: int) -> bool:
    """Every other one, so that what is asked again at once is answered."""
    return number % 2 == 0


class Proxy:
    """A server in front of ``upstream``, a URL, that does ``faults`` to requests.

    Attributes:
        lines: the requests it has seen.
        headers: of each of them.
        clients: their addresses, of each of them.
        written: names of the objects that were written, as Cloud Storage answers uploads that it has taken.
        sent: bytes of all answers.
    """

    def __init__(self, upstream: str, host: str = "127.0.0.1"):
        self.faults: list[Fault] = []
        self.lines: list[str] = []
        self.headers: list[http.client.HTTPMessage] = []
        self.clients: list[str] = []
        self.written: list[str] = []
        self.drops: set[str] = set()  # headers of requests that are not passed on
        self.sent = 0
        self._upstream = urllib.parse.urlsplit(upstream).netloc
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_one_request(self):
                self.close_connection = True
                self.raw_requestline = self.rfile.readline(65537)
                if self.raw_requestline and self.parse_request():
                    proxy._answer(self)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):  # of connections that a client has closed
                pass

        self._server = Server((host, 0), Handler)
        self.url = "http://{}:{}".format(*self._server.server_address)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        line = f"{request.command} {request.path}"
        self.lines.append(line)
        self.headers.append(request.headers)
        self.clients.append(request.client_address[0])
        # Every fault counts, whatever the others do.
        (kind,) = [fault.kind for fault in self.faults if fault.takes(line)][:1] or [None]
        if kind == "closed":
            return
        if isinstance(kind, int):
            _send(request, kind, [], b'{"error": {"message": "injected"}}')
            return
        status, headers, data = self._forward(request, body)
        self.sent += len(data)
        if status == 200 and "/upload/" in line and data:
            self.written.append(json.loads(data)["name"])
        if kind == "lost":
            return
        if request.command == "HEAD" and kind in ("cut", "short", "empty"):  # there is no body to spoil
            return
        length, half = len(data), len(data) // 2
        if kind == "flip":
            data = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :] if data else data
        elif kind in ("cut", "short"):
            data = data[:half]
        elif kind == "empty":
            data = b""
        if request.command == "HEAD":
            data, length, kind = (
                b"",
                int({name.lower(): value for name, value in headers}.get("content-length", 0)),
                "cut",
            )
        _send(request, status, headers, data, length if kind == "cut" else len(data))

    def _forward(self, request, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._upstream, timeout=30)
        with contextlib.closing(connection):
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP | self.drops}
            connection.request(request.command, request.path, body, headers)
            response = connection.getresponse()
            # An upload in pieces is told where to send them: here, too.
            here = urllib.parse.urlsplit(self.url).netloc
            found = [
                (name, value.replace(f"//{self._upstream}/", f"//{here}/")) for name, value in response.getheaders()
            ]
            return response.status, found, response.read()


def _send(request, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None = None) -> None:
    request.send_response(status)
    for name, value in headers:
        if name.lower() not in _HOP:
            request.send_header(name, value)
    request.send_header("Content-Length", str(len(data) if length is None else length))
    request.send_header("Connection", "close")
    request.end_headers()
    request.wfile.write(data)


@contextlib.contextmanager
def proxied(upstream: str, *faults: Fault) -> Iterator[Proxy]:
    """A `Proxy`; this process's client goes through it, and so do the processes that it starts."""
    proxy = Proxy(upstream)
    proxy.faults += faults
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the client leaves connections open whose answers were cut
        try:
            with clouds.reached(proxy.url):
                yield proxy
        finally:
            proxy.close()
            gc.collect(1)
