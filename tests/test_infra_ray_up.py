"""`ray up` with cluster.yaml's own commands on machines that SSH leads to; one of them is taken away."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machines
import numpy as np
import pytest
import yaml
from metadata_server import serve_metadata
from running import run_on_one_core

from storage_server import serve_storage
from trainer import storage
from trainer.images import rgb
from trainer.storage import gcs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
STEPS, BATCH, SIZE = 2500, 8, 64  # a minute at least: a notice takes seconds
PORT = 80  # of the metadata server


def cluster_file(folder: Path, key: Path, head: str, workers: list[str]) -> tuple[dict, Path]:
    """cluster.yaml for machines that are there already: everything but the kinds of machines is as it is."""
    spec = importlib.util.spec_from_file_location("fill", ROOT / "infra/fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    text = (ROOT / "infra/ray/cluster.yaml").read_text("utf-8")
    values = {name: f"some-{name.lower()}" for name in re.findall(r"PCONV_[A-Z_]+", text)}
    values |= {"PCONV_NAME": folder.name, "PCONV_REGION": "us-central1", "PCONV_ZONE": "us-central1-a"}
    for name in ("PCONV_GPU_WORKERS", "PCONV_SPOT_WORKERS", "PCONV_DISK_GB"):
        values[name] = "1"
    config = yaml.safe_load(fill.fill(text, values))
    kinds = config.pop("available_node_types")
    config.pop("head_node_type")
    config["provider"] = {"type": "local", "head_ip": head, "worker_ips": workers}
    config["auth"] |= {"ssh_user": "root", "ssh_private_key": str(key)}  # ssh takes ~ for root's home, not for $HOME
    # This kind of provider has one kind of machines.
    config["initialization_commands"] = kinds["gpu_spot"]["initialization_commands"]
    file = folder / "cluster.local.yaml"
    file.write_text(yaml.safe_dump(config))
    return config, file


class Cloud:
    """A head and two workers, a bucket, and the announcement of preemptions."""

    def __init__(self, stack: contextlib.ExitStack):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pup-", dir="/var/tmp")))
        self.folder, self.machines = folder, machines.Machines(folder)
        stack.callback(self.machines.remove)
        gateway = self.machines.gateway
        self.metadata = stack.enter_context(serve_metadata(host=gateway, port=PORT))
        self.bucket = stack.enter_context(serve_storage(gateway, folder))
        image = [f"STORAGE_EMULATOR_HOST={self.bucket}", f"PYTHONPATH={ROOT}", "RAY_USAGE_STATS_ENABLED=0"]
        # With machines that are there already, Ray's newer autoscaler starts one alone of two (2.60).
        image += ["RAY_enable_autoscaler_v2=0", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S=1"]
        self.machines.environment["RAY_UP_enable_autoscaler_v2"] = "0"
        names = {"metadata.google.internal": gateway}
        self.addresses = {
            # On Google Cloud the launcher says itself what a kind of machines has.
            name: self.machines.add(name, [*image, f'RAY_OVERRIDE_RESOURCES={{"CPU":{cpus}}}'], names)
            for name, cpus in (("head", 0), ("one", 1), ("two", 1))
        }
        head, *workers = self.addresses.values()
        self.config, self.file = cluster_file(folder, self.machines.key, head, workers)

    def command(self, *words: str) -> list[str]:
        return ["nice", sys.executable, "-m", "ray.scripts.scripts", *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words),
            env=self.machines.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
            umask=0o077,  # strict, as some have it
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout


@pytest.fixture
def cloud(monkeypatch):
    machines.require()
    with contextlib.ExitStack() as stack:
        cloud = Cloud(stack)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.bucket)
        gcs.client.cache_clear()
        stack.callback(gcs.client.cache_clear)
        gcs.client().create_bucket("pconv")
        yield cloud


def build_datasets() -> None:
    rng = np.random.default_rng(0)
    for number in range(24):
        storage.create(f"gs://pconv/photos/{number}.jpg", rgb.encode_jpeg(rng.integers(0, 256, (80, 80, 3), np.uint8)))
    for job, *options in (
        ("build_masks", "--output", "gs://pconv/masks", "--count", "24", "--size", f"{SIZE}"),
        ("build_imagenet", "--input", "gs://pconv/photos", "--output", "gs://pconv/images"),
    ):
        command = [sys.executable, "-m", f"pipelines.{job}", *options, "--num-shards", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr


def training_command(run: str) -> str:
    settings = {"unet.image_size": SIZE, "unet.filters": "4,8,8", "unet.kernels": "5,3,3", "precision": "float32"}
    settings |= {"initial.steps": STEPS, "finetune.steps": 0, "global_batch_size": BATCH, "log_every": 1}
    # No checkpoint but for a notice, and no failure is forgiven.
    settings |= {"checkpoint.every": STEPS, "validation.every": 0, "scaling.workers": 1, "scaling.max_failures": 0}
    words = ["python -m trainer.train --address auto --preset demo --images gs://pconv/images --masks gs://pconv/masks"]
    return " ".join([*words, f"--run {run}", *(f"--set {key}={value}" for key, value in settings.items())])


class Training:
    """`ray exec` of the command, and what it prints."""

    def __init__(self, cloud: Cloud, run: str):
        self.log = cloud.folder / "training.log"
        command = cloud.command("exec", "--no-config-cache", str(cloud.file), training_command(run))
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, env=cloud.machines.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match:
        end = time.monotonic() + 600
        while not (found := re.search(pattern, self.output())):
            assert self.process.poll() is None and time.monotonic() < end, self.output()[-6000:]
            time.sleep(0.05)
        return found

    def steps(self) -> list[int]:
        return [int(step) for step in re.findall(r"step (\d+)/", self.output())]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_machine_is_taken_away_and_no_step_is_lost(cloud):
    build_datasets()
    cloud.run("get-auth-token", "--generate")
    token = cloud.machines.home / ".ray/auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    told = cloud.run("up", "--yes", "--no-config-cache", str(cloud.file))
    cloud.metadata.await_waiting(machines=2, timeout=600)  # the head has made both workers
    for name in cloud.addresses:
        check_machine(cloud, name, token.read_text())
    tunnels = (cloud.machines.home / "gcloud").read_text().splitlines()
    assert tunnels and all(
        line.startswith(f"compute start-iap-tunnel {cloud.addresses['head']} 22") for line in tunnels
    )
    assert "Ray runtime started" in told

    training = Training(cloud, "gs://pconv/run")
    training.wait_for(r"step 20/")
    (lost,) = [name for name in ("one", "two") if cloud.machines.has_process(name, "RayTrainWorker")]
    cloud.metadata.preempt(cloud.addresses[lost])
    step = int(training.wait_for(r"preemption notice: saving checkpoint at step (\d+)")[1])
    training.wait_for(rf"checkpoint gs://pconv/run/checkpoints/\S*{step}")
    cloud.machines.hosts.kill(lost)
    training.wait_for(rf"resumes after step {step} of {STEPS}")
    assert training.process.wait(900) == 0, training.output()[-6000:]
    assert training.steps() == list(range(1, STEPS + 1))  # each once
    files = [address for address in storage.find("gs://pconv/run/logs") if address.endswith(".log")]
    logs = {os.path.basename(address): storage.read(address).decode() for address in files}
    shown = [
        line
        for line in training.output().splitlines()
        if re.match(r"initial step|preemption|checkpoint|training", line)
    ]
    kept = logs.pop("driver.log").splitlines()
    assert [line for line in kept if line in set(shown)] == shown
    assert {cloud.addresses[name] for name in ("one", "two")} <= {name.rpartition("-")[0] for name in logs}, logs
    fill_and_score(cloud)


def fill_and_score(cloud: Cloud) -> None:
    """The cluster that has trained fills and scores, and writes what Beam does in one process."""
    mask = np.full((80, 80), 255, np.uint8)
    mask[20:50, 30:60] = 0
    storage.create("gs://pconv/hole.png", rgb.encode_png(mask))
    rows = "".join(f"photos/{number}.jpg,hole.png\n" for number in range(24))
    storage.create("gs://pconv/pairs.csv", f"image,mask\n{rows}".encode())
    inputs = {
        "inpaint": "--images gs://pconv/photos --masks gs://pconv/hole.png",
        "evaluate": "--pairs gs://pconv/pairs.csv --baseline telea",
    }
    for job, where in inputs.items():
        words = f"python -m pipelines.{job} {where} --hole black --run gs://pconv/run"
        on_ray = f"{words} --engine ray --address auto --output gs://pconv/{job}-ray"
        cloud.run("exec", "--no-config-cache", str(cloud.file), on_ray)
        done = run_on_one_core(*words.split()[2:], "--output", f"gs://pconv/{job}-beam")
        assert done.returncode == 0, done.stderr
        ours, expected = (files_of(f"gs://pconv/{job}-{engine}") for engine in ("ray", "beam"))
        assert ours == expected and len(ours) >= {"inpaint": 24 + 3, "evaluate": 4}[job], ours.keys()


def files_of(output: str) -> dict[str, bytes]:
    """What is in each file of a job's output, without the seconds that each image took; of its books nothing."""
    found = {storage.relative(address, output): storage.read(address) for address in storage.find(output)}
    return {name: re.sub(rb'"seconds": ?[^,}]+', b"", data) for name, data in found.items() if name[0] != "."}


def check_machine(cloud: Cloud, name: str, token: str) -> None:
    """What the launcher did on a machine that is up."""
    (start,) = cloud.machines.docker_calls(name, "run")
    assert "--runtime=nvidia" in start  # so it looked for a GPU when there was one
    assert cloud.machines.docker_calls(name, "pull") == [[cloud.config["docker"]["image"]]]
    mounted = cloud.folder / name / f"tmp/ray_tmp_mount/{cloud.folder.name}/run/pconv/auth_token"
    assert mounted.read_text() == token and stat.S_IMODE(mounted.stat().st_mode) == 0o444
    asked = (cloud.folder / name / "gcloud").read_text()
    assert asked == "auth configure-docker us-central1-docker.pkg.dev --quiet\n"
