"""The scripts of infra/beam: the commands they print for Dataflow and Flink, and the jobs they run here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.data import manifest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **{name: f"gs://some-{name.lower()}" for name in ("PCONV_DATA", "PCONV_RUNS", "PCONV_BATCH", "PCONV_SCRATCH")},
    **{f"PCONV_{name}_ACCOUNT": f"{name.lower()}@x" for name in ("MASKS", "IMAGENET", "INFERENCE", "EVALUATION")},
    **{"PCONV_PROJECT": "some-project", "PCONV_REGION": "us-central1", "PCONV_SUBNETWORK": "regions/r/subnetworks/s"},
    **{"PCONV_REPOSITORY": "us-central1-docker.pkg.dev/some-project/pconv", "PCONV_TAG": "1"},
}


def dry_run(script: str, *arguments: str, **variables: str) -> str:
    environment = {"PATH": os.environ["PATH"], "PYTHON": "python", **ENVIRONMENT, **variables}
    command = ["bash", script, "--dry-run", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def options_of(line: str) -> dict[str, str]:
    words = shlex.split(line)
    return {a: b for a, b in zip(words, [*words[1:], ""], strict=True) if a.startswith("--")}


@pytest.mark.parametrize(
    ("job", "account"),
    [("build_masks", "masks"), ("build_imagenet", "imagenet"), ("inpaint", "inference"), ("evaluate", "evaluation")],
)
def test_dataflow_runs_each_job_as_its_own_account_in_our_image_without_public_addresses(job, account):
    line = dry_run("infra/beam/dataflow.sh", job, "--a b", "--max_num_workers", "7")
    options = options_of(line)
    assert line.startswith(f"python -m pipelines.{job} --runner DataflowRunner ")
    assert options["--service_account_email"] == f"{account}@x" and "--no_use_public_ips" in options
    assert options["--sdk_container_image"] == ENVIRONMENT["PCONV_REPOSITORY"] + "/beam:1"
    assert line.endswith(r"--a\ b --max_num_workers 7")  # the last of two wins


def test_flink_names_version_and_environment():
    cluster = {"FLINK_MASTER": "flink:8081", "FLINK_VERSION": "2.0", "FLINK_PARALLELISM": "8"}
    options = options_of(dry_run("infra/beam/flink.sh", "build_masks", **cluster, FLINK_ENVIRONMENT="DOCKER"))
    assert options["--flink_master"] == "flink:8081" and options["--flink_version"] == "2.0"
    assert options["--environment_config"] == ENVIRONMENT["PCONV_REPOSITORY"] + "/beam:1"
    options = options_of(dry_run("infra/beam/flink.sh", "build_masks", **cluster, FLINK_ENVIRONMENT="EXTERNAL"))
    assert options["--environment_config"] == "localhost:50000"
    assert options_of(dry_run("infra/beam/flink.sh", "inpaint"))["--environment_type"] == "LOOPBACK"


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("dataflow.sh", ["build_masks"], "PCONV_PROJECT is not set"),
        ("dataflow.sh", ["--gpu", "t4", "inpaint"], "--gpu: expected l4 or a100"),
        ("dataflow.sh", ["--wait", "inpaint"], "unknown option --wait"),
        ("dataflow.sh", ["train"], "JOB: expected build_masks"),
        ("flink.sh", [], "JOB: expected build_masks"),
        ("local.sh", ["--processes", "many", "inpaint"], "--processes: expected a number"),
        ("local.sh", ["--fast", "inpaint"], "unknown option --fast"),
    ],
)
def test_wrong_use_of_a_script_is_one_line_and_2(script, arguments, expected):
    command = ["bash", ROOT / "infra/beam" / script, *arguments]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "expected"),
    [
        ("dataflow.sh", ["--gpu", "l4", "build_masks"], {}, "--gpu: expected inpaint or evaluate"),
        ("flink.sh", ["inpaint"], {"FLINK_MASTER": "f:1"}, "FLINK_PARALLELISM: expected how many slots of f:1"),
        ("flink.sh", ["inpaint"], {"FLINK_PARALLELISM": "all"}, "FLINK_PARALLELISM: expected a number"),
        ("flink.sh", ["inpaint"], {"FLINK_ENVIRONMENT": "POD"}, "FLINK_ENVIRONMENT: expected LOOPBACK, DOCKER or"),
    ],
)
def test_what_cannot_go_together_is_one_line_and_2(script, arguments, variables, expected):
    environment = {"PATH": os.environ["PATH"], **ENVIRONMENT, **variables}
    command = ["bash", ROOT / "infra/beam" / script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1


def local(*arguments: object) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", ROOT / "infra/beam/local.sh", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def make_run(folder: str) -> str:
    """A run with one checkpoint of a new, small network."""
    from trainer import checkpoints, presets, storage
    from trainer.config import PhaseConfig, TrainConfig, UNetConfig
    from trainer.model.unet import build_unet

    unet = UNetConfig(image_size=32, filters=(4, 6, 8), kernels=(5, 3, 3))
    arrays = {"model": checkpoints.read_variables(build_unet(unet).variables), "optimizer": {}}
    checkpoints.save_checkpoint(folder, arrays, {"step": 1, "phase": "initial", "examples": 6}, keep=1)
    storage.create(f"{folder}/config.json", presets.to_json(TrainConfig(unet=unet, initial=PhaseConfig(steps=1))))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        pytest.param([], marks=pytest.mark.soak, id="one process"),
        pytest.param(["--processes", "2"], marks=pytest.mark.soak, id="two processes"),
        pytest.param(["--portable"], id="portable"),
    ],
)
def test_the_local_script_runs_the_jobs(how, tmp_path):
    for name, pixels in (("in", np.full((32, 32, 3), 90, np.uint8)), ("holes", np.full((32, 32), 255, np.uint8))):
        (tmp_path / name).mkdir()
        pixels[4:9, 4:9] = 0  # under the hole, and the hole
        cv2.imwrite(str(tmp_path / name / "a.png"), pixels)
    inputs = ("--images", tmp_path / "in", "--masks", tmp_path / "holes", "--hole", "black")
    jobs = [
        ("build_masks", "--output", tmp_path / "masks", "--count", "6", "--size", "32"),
        ("build_imagenet", "--input", ROOT / "pipelines/photos", "--output", tmp_path / "images", "--limit", "2"),
        ("inpaint", *inputs, "--run", make_run(str(tmp_path / "run")), "--output", tmp_path / "out"),
    ]
    with ThreadPoolExecutor(2) as pool:  # to load their libraries takes most of their time
        list(pool.map(lambda job: local(*how, *job), jobs))
    assert manifest.load_manifest(str(tmp_path / "masks"), "mask").counts["records"] == 6
    assert manifest.load_manifest(str(tmp_path / "images"), "image").counts["records"] == 4
    before, after = (cv2.imread(str(tmp_path / name / "a.png")) for name in ("in", "out"))
    assert (after[9:] == before[9:]).all() and (after[4:9, 4:9] != 0).any()
