"""A Kubernetes of several nodes on this machine, with KubeRay, from Debian's packages and the Go module proxy.

    PYTHONPATH=tests python -m engines.cluster.cluster --folder /tmp/kubernetes [--nodes 2] [--image ARCHIVE...]

Prints where its kubeconfig is once it can be used, and ends with all that it has started when its input does, or at
Ctrl-C; the folder is removed. Needs root, version 1 of Linux's control groups, and what `make engines` brings. Its
routes and firewalls are in network namespaces of its own.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from engines import tools
from engines.cluster.fabric import CGROUPS, control_groups
from engines.cluster.images import small_images
from engines.cluster.layout import API, CONTROL, HERE, SERVICES, pods_of

PATIENCE_S = 300  # for what takes seconds on a quiet machine
NEEDED = (*tools.CLUSTER, "buildah", "debootstrap", "ip", "runc")  # names of tools


class Kubectl:
    """kubectl for one cluster, that of the kubeconfig ``config``."""

    def __init__(self, config: Path, program: Path, *options: str):
        self._command = [str(program), f"--kubeconfig={config}", *options]

    def run(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess:
        """What it said and its exit code."""
        return subprocess.run(self.command(*words), input=stdin, capture_output=True, text=True)

    def command(self, *words: str) -> list[str]:
        return [*self._command, *words]

    def __call__(self, *words: str, stdin: str | None = None) -> str:
        """Standard output; fails if kubectl does."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr or done.stdout}"
        return done.stdout

    def get(self, *words: str) -> dict:
        return json.loads(self("get", *words, "--output=json"))


def write_keys(folder: Path) -> None:
    """Certificates of the API and of its administrator, who is also what every program acts as, and a kubeconfig."""
    keys = folder / "keys"
    keys.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=keys, check=True, capture_output=True)

    def certificate(name: str, subject: str, *rest: str) -> None:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        openssl("req", "-x509", *curve, "-subj", subject, *files, *rest)

    signed = ["-CA", "ca.crt", "-CAkey", "ca.key"]
    service = SERVICES.replace(".0.0/16", ".0.1")
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    hosts = ",".join([*(f"DNS:{name}" for name in names), f"IP:{CONTROL}", f"IP:{service}"])
    certificate("ca", "/CN=cluster")
    certificate("server", "/CN=kube-apiserver", *signed, "-addext", f"subjectAltName={hosts}")
    certificate("admin", "/O=system:masters/CN=admin", *signed)
    openssl("genrsa", "-out", "accounts.key", "2048")
    text = {
        name: base64.b64encode((keys / name).read_bytes()).decode() for name in ("ca.crt", "admin.crt", "admin.key")
    }
    user = {"client-certificate-data": text["admin.crt"], "client-key-data": text["admin.key"]}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": API, "certificate-authority-data": text["ca.crt"]}}],
        "users": [{"name": "admin", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
        "current-context": "here",
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    (folder / "kubeconfig").chmod(0o600)


def until(what: str, condition, process: subprocess.Popen | None = None) -> None:
    """Waits for something that takes an unknown time."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s until {what}"
        assert process is None or process.poll() is None, f"ended before {what}"
        time.sleep(0.2)


class Cluster:
    """A cluster that runs.

    Attributes:
        kubectl: for it.
        nodes: their number.
    """

    def __init__(self, folder: Path, nodes: int):
        self._folder, self.nodes = folder, nodes
        cache = f"--cache-dir={folder}/cache"
        self.kubectl = Kubectl(folder / "kubeconfig", tools.find("kubernetes"), cache)

    def plug(self, node: str, state: str) -> None:
        """Unplugs a node's cable (``down``) or plugs it in (``up``)."""
        self._inside("ip", "link", "set", node, state)

    def _inside(self, *words: str, check: bool = True) -> int:
        pid = (self._folder / "pid").read_text()
        command = ["nsenter", f"--net=/proc/{pid}/ns/net", *words]
        return subprocess.run(command, check=check, capture_output=True).returncode

    def bring_image(self, archive: Path, process: subprocess.Popen | None = None) -> None:
        """Imports an image into each node."""

        def bring(number: int) -> None:
            place = ["ctr", "--address", self._folder / f"node{number}/containerd.sock", "--namespace", "k8s.io"]
            until(f"containerd of node{number} answers", lambda: not run_quietly([*place, "version"]), process)
            done = subprocess.run([*place, "images", "import", archive], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(bring, range(1, self.nodes + 1)))

    def connect(self, process: subprocess.Popen) -> None:
        """Gives this machine a cable to the cluster."""
        (self._folder / "pid").write_text(str(process.pid))
        until("the bridge is there", lambda: not self._inside("ip", "link", "show", "bridge0", check=False), process)
        cable = f"pk{process.pid}"
        for words in (
            ["add", cable, "type", "veth", "peer", "name", "uplink", "netns", str(process.pid)],
            ["set", cable, "up"],
        ):
            subprocess.run(["ip", "link", *words], check=True)
        subprocess.run(["ip", "address", "add", f"{HERE}/24", "dev", cable], check=True)
        self._inside("ip", "link", "set", "uplink", "master", "bridge0", "up")

    def wait_until_ready(self, process: subprocess.Popen) -> None:
        kubectl = self.kubectl

        def ready() -> bool:
            done = kubectl.run(
                "get", "nodes", "--output=jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"
            )
            return done.returncode == 0 and done.stdout.split() == ["True"] * self.nodes

        until("the API answers", lambda: not kubectl.run("get", "--raw=/readyz").returncode, process)
        until("all nodes are ready", ready, process)
        for number in range(1, self.nodes + 1):
            pods = pods_of(number)
            kubectl(
                "patch", "node", f"node{number}", f'--patch={{"spec": {{"podCIDR": "{pods}", "podCIDRs": ["{pods}"]}}}}'
            )
        until(
            "there are service accounts",
            lambda: not kubectl.run("get", "serviceaccount", "default").returncode,
            process,
        )

    def install_kuberay(self) -> None:
        """As users do from its repository; the operator's image has been brought."""
        self.kubectl("apply", "--server-side", f"--kustomize={tools.find('kuberay')}/default")
        wait = ["--for=condition=Available", f"--timeout={PATIENCE_S}s"]
        self.kubectl("wait", "deployment", "kuberay-operator", *wait)


def find(kubeconfig: Path) -> Cluster | None:
    """The running cluster that a kubeconfig is of, if it is one of this module's."""
    folder = kubeconfig.parent
    nodes = len(list(folder.glob("node*/kubelet.json")))
    return Cluster(folder, nodes) if nodes and (folder / "pid").exists() else None


def run_quietly(command: Sequence[object]) -> int:
    return subprocess.run([str(word) for word in command], capture_output=True).returncode


@contextlib.contextmanager
def running(folder: Path, nodes: int = 2, images: Sequence[Path] = ()) -> Iterator[Cluster]:
    """A cluster with KubeRay, which ends with the context; ``folder`` is made and removed.

    Raises:
        tools.Missing: what it needs is not here.
    """
    if os.geteuid() != 0:
        raise tools.Missing("a cluster of network namespaces needs root; KUBECONFIG names another one")
    if not (CGROUPS / "memory").is_dir():
        raise tools.Missing("making a cluster needs version 1 of control groups; KUBECONFIG names another one")
    for name in NEEDED:
        tools.find(name)
    folder.mkdir(parents=True)
    (folder / "log").mkdir()
    write_keys(folder)
    archives = [*small_images(folder), *images]
    variables = {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
    }
    variables = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | variables
    spaces = ["unshare", "--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
    with open(folder / "log/fabric.log", "wb") as log:
        process = subprocess.Popen(
            [*spaces, sys.executable, "-m", "engines.cluster.fabric", str(folder), str(nodes)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=variables,
            start_new_session=True,
        )
    try:
        cluster = Cluster(folder, nodes)
        cluster.connect(process)
        for archive in archives:
            cluster.bring_image(archive, process)
        cluster.wait_until_ready(process)
        cluster.install_kuberay()
        yield cluster
    finally:
        process.kill()  # and with it everything in its namespaces
        process.wait()
        remove(folder, nodes)


def remove(folder: Path, nodes: int) -> None:
    """Removes what outlives processes: control groups, and files."""
    for number in range(1, nodes + 1):
        for group in control_groups(f"{folder.name}-node{number}"):
            below = sorted(group.rglob("*/"), reverse=True) if group.exists() else []
            for path in [*below, group]:
                end = time.monotonic() + 20  # a group is busy until its last process is gone
                while path.exists() and time.monotonic() < end:
                    with contextlib.suppress(OSError):
                        path.rmdir()
                    time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for all its files; made, and removed at the end")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--image", type=Path, nargs="*", default=[], help="archives to bring to the nodes")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), running(arguments.folder, arguments.nodes, arguments.image):
        print(f"export KUBECONFIG={arguments.folder}/kubeconfig", flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
