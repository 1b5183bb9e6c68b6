"""Several hosts on one machine: a network namespace each, on a bridge that leads nowhere else.

Where that takes rights that one has not, they are groups of processes that share the address 127.0.0.1.
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
    """What the user has to put right."""


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def choose_prefix() -> str:
    """Of addresses that nothing on this machine has or reaches."""
    taken = ip("-o", "-4", "address") + ip("-4", "route")
    return next(prefix for number in range(256) if (prefix := f"10.213.{number}.") not in taken)


@dataclass
class Hosts:
    """What there is, kept in ``FOLDER/hosts.json``.

    Attributes:
        folder: of all temporary files; a host's are in a folder of its name.
        bridge: its name and the first part of the names of namespaces and cables; None: all hosts have one address.
        prefix: of the addresses, such as ``10.213.7.``; this machine's ends with 1.
        numbers: by name of a host, the end of its address.
        pids: by name of a host, of the process that all others of it descend from.
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
            raise Failure(f"--folder: expected one that start has made. Received {folder}.") from None

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
        self.save()  # before it is made, so that whatever there is of it can be removed
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
        """Pulls a host's cable out (``down``) or puts it back (``up``)."""
        if not self.bridge:
            raise Failure("expected hosts with addresses of their own. Received hosts that share one.")
        ip("link", "set", self._cable(host), state)

    def on(self, host: str, command: list[str]) -> list[str]:
        """A command that runs ``command`` on a host."""
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
        """All that run on a host; of hosts that share an address, those that were launched and their descendants."""
        if self.bridge:
            return [int(line) for line in ip("netns", "pids", self._namespace(host)).split()]
        parents: dict[int, int] = {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = file.read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(file.parent.name)] = int(parent)
        found = [self.pids[host]] if self.pids.get(host) in parents else []
        for pid in found:  # it grows
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def kill(self, host: str) -> None:
        """kill -9 of all that runs on a host; returns when it is gone."""
        give_up = time.monotonic() + 30
        while pids := self.processes(host):
            for pid in reversed(pids):  # the eldest last, which is what the others are found by
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > give_up:
                raise Failure(f"{host}: expected its processes to end. Received {pids} after 30 s.")
            time.sleep(0.05)
        self.pids.pop(host, None)
        self.save()

    def remove(self) -> None:
        """Leaves no process, namespace or cable behind, of hosts that were made in part as well."""
        spaces = ip("netns", "list").split() if self.bridge else []
        for host in self.numbers:
            if not self.bridge:
                self.kill(host)
            elif self._namespace(host) in spaces:
                self.kill(host)
                ip("netns", "delete", self._namespace(host))
        if self.bridge and f" {self.bridge}:" in ip("-o", "link"):
            for host in self.numbers:
                with contextlib.suppress(Failure):  # it goes with its namespace, which may take a moment
                    ip("link", "delete", self._cable(host))
            ip("link", "delete", self.bridge)
