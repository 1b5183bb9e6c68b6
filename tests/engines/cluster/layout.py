"""Addresses of a cluster's parts, and the programs that are started there."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from engines import tools

CONTROL = "10.210.0.1"  # the control plane, and the DNS of pods
HERE = "10.210.0.2"  # this machine, which no pod knows a way to
PODS, SERVICES = "10.211.0.0/16", "10.212.0.0/16"
API = f"https://{CONTROL}:6443"


def node_address(number: int) -> str:
    return f"10.210.0.{10 + number}"


def pods_of(number: int) -> str:
    """Addresses of the pods of a node."""
    return f"10.211.{number}.0/24"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def name_of_tool(program: str) -> str:
    """All of Kubernetes is one program, which is what it is called by."""
    return "kubernetes" if program.startswith("kube") and program != "kube-router" else program


class Programs:
    """What process 1 of a namespace starts, and starts again when it ends; each writes a log of its own.

    Args:
        logs: folder.
    """

    def __init__(self, logs: Path):
        self._logs, self._running = logs, {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *words: object, again: bool = True, before: Callable | None = None, **variables: str):
        """Starts a program of the table of tools, or of the system; ``before`` is called in its process first."""
        command = [str(word) for word in words]
        parts = name_of_tool(command[0])
        found = tools.find(parts) if parts in (*tools.TOOLS, *tools.PROGRAMS) else None
        with open(self._logs / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command,
                executable=found,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **variables},
                preexec_fn=before,
            )
        if again:
            self._running[process.pid] = lambda: self.start(name, *words, before=before, **variables)
        return process

    def wait(self) -> None:
        """Does what process 1 has to, for ever: waits for whatever ends."""
        while True:
            try:
                pid, _ = os.wait()
            except ChildProcessError:
                time.sleep(1)
                continue
            if start := self._running.pop(pid, None):
                time.sleep(1)
                start()
