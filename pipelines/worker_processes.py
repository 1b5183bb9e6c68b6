"""Worker processes of Beam's in-process runner (--direct_running_mode multi_processing) that end when the job ends.

    python -m pipelines.worker_processes    # typed by no one: the job runs it

Beam 2.77 starts its own through a shell and leaves them alone: when one is killed the job waits for it forever, and
when the job is killed they live on.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc

from trainer import stopping


def describe_end(code: int) -> str:
    """A sentence about a worker process that ended early, from its return code as `subprocess` has it."""
    if code >= 0:
        return f"a worker process ended with exit code {code} before the job was done"
    advice = "; the usual cause is that memory ran out: try fewer processes (--direct_num_workers)"
    return f"a worker process was killed by {signal.Signals(-code).name}{advice if code == -signal.SIGKILL else ''}"


@functools.cache
def hush_broken_connections() -> None:
    """Keeps the errors of connections out of what threads print: they follow from the end of a process."""
    shown = threading.excepthook

    def show(error: threading.ExceptHookArgs) -> None:
        if not issubclass(error.exc_type, grpc.RpcError):
            shown(error)

    threading.excepthook = show


class _Workers:
    """The worker processes of one job."""

    def __init__(self, on_death: Callable[[str], None]):
        self._on_death = on_death
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen] = []
        self._over = False

    def start(self, _command: object, env: Mapping[str, str], **_options: object) -> subprocess.Popen:
        """In place of ``subprocess.Popen``: an interpreter right away, for a shell would not pass on how it ended."""
        with self._lock:
            if self._over:
                raise RuntimeError("the job is over")
            # In a session of its own: Ctrl-C is for the job, which then ends its workers.
            process = stopping.start_bound(
                [sys.executable, "-m", __name__], {**env, "TMPDIR": tempfile.gettempdir()}, start_new_session=True
            )
            self._processes.append(process)
            return process

    def run(self, run: Callable[[Any], None], worker: Any) -> None:
        """In place of Beam's ``SubprocessSdkWorker.run``, which is ``run``: starts a process and waits for its end."""
        with contextlib.suppress(RuntimeError):  # for a return code
            run(worker)
        if not self._over and (codes := [code for process in self._processes if (code := process.poll())]):
            self._on_death(describe_end(codes[0]))

    def end(self) -> None:
        """Kills the processes that are left, and waits for that."""
        with self._lock:
            self._over = True
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


@contextlib.contextmanager
def managed(on_death: Callable[[str], None]) -> Iterator[None]:
    """Within, Beam's in-process runner starts its worker processes through this module, and none lives on after.

    Args:
        on_death: called, in some thread, with a sentence about a worker process that has ended with an error.
    """
    from apache_beam.runners.portability import local_job_service

    hush_broken_connections()
    workers = _Workers(on_death)
    kind, its_subprocess = local_job_service.SubprocessSdkWorker, local_job_service.subprocess
    its_run = kind.run
    # Replaced on purpose.
    kind.run = lambda worker: workers.run(its_run, worker)  # type: ignore[method-assign]
    local_job_service.subprocess = types.SimpleNamespace(Popen=workers.start)  # type: ignore[assignment]
    try:
        yield
    finally:
        kind.run, local_job_service.subprocess = its_run, its_subprocess  # type: ignore[method-assign]
        workers.end()


def main() -> None:
    """Works until the job has no more to do, or is gone."""
    from apache_beam.runners.worker import log_handler, sdk_worker_main

    # Without its job the client of the logs would say so, and try again, until this process has ended.
    vars(log_handler)["print"] = lambda *_args, **_options: None
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    hush_broken_connections()
    try:
        sdk_worker_main.main(sys.argv)
    except grpc.RpcError:
        sys.exit("a worker process has lost its job")
    # The interpreter's own end stops threads within native code, which may abort the process.
    stopping.abandon_threads()
    stopping.leave(0)


if __name__ == "__main__":
    main()
