"""The project's images, as infra/local/build_images.sh makes them, and containers of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from engines import tools

ROOT = tools.ROOT
# Dataflow's folder on its machines, which it owns as root: boot keeps there what was staged.
SEMI_PERSISTENT = "/var/opt/google"
_PARTS = ("docker", "masks", "trainer", "pipelines", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
# What Docker lets a container's root do.
_RIGHTS = [f"CAP_{name}" for name in "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETPCAP SETUID".split()]


def call(*command: object, **variables: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def tag_of(variables: dict[str, str]) -> str:
    """A tag that is another one for other sources."""
    digest = hashlib.sha256(repr(sorted(variables.items())).encode())
    for part in _PARTS:
        top = ROOT / part
        files = [path for path in sorted(top.rglob("*")) if "__pycache__" not in path.parts] if top.is_dir() else [top]
        for path in filter(Path.is_file, files):
            digest.update(f"{path.relative_to(ROOT)}\n{path.stat().st_size}\n".encode() + path.read_bytes())
    return f"engines-{digest.hexdigest()[:12]}"


def build(name: str, **variables: str) -> str:
    """The image ``beam`` or ``ray`` of this checkout, as ``localhost/pconv/NAME:TAG`` in buildah's storage.

    Args:
        variables: of build_images.sh, such as ``RAY_EXTRAS="cluster"``.

    Raises:
        Missing: a program that makes images is not here, or this is not root.
    """
    if os.geteuid() != 0:
        raise tools.Missing("images are made as root")
    for program in ("buildah", "debootstrap"):
        tools.find(program)
    boot = tools.find("boot") if name == "beam" else None
    # Another checkout has the same image: it depends on the program's version, not on where it is.
    tag = tag_of({**variables, "BOOT": boot.name} if boot else variables)
    if boot:
        variables["BOOT"] = str(boot)
    full = f"localhost/pconv/{name}:{tag}"
    if subprocess.run(["buildah", "inspect", "--type", "image", full], capture_output=True).returncode:
        call("bash", "infra/local/build_images.sh", name, TAG=tag, **variables)
        # Layers that the new one has, too, stay.
        listed = json.loads(call("buildah", "images", "--json"))
        older = [text for image in listed for text in image.get("names") or [] if f"/pconv/{name}:engines-" in text]
        for text in set(older) - {full}:
            subprocess.run(["buildah", "rmi", text], capture_output=True)
    return full


class Container:
    """A container of an image in a network namespace, started by runc with the image's own entry point.

    Attributes:
        folder: what the container has as Dataflow's folder; root's, mode 755.
        log: file with what it printed.
    """

    def __init__(self, image: str, place: Path, namespace: str, variables: dict[str, str], mounts: dict[str, Path]):
        """``mounts``: folders and files of this machine by where they are in the container, read-only."""
        self.name = f"pconv-{uuid.uuid4().hex[:12]}"
        self._place = place / self.name
        self.folder, self.log = self._place / "google", self._place / "log"
        self.folder.mkdir(parents=True, mode=0o755)
        (self._place / "hosts").write_text("127.0.0.1 localhost\n")
        config = json.loads(call("buildah", "inspect", "--type", "image", image))["OCIv1"]["config"]
        self._rootfs = call("buildah", "from", "--name", self.name, image).strip()
        spec = json.loads(self._empty_spec())
        spec["root"] = {"path": call("buildah", "mount", self.name).strip(), "readonly": False}
        user = [int(number) for number in f"{config.get('User') or 0}".split(":")]
        spec["process"] |= {
            "terminal": False,
            "noNewPrivileges": False,
            "user": {"uid": user[0], "gid": user[-1]},
            "cwd": config["WorkingDir"],
            "env": [*config["Env"], *(f"{key}={value}" for key, value in variables.items())],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _RIGHTS),
        }
        spec["process"].pop("rlimits")
        for kind in spec["linux"]["namespaces"]:
            if kind["type"] == "network":
                kind["path"] = f"/run/netns/{namespace}"
        bound = {SEMI_PERSISTENT: self.folder, "/etc/hosts": self._place / "hosts", **mounts}
        for target, source in bound.items():
            options = ["bind", "rw" if source == self.folder else "ro"]
            spec["mounts"].append({"destination": target, "type": "bind", "source": str(source), "options": options})
        self._spec, self._entry, self._process = spec, config["Entrypoint"], None

    def _empty_spec(self) -> str:
        call("runc", "spec", "--bundle", self._place)
        return (self._place / "config.json").read_text()

    def start(self, *arguments: str) -> None:
        """Runs the image's entry point with ``arguments``."""
        self._spec["process"]["args"] = [*self._entry, *arguments]
        (self._place / "config.json").write_text(json.dumps(self._spec))
        command = ["runc", "run", "--bundle", str(self._place), self.name]
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def processes(self) -> list[int]:
        done = subprocess.run(["runc", "ps", "--format", "json", self.name], capture_output=True, text=True)
        return json.loads(done.stdout or "null") or [] if done.returncode == 0 else []

    def kill(self) -> None:
        """Ends all of its processes by SIGKILL, as a machine's end does."""
        subprocess.run(["runc", "kill", "--all", self.name, "KILL"], capture_output=True)
        self._process.wait(60)

    def remove(self) -> None:
        if self._process is not None:
            self.kill()
        subprocess.run(["runc", "delete", "--force", self.name], capture_output=True)
        subprocess.run(["buildah", "rm", self.name], capture_output=True)


class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts a container for each worker that a runner asks for, as Dataflow does on a machine.

    Attributes:
        port: of the service.
        workers: all containers that it has started.
    """

    def __init__(self, image: str, place: Path, namespace: str, variables: dict[str, str]):
        self.workers: list[Container] = []
        self.mounts: dict[str, Path] = {}
        self._make = lambda: Container(image, place, namespace, variables, self.mounts)
        self._by_id: dict[str, Container] = {}
        self._server = grpc.server(ThreadPoolExecutor(4))
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("0.0.0.0:0")
        self._server.start()

    def StartWorker(self, request, context):
        try:
            worker = self._make()
            self.workers.append(worker)
            self._by_id[request.worker_id] = worker
            worker.start(
                f"--id={request.worker_id}",
                f"--provision_endpoint={request.provision_endpoint.url}",
                f"--semi_persist_dir={SEMI_PERSISTENT}",
            )
            return beam_fn_api_pb2.StartWorkerResponse()
        except Exception as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error))

    def StopWorker(self, request, context):
        if worker := self._by_id.pop(request.worker_id, None):
            worker.kill()
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        self._server.stop(None).wait()
        for worker in self.workers:
            worker.remove()
