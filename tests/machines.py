"""Machines on this one that SSH leads to: each with its own address, files in /tmp, /run and /home, and processes.

Each has programs in the place of Docker, gcloud and nvidia-smi. Its "container" is a mount namespace: what `docker run`
is told to mount is mounted there, what `docker exec` is told runs there, with the variables of the image and of
`docker run` and no others. So Ray's cluster launcher goes the way that it goes with Docker, and what it starts is real.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"ip": "iproute2", "ssh": "openssh-client", "/usr/sbin/sshd": "openssh-server", "rsync": "rsync"}

_START = """
set -e
own=$1
mount --bind $own/tmp /tmp
mount --bind $own/home /home
mount --bind $own/profile.d /etc/profile.d
mount --bind $own/hosts /etc/hosts
mount -t tmpfs tmpfs /run
mkdir /run/sshd
exec /usr/sbin/sshd -D -e -f $own/sshd_config
"""

_DOCKER = """#!{python} -IS
import json, os, subprocess, sys
own = {own!r}
with open(own + "/docker", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
container, image = own + "/container", json.load(open(own + "/image"))
action, *rest = sys.argv[1:]
if action == "inspect":
    what, name = rest[1:]
    if "Config.Env" in what:
        print(json.dumps(image["env"]))
    elif not os.path.exists(container):
        sys.exit("Error: No such object: " + name)
    elif "Running" in what:
        print("true")
elif action == "info":
    print("map[nvidia:{{nvidia-container-runtime [] <nil>}} runc:{{runc [] <nil>}}]")
elif action == "run":
    env, mounts, words = list(image["env"]), [], iter(rest)
    for word in words:
        if word in ("-e", "--env"):
            env.append(next(words))
        elif word == "-v":
            mounts.append(next(words).split(":"))
    script = "mount --bind " + own + "/image.d /etc/profile.d; mount --bind " + own + "/passwd /etc/passwd; "
    script += "mount -t tmpfs tmpfs /dev/shm; "
    for source, target in mounts:
        script += "mkdir -p $(dirname %s) && touch %s && mount --bind %s %s; " % (target, target, source, target)
    script += "echo $$ > " + container + ".pid; echo ready; exec sleep infinity"
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-ec", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
    if process.stdout.readline() != b"ready\\n":
        sys.exit("docker run: it did not start")
    json.dump({{"env": env, "pid": int(open(container + ".pid").read())}}, open(container, "w"))
elif action == "exec":
    while rest[0].startswith("-"):
        if rest.pop(0) == "-e":
            rest.pop(0)
    state = json.load(open(container))
    enter = ["nsenter", "--target", str(state["pid"]), "--mount", "--wdns=/home/pconv"]
    os.execvp("nsenter", [*enter, "env", "-i", "TERM=xterm", *state["env"], *rest[1:]])
elif action != "pull":
    sys.exit("docker " + action + ": not known here")
"""

# The driver answers at the second time.
_SMI = """#!/bin/bash
echo >> {own}/smi
[ "$(wc -l < {own}/smi)" -gt 1 ]
"""
_GCLOUD = """#!/bin/bash
echo "$@" >> {own}/gcloud
"""
# On the machine that the cluster is made from: the tunnel.
_TUNNEL = """#!/bin/bash
echo "$@" >> {own}/gcloud
exec {python} -IS {own}/relay.py "$3" "$4"
"""
_RELAY = """
import os, socket, sys, threading
there = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := there.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 65536):
    there.sendall(data)
"""


def require() -> None:
    """Skips the test where machines cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian's {package})")


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Machines:
    """Some machines, and the place that clusters are made from, which is this machine.

    Attributes:
        gateway: this machine's address for them.
        home: of whoever makes clusters.
        key: his, for SSH.
        environment: of the commands that make clusters.
    """

    def __init__(self, folder: Path):
        spec = importlib.util.spec_from_file_location("hosts", ROOT / "infra/local/hosts.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        self.folder = folder
        self.hosts = module.Hosts(str(folder), f"pu{os.getpid() % 10**8:08x}", module.choose_prefix())
        self.gateway = f"{self.hosts.prefix}1"
        self.home = folder / "laptop"
        self.key = self.home / ".ssh/pconv-ray"
        self.key.parent.mkdir(parents=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        write_program(self.home / "bin/gcloud", _TUNNEL.format(own=self.home, python=sys.executable))
        (self.home / "relay.py").write_text(_RELAY)
        path = f"{self.home}/bin:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.environment = {"PATH": path, "HOME": str(self.home), "RAY_TMPDIR": str(self.home / "tmp")}
        self.environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "TERM": "xterm"}
        self._started: list[subprocess.Popen] = []
        self.hosts.make_bridge()

    def add(self, name: str, image: list[str], names: dict[str, str]) -> str:
        """Starts a machine; returns its address.

        Args:
            image: variables of the container image, as ``NAME=value``.
            names: addresses by name that the machine knows.
        """
        self.hosts.add(name)
        own, address = self.folder / name, self.hosts.address(name)
        for part in ("home/pconv", "profile.d", "image.d", "bin"):
            (own / part).mkdir(parents=True)
        (own / "hosts").write_text("".join(f"{a} {n}\n" for n, a in {"localhost": "127.0.0.1", **names}.items()))
        (own / "profile.d/programs.sh").write_text(f"export PATH={own}/bin:$PATH\n")
        # As in the image: a login shell forgets the PATH of its container.
        (own / "image.d/pconv.sh").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
        (own / "passwd").write_text("root:x:0:0:root:/home/pconv:/bin/bash\n")  # ssh looks there for ~
        (own / "image").write_text(json.dumps({"env": ["HOME=/home/pconv", "PATH=/usr/bin:/bin", *image]}))
        write_program(own / "bin/docker", _DOCKER.format(own=str(own), python=sys.executable))
        write_program(own / "bin/nvidia-smi", _SMI.format(own=own))
        write_program(own / "bin/gcloud", _GCLOUD.format(own=own))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", own / "key"], check=True)
        lines = [f"ListenAddress {address}:22", f"HostKey {own}/key", "PermitRootLogin yes", "StrictModes no"]
        lines += [f"AuthorizedKeysFile {self.key}.pub", "PidFile none", "UsePAM no", "PrintMotd no"]
        (own / "sshd_config").write_text("\n".join(lines) + "\n")
        # A way to everywhere, though none leads out: programs ask for their own address so.
        space = self.hosts._namespace(name)
        subprocess.run(["ip", "-n", space, "route", "add", "default", "via", self.gateway], check=True)
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        start = [*apart, "bash", "-c", _START, "-", str(own)]
        self._started.append(self.hosts.launch(name, start, {"PATH": os.environ["PATH"]}))
        return address

    def docker_calls(self, name: str, action: str) -> list[list[str]]:
        """Arguments of a machine's ``docker`` after the action."""
        calls = [json.loads(line) for line in (self.folder / name / "docker").read_text().splitlines()]
        return [rest for first, *rest in calls if first == action]

    def has_process(self, name: str, title: str) -> bool:
        """Whether a process runs on a machine whose command line has ``title`` in it."""
        for pid in self.hosts.processes(name):
            try:
                if title in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                    return True
            except OSError:
                continue
        return False

    def remove(self) -> None:
        self.hosts.remove()
        for process in self._started:
            process.wait(30)
