"""Ends the processes of a local Ray and removes its folders, once the command that started it is gone.

    python -I -S janitor.py NAME=VALUE < PIPE

Reads folders from the pipe, one a line, until the command closes it or dies. Started as a file, so it imports nothing
of this project.
"""

import os
import shutil
import signal
import sys
import time

GRACE_S, LIMIT_S = 5.0, 30.0  # until processes are killed that were asked to end, and until this gives up


def is_ours(process: str, mark: bytes, folders: list[str]) -> bool:
    """Whether a process was started with ``mark`` in its environment, or is Ray's and has a file of ``folders`` open.

    Agents and workers of Ray write a title, such as ray::DashboardAgent, over their environment; all write logs.
    """
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            if mark in file.read().split(b"\0"):
                return True
        with open(f"/proc/{process}/cmdline", "rb") as file:
            if not file.read().startswith(b"ray::"):
                return False
        numbers = os.listdir(f"/proc/{process}/fd")
    except OSError:  # it has ended, or is another user's
        return False
    for number in numbers:
        try:
            path = os.readlink(f"/proc/{process}/fd/{number}")
        except OSError:
            continue
        if any(path.startswith(folder + "/") for folder in folders):
            return True
    return False


def find_processes(mark: bytes, folders: list[str]) -> list[int]:
    """Numbers of the processes of the training."""
    others = (name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())
    return [int(name) for name in others if is_ours(name, mark, folders)]


def remove_folder(folder: str) -> None:
    """Removes a folder and a link beside it that leads there, such as Ray's session_latest."""
    shutil.rmtree(folder, ignore_errors=True)
    link = os.path.join(os.path.dirname(folder), "session_latest")
    try:
        if os.readlink(link) == folder:
            os.unlink(link)
    except OSError:
        pass


def main(mark: str) -> None:
    folders = [folder for line in sys.stdin.buffer if os.path.isabs(folder := os.fsdecode(line.rstrip(b"\n")))]
    begin = time.monotonic()
    while (processes := find_processes(os.fsencode(mark), folders)) and time.monotonic() < begin + LIMIT_S:
        for process in processes:
            try:
                os.kill(process, signal.SIGTERM if time.monotonic() < begin + GRACE_S else signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.1)
    for folder in folders:
        remove_folder(folder)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    main(sys.argv[1])
