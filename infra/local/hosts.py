"""Several hosts on one machine: network namespaces, on a bridge that leads nowhere else.

Without the rights for that, hosts are groups of processes that share the address 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path


class Failure(Exception):
    """An error for the user to fix; printed as one line."""


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def choose_prefix() -> str:
    """The first three numbers of addresses that this machine neither has nor routes to."""
    taken = ip("-o", "-4", "address") + ip("-4", "route")
    return next(prefix for number in range(256) if (prefix := f"10.213.{number}.") not in taken)


@dataclass
class Hosts:
    """The hosts of one cluster, recorded in ``FOLDER/hosts.json``.

    Attributes:
        folder: all temporary files; each host has a folder of its name there.
        bridge: name of the bridge, and prefix of the names of namespaces and cables; None if hosts share one address.
        prefix: first part of the addresses, such as ``10.213.7.``; this machine has number 1.
        numbers: last part of the address, by host.
        pids: process that all others of a host descend from, by host.
    """

    folder: str
    bridge: str | None
    prefix: str
    numbers: dict[str, int] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str) -> Hosts:
        try:
            return cls(**json.loads(Path(folder, "hosts.json").read_text()))
        except FileNotFoundError:
            raise Failure(f"--folder: no cluster was started in {folder}") from None

    def save(self) -> None:
        file = Path(self.folder, "hosts.json")
        file.with_suffix(".new").write_text(json.dumps(asdict(self)))
        file.with_suffix(".new").replace(file)

    def address(self, host: str) -> str:
        return f"{self.prefix}{self.numbers[host]}" if self.bridge else "127.0.0.1"

    def _namespace(self, host: str) -> str:
        return f"{self.bridge}-{host}"

    def _cable(self, host: str) -> str:
        return f"{self.bridge}-{self.numbers[host]}"

    def make_bridge(self) -> None:
        if self.bridge:
            ip("link", "add", self.bridge, "type", "bridge")
            ip("address", "add", f"{self.prefix}1/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")

    def add(self, host: str) -> None:
        self.numbers[host] = max(self.numbers.values(), default=1) + 1
        self.save()  # first, so that a host made in part can be removed
        Path(self.folder, host, "tmp").mkdir(parents=True)
        if self.bridge:
            space, cable = self._namespace(host), self._cable(host)
            ip("netns", "add", space)
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", cable, "master", self.bridge, "up")
            ip("-n", space, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", space, "link", "set", device, "up")

    def plug(self, host: str, state: str) -> None:
        """Unplugs a host's cable (``down``) or plugs it in (``up``)."""
        if not self.bridge:
            raise Failure("cables need hosts with their own addresses; these share 127.0.0.1")
        ip("link", "set", self._cable(host), state)

    def on(self, host: str, command: list[str]) -> list[str]:
        """``command``, wrapped to run on a host."""
        return ["ip", "netns", "exec", self._namespace(host), *command] if self.bridge else command

    def launch(self, host: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
        """Starts the process that all others of a host descend from; its output goes to ``FOLDER/HOST.log``."""
        with open(Path(self.folder, f"{host}.log"), "wb") as log:
            process = subprocess.Popen(
                self.on(host, command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pids[host] = process.pid
        self.save()
        return process

    def processes(self, host: str) -> list[int]:
        """Ids of a host's processes; of hosts that share an address, the launched process and its descendants."""
        if self.bridge:
            return [int(line) for line in ip("netns", "pids", self._namespace(host)).split()]
        parents: dict[int, int] = {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = file.read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(file.parent.name)] = int(parent)
        found = [self.pids[host]] if self.pids.get(host) in parents else []
        for pid in found:  # grows meanwhile
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def kill(self, host: str) -> None:
        """Kills every process of a host with SIGKILL, and waits until they are gone."""
        deadline = time.monotonic() + 30
        while pids := self.processes(host):
            for pid in reversed(pids):  # the ancestor last: the others are found through it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise Failure(f"{host}: processes {pids} still run 30 s after SIGKILL")
            time.sleep(0.05)
        self.pids.pop(host, None)
        self.save()

    def remove(self) -> None:
        """Removes all processes, namespaces and cables, also those of hosts that were made in part."""
        spaces = ip("netns", "list").split() if self.bridge else []
        for host in self.numbers:
            if not self.bridge:
                self.kill(host)
            elif self._namespace(host) in spaces:
                self.kill(host)
                ip("netns", "delete", self._namespace(host))
        if self.bridge and f" {self.bridge}:" in ip("-o", "link"):
            for host in self.numbers:
                with contextlib.suppress(Failure):  # goes with its namespace, a moment later
                    ip("link", "delete", self._cable(host))
            ip("link", "delete", self.bridge)
