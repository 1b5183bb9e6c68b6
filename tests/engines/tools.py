"""What the tests of this folder need: one table of programs and versions. Makes them in .engines/, which git ignores.

    python tests/engines/tools.py [NAME...]    # `make engines` calls it; what is there already is left alone

Where something cannot be had, a line says why, and so do the tests that are skipped for it. ENGINES_MINUTES bounds the
whole of `make engines` on a machine that has nothing yet: two fifths of it are for what is made here, and no test
begins when the rest is over. What was compiled stays in the toolchain's own cache, for the next time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".engines"
BEAM = re.search(r"^apache-beam==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)[1]


MINUTES = float(os.environ.get("ENGINES_MINUTES") or "inf")
TOOLS_SHARE = 0.4
_begin = time.monotonic()


class Missing(Exception):
    """Why a tool is not here, in one line."""


def seconds_left(share: float) -> float | None:
    """Of this process's share of ENGINES_MINUTES; None if there is no limit."""
    return None if MINUTES == float("inf") else 60 * MINUTES * share - (time.monotonic() - _begin)


@dataclass(frozen=True)
class Tool:
    """A file or a folder in .engines/, named NAME-VERSION.

    Attributes:
        source: what it is made from; what that means is up to ``make``.
        make: called with the tool and the path to make; raises `Missing`.
    """

    version: str
    source: str
    make: Callable[[Tool, Path], None]


def run(*command: object, seconds: float | None = None, **variables: str) -> str:
    """Standard output. Raises `Missing` with the last line of what the command said, or after so many ``seconds``."""
    options = {"env": {**os.environ, **variables}, "cwd": "/", "capture_output": True, "text": True}
    try:
        done = subprocess.run(list(map(str, command)), timeout=seconds and max(1.0, seconds), **options)
    except subprocess.TimeoutExpired:
        raise Missing(f"{' '.join(map(str, command[:3]))}: ENGINES_MINUTES={MINUTES:g} were over") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise Missing(f"{' '.join(map(str, command[:3]))}: {said[-1]}")
    return done.stdout


def go_program(tool: Tool, path: Path) -> None:
    """The program of the Go package ``source``, without C libraries, so that it runs in any image."""
    if shutil.which("go") is None:
        raise Missing("Go is not installed (https://go.dev/dl)")
    folder = path.with_suffix(".bin")
    # The toolchain keeps what it has downloaded and compiled, for the next version or checkout.
    variables = {"GOBIN": str(folder), "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0"}
    package = f"{tool.source}@{tool.version}"
    run("go", "install", "-ldflags=-s -w", package, seconds=seconds_left(TOOLS_SHARE), **variables)
    (program,) = folder.iterdir()
    program.rename(path)
    folder.rmdir()


def go_source(tool: Tool, path: Path) -> None:
    """The folder ``source`` of a Go module, as MODULE//FOLDER: files that come with a program, such as Kubernetes'."""
    if shutil.which("go") is None:
        raise Missing("Go is not installed (https://go.dev/dl)")
    module, folder = tool.source.split("//")
    run("go", "mod", "download", f"{module}@{tool.version}")
    cache = run("go", "env", "GOMODCACHE").strip()
    shutil.copytree(Path(cache, f"{module}@{tool.version}", folder), path, copy_function=shutil.copyfile)


def npm_package(tool: Tool, path: Path) -> None:
    """A folder with the package ``source`` of npm and all that it needs in node_modules."""
    if shutil.which("npm") is None:
        raise Missing("Node.js is not installed (Debian's npm)")
    path.mkdir()
    options = ["--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts", "--loglevel=error"]
    run("npm", "install", *options, "--prefix", path, f"{tool.source}@{tool.version}")


def go_main(tool: Tool, path: Path) -> None:
    """A program of ours, cluster/NAME.go, that is made of the Go module ``source``, as NAME of MODULE.

    Programs of modules that replace others by folders beside them cannot be installed by their names: what is replaced
    has been released, too, Kubernetes' parts as v0.34.4 where it is v1.34.4.
    """
    if shutil.which("go") is None:
        raise Missing("Go is not installed (https://go.dev/dl)")
    name, module = tool.source.split(" of ")
    described = json.loads(run("go", "mod", "download", "-json", f"{module}@{tool.version}"))
    mod = json.loads(run("go", "mod", "edit", "-json", described["GoMod"]))
    needed = {need["Path"]: need["Version"] for need in mod["Require"]}
    lines = ["module pconv", f"go {mod['Go']}", f"require {module} {tool.version}"]
    for replaced in (entry["Old"]["Path"] for entry in mod.get("Replace") or ()):
        if version := needed.get(replaced):
            released = f"v0{tool.version[2:]}" if version == "v0.0.0" else version
            lines.append(f"replace {replaced} => {replaced} {released}")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(Path(__file__).parent / f"cluster/{name}.go", f"{folder}/main.go")
        Path(folder, "go.mod").write_text("\n".join(lines) + "\n", encoding="utf-8")
        major, minor, _ = tool.version.removeprefix("v").split(".")
        said = {"gitVersion": tool.version, "gitMajor": major, "gitMinor": minor}
        flags = ["-s -w", *(f"-X k8s.io/component-base/version.{key}={value}" for key, value in said.items())]
        # As in go_program, so that what both compile is compiled once.
        variables = {"GOFLAGS": "-buildvcs=false -trimpath", "CGO_ENABLED": "0"}
        build = ["go", "-C", folder, "build", "-mod=mod", f"-ldflags={' '.join(flags)}", "-o", path]
        run(*build, ".", seconds=seconds_left(TOOLS_SHARE), **variables)


TOOLS = {
    "prism": Tool(f"v{BEAM}", "github.com/apache/beam/sdks/v2/go/cmd/prism", go_program),
    "boot": Tool(f"v{BEAM}", "github.com/apache/beam/sdks/v2/python/container", go_program),
    # S3 and Azure Blob Storage.
    "minio": Tool("v0.0.0-20260212201848-7aac2a2c5b7c", "github.com/minio/minio", go_program),
    "azurite": Tool("3.35.0", "azurite", npm_package),
    # A cluster of our own, where KUBECONFIG names none: see cluster/.
    "kubernetes": Tool("v1.34.4", "kubernetes of k8s.io/kubernetes", go_main),
    "etcd": Tool("v3.6.15", "etcd of go.etcd.io/etcd/server/v3", go_main),
    "coredns": Tool("v1.12.4", "coredns of github.com/coredns/coredns", go_main),
    "kube-router": Tool("v2.1.0", "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router", go_program),
    "kuberay-operator": Tool("v1.5.1", "github.com/ray-project/kuberay/ray-operator", go_program),
    "kuberay": Tool("v1.5.1", "github.com/ray-project/kuberay/ray-operator//config", go_source),
}
# Programs of the system, with the Debian package that has them: installed where this is root, and apt there.
PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap", "ip": "iproute2", "runc": "runc", "openssl": "openssl"}
PROGRAMS |= {"containerd": "containerd", "/usr/lib/cni/bridge": "containernetworking-plugins", "nft": "nftables"}
PROGRAMS |= {"busybox": "busybox-static", "iptables": "iptables", "ipset": "ipset", "conntrack": "conntrack"}
# What a cluster of our own is made of.
CLUSTER = ("kubernetes", "etcd", "coredns", "kube-router", "kuberay-operator", "kuberay", "containerd", "busybox")
CLUSTER += ("/usr/lib/cni/bridge", "conntrack", "ipset", "iptables", "nft", "openssl")


def path_of(name: str) -> Path:
    return PLACE / f"{name}-{TOOLS[name].version}"


def find(name: str) -> Path:
    """Path of a tool or of a program of the system. Raises `Missing`."""
    if name in PROGRAMS:
        if found := shutil.which(name):
            return Path(found)
        raise Missing(f"{name} is not installed (Debian's {PROGRAMS[name]})")
    path, why = path_of(name), path_of(name).with_suffix(".missing")
    if path.exists():
        return path
    raise Missing(why.read_text("utf-8") if why.exists() else f"{path.name} is not here (make engines brings it)")


def install_programs(names: list[str]) -> None:
    """Installs what is missing of the system's programs, if that is possible without asking anybody."""
    packages = sorted({PROGRAMS[name] for name in names if shutil.which(name) is None})
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing", *packages, flush=True)
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            try:
                run("apt-get", "-qq", *command, DEBIAN_FRONTEND="noninteractive")
            except Missing as error:
                print(error)


def bring(name: str) -> None:
    """Makes a tool, or writes why it cannot be had into a file beside it."""
    path, started = path_of(name), time.monotonic()
    why, new = path.with_suffix(".missing"), path.with_suffix(".new")
    if path.exists():
        return
    for older in PLACE.glob(f"{name}-*"):
        if not re.match(rf"{name}-v?\d", older.name):  # kuberay-operator is another tool than kuberay
            continue
        shutil.rmtree(older) if older.is_dir() else older.unlink()
    try:
        TOOLS[name].make(TOOLS[name], new)
        new.rename(path)
        print(f"{path.name}: made in {time.monotonic() - started:.0f} s", flush=True)
    except Missing as error:
        why.write_text(f"{path.name} could not be made: {error}", encoding="utf-8")
        print(why.read_text("utf-8"), flush=True)


def main(names: list[str]) -> None:
    PLACE.mkdir(exist_ok=True)
    unneeded = CLUSTER if os.environ.get("KUBECONFIG") else ()
    names = names or [name for name in (*PROGRAMS, *TOOLS) if name not in unneeded]
    install_programs([name for name in names if name in PROGRAMS])
    for name in names:
        if name in TOOLS:
            bring(name)


if __name__ == "__main__":
    main(sys.argv[1:])
