"""Jobs in pods of a cluster: what `infra/kuberay/local` makes there, and how tests look at it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from engines.cluster.cluster import Kubectl

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / "infra/kuberay/local"
OUTSIDE = "pconv-outside"  # a namespace
PATIENCE_S = 900  # for what takes two minutes on a quiet machine
# What the overlays are filled in with, as infra/kuberay/README.md has it.
HERE = {"PCONV_REPOSITORY": "pconv", "PCONV_TAG": "local", "PCONV_BATCH": "gs://pconv", "PCONV_RUNS": "gs://pconv"}
# What train.sh sets, for a run of this many steps.
STEPS, EVERY, LOGGED = 60, 10, 5
OPTIONS = f"--set log_every={LOGGED} --set checkpoint.every={EVERY}"
# Prints which of the ports answer: python -c CONNECT HOST PORT...
CONNECT = """
import concurrent.futures, json, socket, sys
host, *ports = sys.argv[1:]
def answers(port):
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
        return True
    except OSError:
        return False
with concurrent.futures.ThreadPoolExecutor() as pool:
    print(json.dumps(dict(zip(ports, pool.map(answers, ports)))))
"""


def wait_for(what: str, look: Callable[[], object], instead: Callable[[], object] = lambda: None):
    """What ``look`` returns, once that is something; fails if ``instead`` returns something first."""
    end = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end, f"waited {PATIENCE_S} s for {what}"
        assert not (other := instead()), f"expected {what}. Received {other}"
        time.sleep(0.5)
    return found


def fill(name: str, variables: dict[str, str]) -> list[dict]:
    """The objects of a file of infra/kuberay, with values put in."""
    command = [sys.executable, ROOT / "infra/fill.py", ROOT / f"infra/kuberay/{name}.yaml"]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def name_of(pod: dict) -> str:
    return pod["metadata"]["name"]


class Pods:
    """The namespace pconv of a cluster.

    Args:
        kubectl: for the cluster.
        scratch: folder.
    """

    def __init__(self, kubectl: Kubectl, scratch: Path):
        self._cluster, self._scratch = kubectl, scratch

    def run(self, *words: str) -> str:
        return self._cluster("--namespace=pconv", *words)

    def get(self, *words: str) -> dict:
        return self._cluster.get("--namespace=pconv", *words)

    def script(self, *words: str, **variables: str) -> subprocess.Popen:
        """train.sh, as a user starts it."""
        programs = self._scratch / "programs"
        programs.mkdir(exist_ok=True)
        if not (programs / "kubectl").exists():
            words_before = " ".join(self._cluster.command())
            (programs / "kubectl").write_text(f'#!/bin/sh\nexec {words_before} "$@"\n')
            (programs / "kubectl").chmod(0o755)
        place = {"PATH": f"{programs}:{os.environ['PATH']}", "PCONV_STEPS": str(STEPS), "PCONV_TRAIN_OPTIONS": OPTIONS}
        return subprocess.Popen(
            [OVERLAY / "train.sh", *words],
            env={**os.environ, **place, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def objects(self, name: str = "train") -> list[dict]:
        """The objects that train.sh applies, with a RayJob of that name."""
        with self.script("--print", PCONV_JOB=name) as script:
            return list(yaml.safe_load_all(script.stdout.read()))

    def apply(self, *objects: dict) -> None:
        self._cluster("apply", "--server-side", "--filename=-", stdin=yaml.safe_dump_all(objects))

    def start(self, name: str) -> None:
        """Applies a RayJob."""
        self.apply(*(found for found in self.objects(name) if found["kind"] == "RayJob"))

    def inpaint(self, name: str) -> None:
        """Applies inpaint.yaml with its overlay."""
        (job,) = fill("inpaint", {**HERE, "PCONV_JOB": name})
        (OVERLAY / "inpaint/rayjob.local.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
        self._cluster("apply", "--server-side", f"--kustomize={OVERLAY}/inpaint")

    def remove(self, name: str) -> None:
        """Deletes a RayJob, and waits for the end of its pods."""
        self.run("delete", "rayjob", name)
        wait_for("the end of its pods", lambda: not self.of(name, "head") and not self.of(name, "worker"))

    def status(self, name: str) -> str:
        """As the operator sees a RayJob: DEPLOYMENT/JOB."""
        return self.run("get", "rayjob", name, "--output=jsonpath={.status.jobDeploymentStatus}/{.status.jobStatus}")

    def ended(self, name: str) -> str:
        """Its status if the RayJob is over, nothing before."""
        status = self.status(name)
        return status if status.startswith(("Complete", "Failed", "ValidationFailed")) else ""

    def of(self, name: str, kind: str) -> list[dict]:
        """Pods of a RayJob that are not being deleted: head or worker."""
        pods = json.loads(self.run("get", "pods", f"--selector=ray.io/node-type={kind}", "--output=json"))["items"]
        own = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/cluster"].startswith(f"{name}-")]
        return [pod for pod in own if "deletionTimestamp" not in pod["metadata"]]

    def printed(self, name: str) -> str:
        """What the training's driver has printed so far."""
        done = self._cluster.run("--namespace=pconv", "logs", f"job/{name}", "--all-pods=true")
        return done.stdout if done.returncode == 0 else ""

    def wait_for_step(self, name: str, step: int) -> None:
        """Waits until a step has been logged, or a later one."""

        def reached() -> bool:
            return max(map(int, re.findall(rf"step (\d+)/{STEPS}", self.printed(name))), default=0) >= step

        wait_for(f"step {step} of {name}", reached, lambda: self.ended(name))

    def execute(self, pod: str, *words: str) -> str:
        return self.run("exec", pod, "--", *words)

    def execute_anyway(self, pod: str, *words: str) -> None:
        """Executes what may fail, or be ended with its pod."""
        self._cluster.run("--namespace=pconv", "exec", pod, "--", *words)

    def killed_for_memory(self, pod: str) -> bool:
        """Whether a container of a pod was, or one of its processes was where Linux kills them one by one."""
        done = self._cluster.run("--namespace=pconv", "get", "pod", pod, "--output=json")
        states = json.loads(done.stdout)["status"]["containerStatuses"] if done.returncode == 0 else []
        if any("OOMKilled" in json.dumps(state) for state in states):
            return True
        count = "cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null"
        done = self._cluster.run("--namespace=pconv", "exec", pod, "--", "sh", "-c", count)
        return any(int(found) > 0 for found in re.findall(r"^oom_kill (\d+)", done.stdout, re.MULTILINE))

    def is_ready(self, node: str) -> bool:
        ready = "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        return self._cluster("get", "node", node, ready) == "True"

    @contextlib.contextmanager
    def storage(self) -> Iterator[str]:
        """URL at which the storage server can be reached from here."""
        command = self._cluster.command("--namespace=pconv", "port-forward", "deployment/storage", ":4443")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                port = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
                assert port, process.stdout.read()
                yield f"http://127.0.0.1:{port[1]}"
            finally:
                process.kill()
