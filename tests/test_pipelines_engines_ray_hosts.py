"""The inpainting job on a Ray cluster of two hosts that share nothing but a bucket, and what is lost of it amid jobs.

The hosts are network namespaces where root allows it (infra/local). All requests go through a proxy, which knows who
asked for what, and which objects were written.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import DOWNLOAD, UPLOAD, Fault, Proxy
from mixed_files import write_files
from running import processes_with, run_on_one_core

from networks import small_config, write_run
from picture_files import block, noise, save, save_mask
from pipelines.inpaint import main
from pipelines.inpainting.books import list_parts
from storage_server import serve_storage
from trainer import storage
from trainer.command import SOME_REJECTED
from trainer.storage import gcs

pytestmark = [pytest.mark.slow, pytest.mark.soak]

ROOT = Path(__file__).parent.parent
NODES = ("node1", "node2")
IMAGES, LOSSES = 60, 10
RAY = ("--engine", "ray")


class Hosts:
    """A head without cores, two nodes with one each, and a bucket.

    Attributes:
        proxy: before the bucket's server.
        address: of the cluster.
        environment: of the hosts, and of commands that reach the bucket.
        apart: whether each host has an address of its own.
    """

    def __init__(self, stack: contextlib.ExitStack):
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pconv-two-", dir="/tmp"))
        self.folder, self.environment = f"{scratch}/c", dict(os.environ)
        told = self.cluster("start", "--nodes", "0")
        stack.callback(self.cluster, "stop")
        self.address = re.search(r"--address (\S+)", told)[1]
        ours = re.search(r"this machine at (\S+)", told)
        self.apart = bool(ours)
        server = stack.enter_context(serve_storage("127.0.0.1", Path(scratch)))
        self.proxy = Proxy(server, ours[1] if ours else "127.0.0.1")
        stack.callback(self.proxy.close)
        self.environment["STORAGE_EMULATOR_HOST"] = self.proxy.url
        self.cluster("join", *NODES)

    def command(self, action: str, *arguments: str) -> list[str]:
        return [sys.executable, f"{ROOT}/infra/local/cluster.py", action, "--folder", self.folder, *arguments]

    def cluster(self, action: str, *arguments: str) -> str:
        done = subprocess.run(
            self.command(action, *arguments), capture_output=True, text=True, timeout=600, env=self.environment
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def job(self, output: str) -> contextlib.AbstractContextManager[subprocess.Popen]:
        """The inpainting job on the head; what it says is in pipes."""
        return self.running("pipelines.inpaint", *options(output))

    @contextlib.contextmanager
    def running(self, module: str, *arguments: str) -> Iterator[subprocess.Popen]:
        """A command on the head, with the options of the cluster; what it says is in pipes."""
        job = ["-m", module, *arguments, *RAY, "--address", self.address]
        command = self.command("run", "--", sys.executable, *job)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, text=True, env=self.environment) as process:
            try:
                yield process
            finally:
                process.kill()

    def workers(self) -> list[int]:
        """Processes of Ray's workers on the nodes; those that have work, if there are any."""
        titles = {}
        for node in NODES:
            for pid in processes_with(f"TMPDIR={self.folder}/{node}/tmp"):
                with contextlib.suppress(OSError):
                    titles[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
        # A node ends with its agents, which are called so, too.
        found = [pid for pid, title in titles.items() if title.startswith(b"ray::") and b"Agent" not in title]
        return sorted(pid for pid in found if not titles[pid].startswith(b"ray::IDLE")) or sorted(found)

    def run_alone(self, module: str, *arguments: str) -> None:
        """A command on Beam, in one process with one core, as each host has."""
        done = run_on_one_core(module, *arguments, **self.environment)
        assert done.returncode == SOME_REJECTED, done.stderr


@pytest.fixture(scope="module")
def hosts():
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        hosts = Hosts(stack)
        patch.setenv("STORAGE_EMULATOR_HOST", hosts.proxy.url)
        gcs.client.cache_clear()
        stack.callback(gcs.client.cache_clear)
        gcs.client().create_bucket("pconv")
        yield hosts


def options(output: str, *more: str) -> list[str]:
    base = output.partition("/")[0]
    where = ["--images", f"gs://pconv/{base}/in", "--masks", f"gs://pconv/{base}/holes", "--hole", "black"]
    return [*where, "--run", f"gs://pconv/{base}/run", "--output", f"gs://pconv/{output}", *more]


def written(output: str) -> dict[str, tuple[str, int]]:
    """CRC-32C and generation of each output."""
    blobs = gcs.client().list_blobs("pconv", prefix=f"{output}/")
    return {b.name.removeprefix(f"{output}/"): (b.crc32c, b.generation) for b in blobs if b.name.endswith(".png")}


def booked(output: str) -> set[str]:
    """Names of the outputs that the books have."""
    parts = [storage.read(f"gs://pconv/{output}/.items/{name}") for name in list_parts(f"gs://pconv/{output}")]
    return {line["output"] for part in parts for line in map(json.loads, part.splitlines()) if "output" in line}


def assert_same(output: str, expected: str) -> None:
    """Outputs, reports and manifest, but for the seconds that each image took."""
    ours, theirs = ({name: crc for name, (crc, _) in written(of).items()} for of in (output, expected))
    assert ours == theirs and ours
    for name in ("rejects.jsonl", "manifest.json"):
        assert storage.read(f"gs://pconv/{output}/{name}") == storage.read(f"gs://pconv/{expected}/{name}"), name
    assert lines_of(output) == lines_of(expected)


def lines_of(output: str) -> list[dict]:
    lines = map(json.loads, storage.read(f"gs://pconv/{output}/items.jsonl").splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_300_files_of_all_kinds_are_the_same_on_hosts_on_this_machine_and_on_beam(hosts):
    write_files("gs://pconv/mixed")
    assert main(options("mixed/beam")) == SOME_REJECTED
    hosts.run_alone("pipelines.inpaint", *options("mixed/alone"))
    command = [sys.executable, "-m", "pipelines.inpaint", *options("mixed/local", *RAY)]
    variables = hosts.environment | {"TMPDIR": "/tmp"}  # Ray's sockets need a short path
    local = subprocess.run(command, capture_output=True, text=True, timeout=900, env=variables)
    assert local.returncode == SOME_REJECTED, local.stderr
    before = len(hosts.proxy.clients)
    with hosts.job("mixed/hosts") as job:
        said = job.communicate(timeout=900)[1]
    assert job.returncode == SOME_REJECTED, said
    assert_same("mixed/local", "mixed/beam")
    assert_same("mixed/hosts", "mixed/alone")
    counts = json.loads(storage.read("gs://pconv/mixed/hosts/manifest.json"))["counts"]
    assert counts["inputs"] == counts["outputs"] + counts["rejects"] == 300 and counts["rejects"] >= 40
    uploads = Counter(
        client
        for client, line in zip(hosts.proxy.clients[before:], hosts.proxy.lines[before:], strict=True)
        if re.search(UPLOAD, line)
    )
    if hosts.apart:
        assert len([number for number in uploads.values() if number >= 20]) == len(NODES), uploads


# Losses


@pytest.fixture(scope="module")
def plain(hosts):
    """``IMAGES`` images, a file that is none, and what the job makes of them in one process."""
    for number in range(IMAGES):
        size = (30 + number % 50, 40 + number % 30)
        save(f"gs://pconv/plain/in/{number:02d}.png", noise(*size, 3, seed=number))
        save_mask(f"gs://pconv/plain/holes/{number:02d}.png", block(*size))
    storage.create("gs://pconv/plain/in/bad.png", b"no image")
    save_mask("gs://pconv/plain/holes/bad.png", block(30, 40))
    write_run("gs://pconv/plain/run", small_config(32))
    hosts.run_alone("pipelines.inpaint", *options("plain/beam"))


def test_an_evaluation_writes_the_same_report_on_hosts_as_on_beam(hosts, plain):
    names = [f"{number:02d}.png" for number in range(IMAGES)] + ["bad.png"]
    rows = "".join(f"in/{name},holes/{name}\n" for name in names)
    storage.create("gs://pconv/plain/pairs.csv", f"image,mask\n{rows}".encode())
    what = ["--pairs", "gs://pconv/plain/pairs.csv", "--hole", "black", "--run", "gs://pconv/plain/run@1"]
    what += ["--baseline", "telea"]
    hosts.run_alone("pipelines.evaluate", *what, "--output", "gs://pconv/plain/report-beam")
    before = len(hosts.proxy.lines)
    with hosts.running("pipelines.evaluate", *what, "--output", "gs://pconv/plain/report-hosts") as job:
        said = job.communicate(timeout=900)[1]
    assert job.returncode == SOME_REJECTED, said
    for name in ("pairs.jsonl", "metrics.json", "table.md", "report.html"):
        ours, expected = (storage.read(f"gs://pconv/plain/report-{engine}/{name}") for engine in ("hosts", "beam"))
        assert ours == expected, name
    lines = storage.read("gs://pconv/plain/report-hosts/pairs.jsonl").splitlines()
    assert len(lines) == 2 * len(names)  # each with the network and with Telea's method
    asked = zip(hosts.proxy.clients[before:], hosts.proxy.lines[before:], strict=True)
    reads = Counter(client for client, line in asked if read_images([line]))
    if hosts.apart:
        assert len([number for number in reads.values() if number >= 10]) == len(NODES), reads


def read_images(lines: list[str]) -> set[str]:
    """Names of the images, and of their outputs, that requests have read."""
    found = (line.partition("/in/")[2][:6] for line in map(urllib.parse.unquote, lines) if re.search(DOWNLOAD, line))
    return {name for name in found if name.endswith(".png")}


class Losing:
    """Does ``lose`` when upload number ``moment`` from now arrives, and follows what is asked for.

    Attributes:
        lost: what ``lose`` returned.
        known: outputs that were in the books at that moment; None before it.
        since: number of the first request after it.
    """

    def __init__(self, proxy: Proxy, output: str, moment: int, lose: Callable[[], object]):
        self.lost: object = None
        self.known: set[str] | None = None
        self._proxy, self._output, self._lose, self._moment = proxy, output, lose, moment
        self.since, self._written_since = 0, len(proxy.written)
        self._losing = threading.Thread(target=self._do)
        proxy.faults = [Fault("lost", UPLOAD, self._at)]

    def _at(self, number: int) -> bool:
        if number == self._moment:
            self._losing.start()  # beside the proxy, which is asked, too
        return False

    def _do(self) -> None:
        known = booked(self._output)
        self.lost = self._lose()
        self.since, self.known = len(self._proxy.lines), known

    def stop(self) -> None:
        self._proxy.faults = []
        if self._losing.ident:
            self._losing.join()

    def written_twice(self) -> list[str]:
        """Outputs that the store took more than once."""
        names = Counter(name for name in self._proxy.written[self._written_since :] if name.endswith(".png"))
        return [name for name, number in names.items() if number > 1]


def lose_worker(hosts: Hosts, rng: random.Random) -> None:
    pid = rng.choice(hosts.workers())
    print("killed", Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode())
    os.kill(pid, signal.SIGKILL)


def lose_node(hosts: Hosts, rng: random.Random) -> str:
    node = rng.choice(NODES)
    hosts.cluster("kill", node)
    return node


def cut_node(hosts: Hosts, rng: random.Random) -> str:
    node = rng.choice(NODES)
    hosts.cluster("cut", node)
    return node


def bring_back(hosts: Hosts, node: str) -> None:
    """Starts a node again; one whose cable was cut is up, but Ray has given it up."""
    hosts.cluster("kill", node)
    if hosts.apart:
        hosts.cluster("mend", node)
    hosts.cluster("join", node)


@pytest.mark.parametrize(("lost", "times"), [(lose_worker, LOSSES), (lose_node, LOSSES), (cut_node, 2)])
def test_what_is_lost_at_random_moments_costs_nothing_that_was_written(lost, times, hosts, plain):
    if lost is cut_node and not hosts.apart:
        pytest.skip("hosts that share an address have no cables: needs root and ip")
    rng, finished = random.Random(7), 0
    for number in range(times):
        output = f"plain/{lost.__name__}-{number}"
        losing = Losing(hosts.proxy, output, rng.randint(2, IMAGES), functools.partial(lost, hosts, rng))
        with hosts.job(output) as job:
            printed, said = job.communicate(timeout=900)
        losing.stop()
        assert job.returncode == SOME_REJECTED, said
        assert printed == f"{IMAGES} images: {IMAGES} inpainted; gs://pconv/{output}\n"
        assert losing.known is not None, "nothing was lost"
        assert_same(output, "plain/beam")
        assert losing.known.isdisjoint(read_images(hosts.proxy.lines[losing.since :])) and losing.written_twice() == []
        finished += len(losing.known)
        if losing.lost:
            bring_back(hosts, losing.lost)
    print(f"{times} times {lost.__name__}; {finished} outputs were in the books before, none of them was made again")
    assert finished > IMAGES // 4  # else nothing was shown


def test_a_node_that_was_lost_just_before_takes_no_job_along(hosts, plain):
    """Ray lists it for some time, so the job plans for the actors of both; these would fill the node that is left."""
    hosts.cluster("kill", NODES[1])
    try:
        with hosts.job("plain/after") as job:
            said = job.communicate(timeout=900)[1]
        assert job.returncode == SOME_REJECTED, said
        assert_same("plain/after", "plain/beam")
    finally:
        hosts.cluster("join", NODES[1])


def test_a_command_that_is_killed_at_random_moments_goes_on_where_it_was(hosts, plain):
    rng, ever, output = random.Random(8), set[str](), "plain/drivers"
    first = len(hosts.proxy.written)
    for kill in range(LOSSES + 1):
        left, known, start = IMAGES - len(written(output)), booked(output), len(hosts.proxy.lines)
        moment = rng.randint(1, max(1, min(left, 3 * left // (LOSSES - kill + 1)))) if kill < LOSSES else -1
        with hosts.job(output) as job:
            losing = Losing(hosts.proxy, output, moment, job.kill)
            said = job.communicate(timeout=900)[1]
        losing.stop()
        assert job.returncode == (-signal.SIGKILL if kill < LOSSES else SOME_REJECTED), said
        deadline = time.monotonic() + 300
        while kill < LOSSES and any(b"Network" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in hosts.workers()):
            assert time.monotonic() < deadline, "the processes of a job whose command was killed go on"
            time.sleep(0.2)
        assert known.isdisjoint(read_images(hosts.proxy.lines[start:]))
        assert storage.exists(f"gs://pconv/{output}/manifest.json") == (kill == LOSSES)
        ever |= known
    names = Counter(name for name in hosts.proxy.written[first:] if name.endswith(".png"))
    assert set(names.values()) == {1} and len(names) == IMAGES
    assert {name: crc for name, (crc, _) in written(output).items()} == {
        name: crc for name, (crc, _) in written("plain/beam").items()
    }
    counts = json.loads(storage.read(f"gs://pconv/{output}/manifest.json"))["counts"]
    assert (counts["inputs"], counts["outputs"], counts["rejects"]) == (IMAGES + 1, IMAGES, 1)
    print(f"{LOSSES} kills; {len(ever)} of {IMAGES} images were in the books at one of them, none was made again")
    assert len(ever) > IMAGES // 4  # else nothing was shown
