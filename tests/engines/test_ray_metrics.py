"""Two hosts train and inpaint on a Ray cluster; what Prometheus would get is fetched from Ray's endpoint on each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from networks import small_config, write_run
from picture_files import block, noise, save, save_mask
from pipelines.engines.on_ray import progress
from samples import write_noise
from trainer.training.progress.metrics import METRICS, PREFIX

ENGINE = "Ray's metrics"
ROOT = Path(__file__).resolve().parents[2]
# More steps than there is time for: it trains until all was seen.
SMALL = ["unet.image_size=32", "unet.filters=4,8,8", "unet.kernels=5,3,3", "precision=float32", "global_batch_size=4"]
SMALL += ["initial.steps=1000000", "finetune.steps=0", "log_every=5", "checkpoint.every=20", "scaling.workers=2"]
SMALL += ["validation.split=train", "validation.every=20", "validation.examples=6"]
OF_ALL_WORKERS = {"step_seconds", "own_seconds", "data_wait_ratio"}
LABELS = ("run", "worker", "term", "metric", "output")
ENDPOINTS = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps([f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics" for n in ray.nodes()]))
"""


def call(*command) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def cluster(monkeypatch):
    """Address of a Ray cluster of two hosts besides the head, and the command that runs another on the head."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    with tempfile.TemporaryDirectory(prefix="pconv-met-") as scratch, contextlib.ExitStack() as stack:
        script = [ROOT / "infra/local/cluster.py"]
        folder = ["--folder", f"{scratch}/c"]
        told = call(*script, "start", "--nodes", 2, *folder)
        stack.callback(call, *script, "stop", *folder)
        yield re.search(r"--address (\S+)", told)[1], [*script, "run", *folder, "--"]


def scrape(urls: list[str], prefix: str = PREFIX) -> dict[str, dict[str, float]]:
    """Values by labels (``run|worker|term`` or ``output``) of each metric of ours, from all endpoints."""
    opener, found = urllib.request.build_opener(urllib.request.ProxyHandler({})), {}
    for url in urls:
        with contextlib.suppress(OSError):
            for line in opener.open(url, timeout=60).read().decode().splitlines():
                if match := re.fullmatch(rf"ray_{prefix}(\w+){{(.*)}} (\S+)", line):
                    labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
                    key = "|".join(
                        labels[name] for name in ("run", "worker", "term", "metric", "output") if labels.get(name)
                    )
                    found.setdefault(match[1], {})[key] = float(match[3])
    return found


def test_every_metric_of_two_workers_is_at_rays_endpoints(cluster, tmp_path, figure):
    address, run_on_head = cluster
    write_noise(tmp_path, 32, num_images=9, num_masks=7)
    run, command = f"{tmp_path}/run", [sys.executable, "-m", "trainer.train", "--preset", "demo"]
    command += ["--images", f"{tmp_path}/images", "--masks", f"{tmp_path}/masks", "--run", run, "--trusted-network"]
    command += ["--address", address, *(part for setting in SMALL for part in ("--set", setting))]
    urls = json.loads(call(*run_on_head, sys.executable, "-c", ENDPOINTS, address))
    assert len(urls) == 3
    output = tmp_path / "output"
    with open(output, "wb") as log:
        training = subprocess.Popen([sys.executable, *map(str, run_on_head), *command], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 900
        while True:
            found = scrape(urls)
            workers = {name: {key.split("|")[1] for key in found.get(name, {})} for name in OF_ALL_WORKERS}
            if found.keys() == METRICS.keys() and all(each == {"0", "1"} for each in workers.values()):
                break
            assert training.poll() is None and time.monotonic() < deadline, (sorted(found), output.read_text()[-3000:])
            time.sleep(1)
    finally:
        training.terminate()
        training.wait(120)
    assert {key for name in found for key in found[name] if not key.startswith(f"{run}|")} == set()
    of_first = {name: values for name, values in found.items() if name not in OF_ALL_WORKERS}
    assert {key.split("|")[1] for values in of_first.values() for key in values} == {"0"}
    assert {f"{run}|0|total", f"{run}|0|hole"} <= found["loss"].keys() and f"{run}|0|psnr" in found["validation"]
    value = {name: values[f"{run}|0"] for name, values in of_first.items() if name not in ("loss", "validation")}
    assert value["total_steps"] == 1_000_000 and value["step"] % 5 == 0 and value["checkpoint_step"] % 20 == 0
    assert 0 <= time.time() - value["saved_time_seconds"] < 3600 and value["checkpoint_seconds"] > 0
    for worker in ("0", "1"):
        seconds = {name: found[name][f"{run}|{worker}"] for name in OF_ALL_WORKERS}
        assert 0 < seconds["own_seconds"] < 1.5 * seconds["step_seconds"] and 0 <= seconds["data_wait_ratio"] <= 1
    figure(f"{sum(map(len, found.values()))} series of {len(found)} metrics at {len(urls)} endpoints")
    lines = "".join(path.read_text() for path in Path(run, "logs").glob("*/driver.log"))
    assert "step 5/1000000" in lines  # beside what the workers printed


def test_the_numbers_of_a_job_are_at_rays_endpoints(cluster, tmp_path, figure):
    address, run_on_head = cluster
    write_run(f"{tmp_path}/run", small_config(32))
    save(f"{tmp_path}/in/0.png", noise(30, 40, 3))
    save_mask(f"{tmp_path}/holes/0.png", block(30, 40))
    images = 5000  # more than there is time for: it goes on until all was seen
    for number in range(1, images):
        for kind in ("in", "holes"):
            os.link(f"{tmp_path}/{kind}/0.png", f"{tmp_path}/{kind}/{number}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    os.link(f"{tmp_path}/holes/0.png", f"{tmp_path}/holes/bad.png")
    command = [sys.executable, "-m", "pipelines.inpaint", "--engine", "ray", "--address", address, "--hole", "black"]
    for name in ("images", "masks", "run", "output"):
        command += [f"--{name}", f"{tmp_path}/{dict(images='in', masks='holes', output='out').get(name, name)}"]
    urls = json.loads(call(*run_on_head, sys.executable, "-c", ENDPOINTS, address))
    said = tmp_path / "said"
    with open(said, "wb") as log:
        job = subprocess.Popen([sys.executable, *map(str, run_on_head), *command], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 600
        while True:
            found = scrape(urls, progress.PREFIX)
            if found.keys() == progress.METRICS.keys() and all(each.get("done", 0) for each in turned(found).values()):
                break
            assert job.poll() is None and time.monotonic() < deadline, (found, said.read_text()[-3000:])
            time.sleep(1)
    finally:
        job.terminate()
        job.wait(120)
    values = turned(found)
    assert values.keys() == {f"{tmp_path}/out"}
    (value,) = values.values()
    assert value["total"] == images + 1 and 0 < value["done"] <= images + 1 and value["per_second"] > 0
    assert value["rejects"] in (0, 1) and value["lost"] == 0
    figure(f"{len(found)} metrics of a job")


def turned(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Values by metric, of each output."""
    outputs = {output for values in found.values() for output in values}
    return {output: {name: values[output] for name, values in found.items() if output in values} for output in outputs}
