"""Process 1 of a cluster: its network, which leads nowhere, its control plane, and a process for each node.

    python -m engines.cluster.fabric FOLDER NODES     in new network, mount and process namespaces

All that it starts ends with it, whichever way.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from engines.cluster.layout import API, CONTROL, PODS, SERVICES, Programs, ip, node_address, pods_of

CGROUPS = Path("/sys/fs/cgroup")
HIERARCHIES = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
_NAMES = """.:53 {
  bind %s
  errors
  cache 5
  kubernetes cluster.local in-addr.arpa {
    kubeconfig %s
    ttl 5
  }
}
"""


def control_groups(name: str) -> list[Path]:
    """The folder of a group below this process's own, in each hierarchy."""
    lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    own = {kind.removeprefix("name="): path for _, kind, path in (line.split(":", 2) for line in lines)}
    return [CGROUPS / kind / own[kind].strip("/") / name for kind in HIERARCHIES]


def join(groups: list[Path]) -> None:
    """Moves this process into groups, which are made."""
    for group in groups:
        group.mkdir(exist_ok=True)
        if "cpuset" in group.parts:  # a new one has no cores and no memory
            for name in ("cpuset.cpus", "cpuset.mems"):
                (group / name).write_bytes((group.parent / name).read_bytes())
        (group / "cgroup.procs").write_text("0")


def start_control_plane(programs: Programs, folder: Path) -> None:
    keys, config = folder / "keys", folder / "kubeconfig"
    etcd = "http://127.0.0.1:2379"
    programs.start(
        *("etcd", "etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync", "--log-level", "warn"),
        *("--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:2380"),
    )
    programs.start(
        *("kube-apiserver", "kube-apiserver", "--etcd-servers", etcd, "--allow-privileged"),
        *("--bind-address", CONTROL, "--advertise-address", CONTROL, "--service-cluster-ip-range", SERVICES),
        *("--authorization-mode", "RBAC", "--client-ca-file", keys / "ca.crt"),
        *("--tls-cert-file", keys / "server.crt", "--tls-private-key-file", keys / "server.key"),
        *("--service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        *("--service-account-key-file", keys / "accounts.key", "--service-account-signing-key-file"),
        *(keys / "accounts.key", "--kubelet-client-certificate", keys / "admin.crt"),
        *("--kubelet-client-key", keys / "admin.key", "--kubelet-preferred-address-types", "InternalIP"),
    )
    programs.start(
        *("kube-controller-manager", "kube-controller-manager", "--kubeconfig", config, "--leader-elect=false"),
        *("--service-account-private-key-file", keys / "accounts.key", "--root-ca-file", keys / "ca.crt"),
        *("--use-service-account-credentials", "--allocate-node-cidrs=false", "--cluster-cidr", PODS),
        *("--bind-address", "127.0.0.1"),
    )
    programs.start(
        *("kube-scheduler", "kube-scheduler", "--kubeconfig", config, "--leader-elect=false"),
        *("--bind-address", "127.0.0.1"),
    )
    (folder / "Corefile").write_text(_NAMES % (CONTROL, config), encoding="utf-8")
    programs.start("coredns", "coredns", "-conf", folder / "Corefile")


def start_node(programs: Programs, folder: Path, number: int, nodes: int) -> None:
    """Starts a node, and connects it; its cable is called as it is."""
    name = f"node{number}"
    groups = control_groups(f"{folder.name}-{name}")
    spaces = ["--net", "--mount", "--uts", "--pid", "--ipc", "--cgroup", "--mount-proc", "--fork", "--kill-child"]
    program = [sys.executable, "-m", "engines.cluster.node", folder, number, nodes]
    node = programs.start(name, "unshare", *spaces, *program, again=False, before=lambda: join(groups))
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{node.pid}/ns/net") == own:
        time.sleep(0.01)
    ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
    ip("link", "set", name, "master", "bridge0", "up")
    ip("route", "add", pods_of(number), "via", node_address(number))


def main(folder: Path, nodes: int) -> None:
    programs = Programs(folder / "log")
    ip("link", "set", "lo", "up")
    ip("link", "add", "bridge0", "type", "bridge")
    ip("address", "add", f"{CONTROL}/24", "dev", "bridge0")
    ip("link", "set", "bridge0", "up")
    start_control_plane(programs, folder)
    print(f"control plane at {API}", flush=True)
    for number in range(1, nodes + 1):
        start_node(programs, folder, number, nodes)
    programs.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
