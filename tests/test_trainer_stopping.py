"""Signals, closed streams and pipes without a reader: how commands end, as a shell sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from running import Running

# A module that each command imports before its main function is called.
FIRST = {
    "trainer.train": "trainer.presets",
    "trainer.export": "trainer.storage",
    "trainer.import_weights": "numpy",
    "pipelines.build_masks": "masks.families",
    "pipelines.build_imagenet": "trainer.images.rgb",
    "pipelines.inpaint": "pydantic",
    "pipelines.demo": "PIL.ImageDraw",
}
SCRIPT = (
    "import atexit, contextlib, os, signal, sys, threading, time\n"
    "from trainer import stopping\nfrom trainer.command import *\n"
)


def script(body: str, **options) -> Running:
    """Runs ``body`` as a command's ``main``."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    return Running("-c", f"{SCRIPT}def main(argv):\n{indented}\nrun_command(main)\n", **options)


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM\n"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP\n"),
    ],
)
def test_a_signal_is_one_line_and_a_code_and_what_is_open_is_closed(tmp_path, number, code, line):
    body = "try:\n    print('ready', flush=True)\n    time.sleep(999)\nfinally:\n    print('tidy', flush=True)"
    with script(body, cwd=tmp_path) as command:
        command.wait_for("ready\n")
        assert command.stop(number) == (code, f"tidy\n{line}")


@pytest.mark.parametrize("waits", ["time.sleep(999)", "os.read(os.pipe()[0], 1)", "threading.Event().wait(999)"])
def test_a_signal_that_does_not_end_the_wait_of_the_main_thread_is_handled_at_once(tmp_path, waits):
    # To another thread: Python's handler is due, but the main thread waits on, as after a signal just before its call.
    body = (
        "def send():\n    time.sleep(0.2)\n    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        f"threading.Thread(target=send).start()\ntry:\n    {waits}\nfinally:\n    print('tidy', flush=True)"
    )
    with script(body, cwd=tmp_path) as command:
        assert command.wait() == (143, "tidy\ninterrupted by SIGTERM\n")


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    ignoring = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    body = "os.kill(os.getpid(), signal.SIGINT)\n    print('done')"
    done = subprocess.run(
        [sys.executable, "-c", f"{ignoring}{SCRIPT}def main(argv):\n    {body}\nrun_command(main)"],
        capture_output=True,
        timeout=600,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


def test_an_interrupt_that_a_library_turns_into_something_else_still_is_one(tmp_path):
    body = (
        "try:\n    print('ready', flush=True)\n    time.sleep(999)\n"
        "except BaseException as error:\n    raise ImportError('no NumPy') from error"
    )
    with script(body, cwd=tmp_path) as command:
        command.wait_for("ready\n")
        assert command.stop() == (130, "interrupted\n")


def test_an_interrupt_is_not_lost_in_a_callback_of_the_garbage_collector(tmp_path):
    body = (
        "import gc\n"
        "def callback(phase, info):\n"
        "    gc.callbacks.clear()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(999)\n"
        "gc.callbacks.append(callback)\n"
        "gc.collect()\n"
        "time.sleep(999)\n"
    )
    with script(body, cwd=tmp_path) as command:
        command.wait_for("ready\n")
        assert command.stop() == (130, "interrupted\n")


def test_a_second_signal_ends_what_does_not_stop(tmp_path):
    body = (
        "try:\n    print('ready', flush=True)\n    time.sleep(999)\n"
        "finally:\n    time.sleep(1.1)\n    print('more', flush=True)\n    time.sleep(999)"
    )
    with script(body, cwd=tmp_path) as command:
        command.wait_for("ready\n")
        command.process.send_signal(signal.SIGINT)
        command.process.send_signal(signal.SIGINT)  # to the process and its group, as some shells do: is one
        command.wait_for("more\n")
        assert command.stop() == (130, "interrupted\n")


def test_a_thread_that_never_ends_does_not_keep_an_interrupted_command(tmp_path):
    body = (
        "threading.Thread(target=time.sleep, args=[999]).start()\n"
        "stopping.abandon_threads()\n"
        "print('ready', flush=True)\n"
        "time.sleep(999)"
    )
    with script(body, cwd=tmp_path) as command:
        command.wait_for("ready\n")
        assert command.stop() == (130, "interrupted\n")


def test_a_bound_process_ends_with_the_one_that_started_it(tmp_path):
    child = f"{SCRIPT}prepare()\nprint('child', flush=True)\ntime.sleep(999)"
    with script(f"stopping.start_bound([sys.executable, '-c', {child!r}])\ntime.sleep(999)", cwd=tmp_path) as command:
        command.wait_for("child\n")
        assert command.stop(signal.SIGKILL) == (-9, "interrupted by SIGTERM\n")  # until the child closes the pipe


@pytest.mark.parametrize(("module", "imported"), FIRST.items())
def test_an_interrupt_while_a_command_is_loaded_is_one_line(tmp_path, module, imported):
    with Running("-m", module, cwd=tmp_path, modules=imported) as command:
        command.wait_for(f"importing {imported}\n")
        assert command.stop() == (130, "interrupted\n")


LATER = [
    ("pipelines.build_masks", "--output out --count 9", "apache_beam.coders"),
    ("pipelines.build_imagenet", "--input in --output out", "pipelines.launch"),
    ("pipelines.inpaint", "--images in --holes alpha --model m --output out", "apache_beam.runners"),
    ("pipelines.evaluate", "--images in --masks m --run r --output out", "apache_beam.transforms"),
    ("trainer.export", "--run r", "tensorflow.python.framework.dtypes"),
    ("trainer.train", "--preset demo --images in --masks m --run r", "tensorflow.python.eager.context"),
    ("trainer.import_weights", "--from naoto0804 file --run r", "keras.src.backend"),
]


@pytest.mark.parametrize(("module", "options", "imported"), LATER, ids=[module for module, _, _ in LATER])
def test_an_interrupt_while_libraries_are_loaded_is_one_line(tmp_path, module, options, imported):
    with Running("-m", module, *options.split(), cwd=tmp_path, modules=imported) as command:
        command.wait_for(f"importing {imported}\n")
        assert command.stop() == (130, "interrupted\n")
    assert os.listdir(tmp_path) in (["sitecustomize.py"], sorted(["sitecustomize.py", "__pycache__"]))


def shell(line: str, **environment: str) -> subprocess.CompletedProcess:
    line = line.replace("python", sys.executable)
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )


MAIN = SCRIPT + (
    "def main(argv):\n"
    "    for number in range(3):\n"
    "        print('out', number, flush=True)\n"
    "        print('err', number, file=sys.stderr, flush=True)\n"
    "    with contextlib.suppress(BrokenPipeError): os.write(2, b'native')\n"  # native code would not raise
    "    with quiet_imports(): os.write(2, b'held')\n"
    "    open(argv[0], 'w').write('done')\n"
    "    return 3\n"
    "run_command(main)\n"
)


@pytest.mark.parametrize(
    ("streams", "out", "err"),
    [
        ("2>&-", "out 0\nout 1\nout 2\n", ""),
        (">&-", "", "err 0\nerr 1\nerr 2\nnative"),
        ("<&- >&- 2>&-", "", ""),
        ("| true", "", "err 0\nerr 1\nerr 2\nnative"),
        ("2>&1 | head -1", "out 0\n", ""),
        (">/dev/full", "", "stdout: No space left on device; going on without\nerr 0\nerr 1\nerr 2\nnative"),
        ("2>/dev/full", "out 0\nout 1\nout 2\n", ""),
    ],
)
def test_the_work_is_done_whatever_becomes_of_the_output(tmp_path, streams, out, err):
    (tmp_path / "main.py").write_text(MAIN)
    done = shell(f"python {tmp_path}/main.py {tmp_path}/work {streams}")
    assert (done.returncode, done.stdout) == (3, out)
    assert sorted(done.stderr.splitlines()) == sorted(err.splitlines())
    assert (tmp_path / "work").read_text() == "done"


def test_nothing_is_written_into_files_that_get_the_number_of_a_closed_stream(tmp_path):
    body = f"file = open({str(tmp_path / 'data')!r}, 'wb')\nfile.write(b'data')\nos.write(2, b'a log')\nprint('text')"
    (tmp_path / "main.py").write_text(f"{SCRIPT}def main(argv):\n" + "".join(f"    {x}\n" for x in body.splitlines()))
    with open(tmp_path / "main.py", "a") as file:
        file.write("run_command(main)\n")
    assert shell(f"python {tmp_path}/main.py >&- 2>&-").returncode == 0
    assert (tmp_path / "data").read_bytes() == b"data"


def test_help_for_a_reader_that_leaves():
    done = shell("python -m pipelines.build_masks --help | head -1")
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


def test_python_without_docstrings_is_one_line(tmp_path):
    done = shell(f"python -m pipelines.build_masks --output {tmp_path}/out --count 1", PYTHONOPTIMIZE="2")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: PYTHONOPTIMIZE=2 (python -OO): expected 0 or 1.")
    assert done.stderr.count("\n") == 1
