"""Process 1 of a node: a machine of its own to what runs there, in the namespaces that fabric.py makes.

python -m engines.cluster.node FOLDER NUMBER NODES
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from engines.cluster.fabric import CGROUPS, HIERARCHIES
from engines.cluster.layout import CONTROL, PODS, SERVICES, Programs, ip, node_address, pods_of

# Settings of the whole machine that kubelet would change: it is shown files that have these values.
SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
_CONTAINERD = """version = 2
root = "{own}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{own}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  # Without it no sandbox starts where this machine may not lower a process's score itself.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{own}/cni"
"""


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def make_place(own: Path) -> None:
    """File systems as kubelet and containerd expect them; what they keep is below ``own``."""
    mount("-t", "sysfs", "sysfs", "/sys")
    mount("-t", "tmpfs", "tmpfs", CGROUPS)
    for kind in HIERARCHIES:
        (CGROUPS / kind).mkdir()
        # systemd's has no controller, but kubelet looks for it
        mount("-t", "cgroup", "-o", "none,name=systemd" if kind == "systemd" else kind, "cgroup", CGROUPS / kind)
    for name, value in SETTINGS.items():
        file = own / "settings" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
        mount("--bind", file, f"/proc/sys/{name}")
        mount("-o", "remount,bind,ro", f"/proc/sys/{name}")
    for folder in ("/run", "/var/lib", "/var/log"):
        mount("-t", "tmpfs", "tmpfs", folder)
    for name in ("kubelet", "log"):
        (own / name).mkdir()
    Path("/var/lib/kubelet").mkdir()
    mount("--bind", own / "kubelet", "/var/lib/kubelet")
    Path("/run/lock").mkdir()
    mount("--make-rshared", "/")


def connect(number: int, nodes: range) -> None:
    """Gives the cable its address, and tells the ways to the pods of other nodes."""
    while not Path("/sys/class/net/eth0").exists():
        time.sleep(0.01)
    ip("link", "set", "lo", "up")
    ip("address", "add", f"{node_address(number)}/24", "dev", "eth0")
    ip("link", "set", "eth0", "up")
    ip("route", "add", "default", "via", CONTROL)
    for other in nodes:
        if other != number:
            ip("route", "add", pods_of(other), "via", node_address(other))
    for name in ("ipv4/ip_forward", "bridge/bridge-nf-call-iptables"):
        Path("/proc/sys/net", name).write_text("1")


def write_settings(own: Path, number: int, folder: Path) -> None:
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True}
    bridge["ipam"] = {"type": "host-local", "ranges": [[{"subnet": pods_of(number)}]], "routes": [{"dst": "0.0.0.0/0"}]}
    network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(folder / "keys/ca.crt")}},
        "containerRuntimeEndpoint": f"unix://{own}/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "featureGates": {"KubeletInUserNamespace": True},  # else it asks for more of /proc/sys
        "clusterDNS": [CONTROL],
        "clusterDomain": "cluster.local",
        "resolvConf": str(own / "resolv.conf"),
        "imageGCHighThresholdPercent": 100,  # images were brought, and cannot be fetched
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }
    proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(folder / "kubeconfig")},
        "clusterCIDR": PODS,
        "hostnameOverride": f"node{number}",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    (own / "cni").mkdir()
    (own / "cni/pods.conflist").write_text(json.dumps(network))
    (own / "containerd.toml").write_text(_CONTAINERD.format(own=own))
    (own / "kubelet.json").write_text(json.dumps(kubelet))
    (own / "proxy.json").write_text(json.dumps(proxy))
    (own / "resolv.conf").write_text(f"nameserver {CONTROL}\n")


def main(folder: Path, number: int, nodes: int) -> None:
    name = f"node{number}"
    own, config = folder / name, folder / "kubeconfig"
    own.mkdir()
    socket.sethostname(name)
    make_place(own)
    write_settings(own, number, folder)
    connect(number, range(1, nodes + 1))
    programs = Programs(folder / "log")
    programs.start(f"{name}-containerd", "containerd", "--config", own / "containerd.toml")
    programs.start(
        *(f"{name}-kubelet", "kubelet", "--config", own / "kubelet.json", "--kubeconfig", config),
        *("--hostname-override", name, "--node-ip", node_address(number)),
    )
    programs.start(f"{name}-proxy", "kube-proxy", "--config", own / "proxy.json")
    # Network policies alone: the nodes know the ways to each other's pods.
    parts = ["--run-firewall=true", "--run-router=false", "--run-service-proxy=false", "--run-loadbalancer=false"]
    programs.start(
        *(f"{name}-policies", "kube-router", "--kubeconfig", config, "--hostname-override", name, *parts),
        *("--service-cluster-ip-range", SERVICES, "--metrics-port", 0),
        NODE_NAME=name,
    )
    programs.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
