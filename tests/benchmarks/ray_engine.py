"""The inpainting job on Ray beside Beam: what an image costs, what a second host gives, what memory it takes.

    python tests/benchmarks/ray_engine.py            # all of it
    python tests/benchmarks/ray_engine.py tiny       # tiny images without holes, on this machine: Ray over Beam
    python tests/benchmarks/ray_engine.py hosts      # 512 x 512, hosts of one core (network namespaces): two over one
    python tests/benchmarks/ray_engine.py large      # 20 images of 100 megapixels: peak of processes and object store

The start is left out: a job's time is that from an early output to its last, by the files' modification times; jobs
take turns, and figures are medians. Each host is pinned to a core of its own; the cluster's head and the command are on
the first host's, with one host and with two. Their network, and that of the large images, is the starter model: of the
paper's, which takes seconds for an image of `hosts`, there would be too few to fill the tasks that read and write.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from _timing import SMALL, progress, rounds
from inpaint import make_run, photograph, write_inputs

from trainer.command import quiet_imports

with quiet_imports():
    import cv2
    import numpy as np

TINY, TINY_SIDE = (60, 32) if SMALL else (4000, 32)
IMAGES, SIDE, HOLE = (8, 64, 20) if SMALL else (128, 512, 160)
LARGE, LARGE_SIDE, LARGE_HOLE = (2, 600, 60) if SMALL else (20, 10_000, 1_000)
EARLY = 0.15  # share of the outputs that are made before time counts
CLUSTER = [sys.executable, str(Path(__file__).parents[2] / "infra" / "local" / "cluster.py")]


def job(folder, engine, *more, model=()):
    """Command of the job; its outputs are in ``folder``/out-``engine``."""
    files = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--hole", "black", "--overwrite"]
    where = [*(model or ("--run", f"{folder}/run")), "--output", f"{folder}/out-{engine}"]
    return [sys.executable, "-m", "pipelines.inpaint", *files, *where, "--engine", engine, *more]


def run(command):
    variables = os.environ | {"TMPDIR": "/tmp"}  # Ray's sockets need a short path
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def seconds_each(folder):
    written = sorted(path.stat().st_mtime for path in Path(folder).glob("*.png"))
    first = int(EARLY * len(written))
    return (written[-1] - written[first]) / (len(written) - 1 - first)


def benchmark_tiny(folder):
    write_inputs(folder, TINY, TINY_SIDE, TINY_SIDE, hole=0)
    found = []
    for number in range(rounds(5)):
        progress(f"tiny, round {number + 1} of {rounds(5)}")
        seconds = {}
        for engine in ("beam", "ray"):
            run(job(folder, engine))
            seconds[engine] = seconds_each(f"{folder}/out-{engine}")
        found.append(seconds)
    beam, ray = (1000 * statistics.median(each[engine] for each in found) for engine in ("beam", "ray"))
    ratio = statistics.median(each["ray"] / each["beam"] for each in found)
    print(f"tiny images: Beam in process {beam:.2f} ms each (baseline), Ray {ray:.2f} ms each, {ratio:.2f} times")


def benchmark_hosts(folder):
    write_inputs(folder, IMAGES, SIDE, SIDE, HOLE)
    scratch = tempfile.mkdtemp(prefix="pconv-hosts-", dir="/tmp")
    cluster = [*CLUSTER, "{}", "--folder", f"{scratch}/c"]

    def act(action, *names, core=None):
        pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
        return run([*pinned, *(part.format(action) for part in cluster), *names])

    address = act("start", "--nodes", "0", core=0).split()[1]
    found = []
    try:
        act("join", "node1", core=0)
        for number in range(rounds(5)):
            seconds = {}
            for hosts in (1, 2):
                progress(f"hosts, round {number + 1} of {rounds(5)}: {hosts}")
                if hosts == 2:
                    act("join", "node2", core=1)
                command = job(folder, "ray", "--address", address, "--device", "cpu", model=("--model", "starter"))
                act("run", "--", *command, core=0)
                seconds[hosts] = seconds_each(f"{folder}/out-ray")
                progress(f"hosts: {hosts}, {seconds[hosts]:.2f} s an image")
            found.append(seconds)
            act("kill", "node2")
    finally:
        act("stop")
        shutil.rmtree(scratch)
    one, two = (statistics.median(each[hosts] for each in found) for hosts in (1, 2))
    ratio = statistics.median(each[1] / each[2] for each in found)
    print(f"{SIDE} x {SIDE}: one host of one core {one:.2f} s each (baseline), two {two:.2f} s each, {ratio:.2f} times")


class Memory(threading.Thread):
    """Highest memory of a process and all below it, and of Ray's object store, which is in /dev/shm.

    Attributes:
        processes, store, both: bytes; ``both`` at the same moment.
    """

    def __init__(self, root):
        super().__init__(daemon=True)
        self.processes = self.store = self.both = 0
        self._root, self._over = root, threading.Event()
        self._before = self._shared()
        self.start()

    def run(self):
        while not self._over.wait(0.2):
            store, processes = self._shared() - self._before, sum(map(_own_bytes, _below(self._root)))
            self.store, self.processes = max(self.store, store), max(self.processes, processes)
            self.both = max(self.both, store + processes)

    def stop(self):
        self._over.set()
        self.join()

    def _shared(self):
        found = os.statvfs("/dev/shm")
        return (found.f_blocks - found.f_bfree) * found.f_frsize


def _below(root):
    """Ids of a process and of all that it has started, directly or not."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone by now
            continue
    found = [root]
    for pid in found:  # grows meanwhile
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _own_bytes(pid):
    """Of a process's memory what is no object store: its share of anonymous pages and of files."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    return 1024 * (sizes.get("Pss_Anon", 0) + sizes.get("Pss_File", 0))


def benchmark_large(folder):
    for name in ("in", "holes"):
        os.makedirs(f"{folder}/{name}")
    tiles = 10
    image = np.tile(photograph(LARGE_SIDE // tiles, LARGE_SIDE // tiles, 0), (tiles, tiles, 1))
    mask = np.full(image.shape[:2], 255, np.uint8)
    mask[LARGE_HOLE : 2 * LARGE_HOLE, LARGE_HOLE : 2 * LARGE_HOLE] = 0
    cv2.imwrite(f"{folder}/in/000.jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    cv2.imwrite(f"{folder}/holes/000.png", mask)
    del image, mask
    for number in range(1, LARGE):
        for kind in ("in/{:03d}.jpg", "holes/{:03d}.png"):
            os.link(f"{folder}/{kind.format(0)}", f"{folder}/{kind.format(number)}")
    for engine in ("beam", "ray"):
        command = job(folder, engine, model=("--model", "starter"))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"TMPDIR": "/tmp"}) as process:
            memory = Memory(process.pid)
        memory.stop()
        assert process.returncode == 0
        print(
            f"{LARGE} images of {LARGE_SIDE**2 / 1e6:.0f} megapixels, {engine}: at most {memory.both / 1e9:.2f} GB, of "
            f"processes {memory.processes / 1e9:.2f} GB, of the object store {memory.store / 1e9:.2f} GB; "
            f"{seconds_each(f'{folder}/out-{engine}'):.1f} s an image"
        )


BENCHMARKS = {"tiny": benchmark_tiny, "hosts": benchmark_hosts, "large": benchmark_large}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        with tempfile.TemporaryDirectory() as scratch:
            make_run(f"{scratch}/run")
            BENCHMARKS[name](scratch)
