"""Commands that tests run for real and stop when they print something."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

# A module named sitecustomize: says on stderr, past all that holds it back, that a module is about to be imported.
_TELLER = """
import os, sys
TERMINAL = os.dup(2)

class Teller:
    def find_spec(self, name, path=None, target=None):
        if name in os.environ["TOLD_MODULES"].split(","):
            os.write(TERMINAL, f"importing {name}\\n".encode())

sys.meta_path.insert(0, Teller())
"""

# A program, to be run with -c: pipelines.build_imagenet, killed before it creates file number argv[1] in storage.
KILLED_IMAGENET = """
import itertools, os, signal, sys
from trainer import storage
create, calls, last = storage.create, itertools.count(), int(sys.argv[1])
def create_or_die(address, data):
    if next(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    create(address, data)
storage.create = create_or_die
from pipelines.build_imagenet import main
main(sys.argv[2:])
"""


def run_on_one_core(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command on one core, as a machine that has no more: its files are those of such machines byte for byte.

    The last bit of what TensorFlow computes depends on the number of its threads. Without AVX-512 17 of 258 images, in
    43 of 234,468 values, differ by one level from those of two cores.
    """
    core = {min(os.sched_getaffinity(0))}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | environment,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    )


class Running:
    """A command, with stdout and stderr in one pipe.

    Attributes:
        told: what it has printed so far.
        process: its process.
    """

    def __init__(self, *command: str, cwd: Path, modules: str = "", **environment: str):
        """``modules``, separated by commas: before one of them is imported ``importing NAME`` is printed."""
        variables = os.environ | environment
        if modules:
            (cwd / "sitecustomize.py").write_text(_TELLER)
            paths = [str(cwd), os.environ.get("PYTHONPATH", "")]
            variables |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TOLD_MODULES": modules}
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=variables
        )
        self.told = ""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def wait_for(self, text: str) -> None:
        """Reads until ``text`` has been printed."""
        while text not in self.told:
            read = os.read(self.process.stdout.fileno(), 65536)
            assert read, f"expected {text!r}\n{self.told}"
            self.told += read.decode()

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Sends a signal; returns the exit code and what is printed from then on, by all processes that it started."""
        before = len(self.told)
        self.process.send_signal(number)
        return self.wait(before)

    def wait(self, before: int = 0) -> tuple[int, str]:
        while read := os.read(self.process.stdout.fileno(), 65536):
            self.told += read.decode()
        return self.process.wait(), self.told[before:]

    def below(self, *words: str) -> list[int]:
        """Processes that it has started, directly or not, whose command line has one of ``words``."""
        parents, found = {}, []
        for entry in Path("/proc").iterdir():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except (ValueError, OSError):  # not a process, or gone by now
                continue
            if not words or any(word in command for word in words):
                found.append(int(entry.name))

        def descends(pid: int) -> bool:
            return pid in parents and (parents[pid] == self.process.pid or descends(parents[pid]))

        return [pid for pid in found if descends(pid)]


def processes_with(variable: str) -> list[int]:
    """Those that have an environment variable, given as ``NAME=VALUE``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone by now
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether the process has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def have_ended(pids: Collection[int], within: float = 60) -> bool:
    """Whether all these processes end ``within`` so many seconds: what they have open is closed a moment earlier."""
    until = time.monotonic() + within
    while left := any(map(is_alive, pids)):
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return not left
