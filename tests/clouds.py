"""The buckets that tests use: on real servers of this machine, of Cloud Storage or, with ``--store``, of S3 or Azure.

`chosen` is the service of this run of pytest. fake-gcs-server comes with the environment; ``make engines`` brings MinIO
and Azurite.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar

from engines import tools
from storage_server import serve_storage
from trainer.storage import gcs
from trainer.storage.objects import services


def forget() -> None:
    """Makes this process's clients read the environment again."""
    if gcs.client.cache_info().currsize:
        gcs.client().close()
    gcs.client.cache_clear()
    services.client.cache_clear()


@contextlib.contextmanager
def reached(url: str) -> Iterator[None]:
    """This process, and the ones that it starts, reach the chosen service at ``url``."""
    variables = chosen.variables(url)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    forget()
    try:
        yield
    finally:
        forget()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _free(host: str) -> str:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


@contextlib.contextmanager
def _running(command: list, address: str, folder: Path, health: str = "/", **variables: str) -> Iterator[str]:
    """URL of a server that is started, as soon as it says, at the path ``health``, that it works."""
    log = folder / "server.log"
    with (
        open(log, "wb") as file,
        subprocess.Popen(command, stdout=file, stderr=file, cwd=folder, env=os.environ | variables) as server,
    ):
        try:
            end = time.monotonic() + 240
            while not _is_healthy(address, health):
                assert server.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield f"http://{address}"
        finally:
            server.kill()


def _is_healthy(address: str, path: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=10)
    with contextlib.suppress(OSError), contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status < 500
    return False


def _send(url: str, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
    address = urllib.parse.urlsplit(url).netloc
    connection = http.client.HTTPConnection(address, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
    assert answer.status // 100 == 2, f"{method} {path}: {answer.status} {said!r}"


@dataclass(frozen=True)
class CloudStorage:
    scheme: ClassVar[str] = "gs"

    def serve(self, host: str, folder: Path) -> contextlib.AbstractContextManager[str]:
        """URL of an empty server."""
        return serve_storage(host, folder)

    def variables(self, url: str) -> dict[str, str]:
        """What its client reads from the environment."""
        return {"STORAGE_EMULATOR_HOST": url}

    def make_bucket(self, url: str, name: str) -> None:
        _send(url, "POST", "/storage/v1/b?project=p", b'{"name": "%s"}' % name.encode(), {})

    def put(self, url: str, path: str, data: bytes) -> None:
        """Writes an object as somebody else, without what this project adds."""
        bucket, _, name = path.partition("/")
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        _send(url, "POST", f"/upload/storage/v1/b/{bucket}/o?{query}", data, {"Content-Type": "image/png"})


@dataclass(frozen=True)
class Minio:
    """S3 by MinIO, which heeds conditions of writes as Amazon does."""

    scheme: ClassVar[str] = "s3"
    key, secret, region = "pconvkey", "pconvsecret", "us-east-1"

    def serve(self, host: str, folder: Path) -> contextlib.AbstractContextManager[str]:
        address = _free(host)
        command = [tools.find("minio"), "server", "--quiet", "--address", address, str(folder / "data")]
        variables = {"MINIO_ROOT_USER": self.key, "MINIO_ROOT_PASSWORD": self.secret, "MINIO_BROWSER": "off"}
        return _running(command, address, folder, "/minio/health/cluster", **variables)

    def variables(self, url: str) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": self.region}
        return keys | {"AWS_ENDPOINT_URL": url}

    def make_bucket(self, url: str, name: str) -> None:
        self.put(url, name, b"")

    def open_to_all(self, url: str, bucket: str) -> None:
        """Lets requests without a signature read and write."""
        rule = {"Effect": "Allow", "Principal": {"AWS": ["*"]}, "Action": ["s3:*"]}
        rule["Resource"] = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        self.put(url, bucket, json.dumps({"Version": "2012-10-17", "Statement": [rule]}).encode(), "policy=")

    def put(self, url: str, path: str, data: bytes, query: str = "") -> None:
        """Signed by hand (Signature Version 4): the project's client has no such requests."""
        path = urllib.parse.quote(f"/{path}")
        now, digest = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ"), hashlib.sha256(data).hexdigest()
        headers = {"host": urllib.parse.urlsplit(url).netloc, "x-amz-content-sha256": digest, "x-amz-date": now}
        names = ";".join(headers)
        request = ["PUT", path, query, *(f"{name}:{value}" for name, value in headers.items()), "", names, digest]
        scope = [now[:8], self.region, "s3", "aws4_request"]
        text = ["AWS4-HMAC-SHA256", now, "/".join(scope), hashlib.sha256("\n".join(request).encode()).hexdigest()]
        key = f"AWS4{self.secret}".encode()
        for part in [*scope, "\n".join(text)]:
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        credential = f"Credential={self.key}/{'/'.join(scope)}, SignedHeaders={names}, Signature={key.hex()}"
        _send(url, "PUT", f"{path}?{query}", data, headers | {"Authorization": f"AWS4-HMAC-SHA256 {credential}"})


@dataclass(frozen=True)
class Azurite:
    """Azure Blob Storage by Microsoft's own emulator; account and key are the ones that it documents."""

    scheme: ClassVar[str] = "az"
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def serve(self, host: str, folder: Path) -> contextlib.AbstractContextManager[str]:
        address = _free(host)
        command = [
            "node",
            tools.find("azurite") / "node_modules/azurite/dist/src/blob/main.js",
            "--inMemoryPersistence",
        ]
        command += ["--blobHost", host, "--blobPort", address.rpartition(":")[2], "--silent", "--disableTelemetry"]
        return _running([*command, "--skipApiVersionCheck"], address, folder)

    def variables(self, url: str) -> dict[str, str]:
        endpoint = f"{url}/{self.account}"
        names = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ENDPOINT")
        return dict(zip(names, (self.account, self.key, endpoint), strict=True))

    def make_bucket(self, url: str, name: str) -> None:
        self._put(url, name, b"", {}, {"restype": "container"})

    def put(self, url: str, path: str, data: bytes) -> None:
        self._put(url, path, data, {"x-ms-blob-type": "BlockBlob"}, {})

    def _put(self, url: str, path: str, data: bytes, headers: dict[str, str], query: dict[str, str]) -> None:
        """Signed by hand (Shared Key): the project's client has no such requests."""
        path = urllib.parse.quote(f"/{self.account}/{path}")
        date = datetime.now(timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = dict(sorted({**headers, "x-ms-date": date, "x-ms-version": "2021-12-02"}.items()))
        text = ["PUT", "", "", str(len(data) or ""), *[""] * 8, *(f"{name}:{value}" for name, value in headers.items())]
        text += [f"/{self.account}{path}", *(f"{name}:{value}" for name, value in query.items())]
        signature = hmac.new(base64.b64decode(self.key), "\n".join(text).encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {self.account}:{base64.b64encode(signature).decode()}"
        _send(url, "PUT", path + ("?" + urllib.parse.urlencode(query) if query else ""), data, headers)


CLOUDS = {cloud.scheme: cloud for cloud in (CloudStorage(), Minio(), Azurite())}
chosen: CloudStorage | Minio | Azurite = CLOUDS["gs"]
