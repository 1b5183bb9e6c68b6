"""What a shell makes of the commands on the pages: bash runs each page from top to bottom with programs that record."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "infra/README.md", "infra/local/README.md", "docker/README.md"]
PROGRAMS = "docker gcloud git kubectl make pip python ray SERVER ssh-keygen terraform trivy".split()
# What a person has set, and what Terraform prints.
MINE = {"PROJECT": "some-project", "STATE": "some-state"}
TERRAFORM = {
    **{f"PCONV_{name}": f"gs://some-{name.lower()}" for name in ("DATA", "RUNS", "BATCH", "SCRATCH")},
    **{f"PCONV_{name}_ACCOUNT": f"{name.lower()}@x" for name in ("MASKS", "IMAGENET", "INFERENCE", "EVALUATION")},
    **{"PCONV_PROJECT": "some-project", "PCONV_REGION": "us-central1", "PCONV_SUBNETWORK": "regions/r/subnetworks/s"},
    **{"PCONV_REPOSITORY": "us-central1-docker.pkg.dev/some-project/pconv", "PCONV_TAG": "1", "PCONV_ZONE": "z"},
}
RECORDER = f"""#!{sys.executable} -IS
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=file)
if sys.argv[-1] == "environment":
    print(os.environ["TERRAFORM"])
"""


@pytest.fixture
def shell(tmp_path):
    """Runs a text in bash, in a folder like the project's, and returns what the programs in it were given."""
    for name in ("infra", "docker", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs, home = tmp_path / "programs", tmp_path / "home"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/pconv-ray.pub").write_text("ssh-ed25519 AAAA ray\n")
    record = tmp_path / "record"

    def run(text: str, **variables: str) -> list[list[str]]:
        record.write_text("")
        printed = "\n".join(f"export {name}='{value}'" for name, value in TERRAFORM.items())
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(home), "PYTHON": "python", "TERRAFORM": printed}
        environment |= {"RECORD": str(record), "PCONV_COMMIT": "c", **MINE, **variables}
        script = f"set -euo pipefail\n{text}\nwait\n"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert (done.returncode, done.stderr) == (0, ""), text
        return [json.loads(line) for line in record.read_text().splitlines()]

    return run


def blocks_of(page: str) -> str:
    """The commands of a page, in blocks and in indented lines."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / page).read_text("utf-8"))
    fenced = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(rf"^ {{4}}((?:{'|'.join(PROGRAMS)}|infra/\S+\.sh) .*\n)", text, re.MULTILINE)
    return "".join([*fenced, *indented])


def meant(line: str, values: dict[str, str]) -> list[str]:
    """The words of a command as its author meant them: no character but quotes, ``$NAME``, a closing ``&`` and a
    ``>`` between spaces is special."""
    if nested := re.fullmatch(r'eval "\$\((.*)\)"', line):
        line = nested[1]
    words = [re.sub(r"\$(\w+)", lambda name: values[name[1]], word) for word in shlex.split(line, comments=True)]
    if words[0] == "export":
        values.update(word.split("=", 1) for word in words[1:] if "$(" not in word)
        return []
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    words = words[: words.index(">")] if ">" in words else words
    words = [os.path.expanduser(word) if word.startswith("~/") else word for word in words]
    return words[:-1] if words[-1] == "&" else words


@pytest.mark.parametrize("page", PAGES)
def test_what_arrives_is_what_was_meant(page, shell, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text, values = blocks_of(page), {**MINE, **TERRAFORM}
    expected = [words for line in text.splitlines() if line.strip() and (words := meant(line, values))]
    printed = [words for words in expected if "--dry-run" in words]
    expected = [words for words in expected if words not in printed]
    arrived = shell(text)
    assert len(expected) > 1 and len(arrived) == len(expected)
    for words in expected:
        if not words[0].startswith("infra/beam/"):
            assert words in arrived
            continue
        job = next(
            i for i, word in enumerate(words) if word in ("build_masks", "build_imagenet", "inpaint", "evaluate")
        )
        command = ["python", "-m", f"pipelines.{words[job]}"]
        assert [
            call
            for call in arrived
            if call[:3] == command and call[len(call) - len(words) + job + 1 :] == words[job + 1 :]
        ]


FRAGMENTS = [
    (page, text)
    for page in PAGES
    for text in re.findall(r"`(--[^`]*)`", (ROOT / page).read_text("utf-8").replace("\n", " "))
    if not re.search(r"\w\|\w", text)  # best|latest: one of these
]


def test_options_that_a_page_speaks_of_can_be_pasted(shell):
    """None holds a character that a shell takes for the end of the command."""
    assert len(FRAGMENTS) > 10
    arrived = shell("\n".join(f"python {text}" for _, text in FRAGMENTS))
    assert arrived == [["python", *shlex.split(text)] for _, text in FRAGMENTS]


def options_of(words: list[str]) -> dict[str, str]:
    return {a: b for a, b in zip(words, [*words[1:], ""], strict=True) if a.startswith("--")}


@pytest.mark.parametrize(
    ("gpu", "machine", "kind"), [("l4", "g2-standard-8", "nvidia-l4"), ("a100", "a2-highgpu-1g", "nvidia-tesla-a100")]
)
def test_a_gpu_is_asked_for_with_its_driver(gpu, machine, kind, shell):
    (words,) = shell(f"infra/beam/dataflow.sh --gpu {gpu} inpaint --images a", **TERRAFORM)
    options = options_of(words)
    # https://cloud.google.com/dataflow/docs/gpu/use-l4-gpus
    assert options["--dataflow_service_options"] == f"worker_accelerator=type:{kind};count:1;install-nvidia-driver"
    assert options["--worker_machine_type"] == machine and int(options["--disk_size_gb"]) >= 50
    assert options["--sdk_container_image"].endswith("/beam-gpu:1") and options["--device"] == "gpu"
    assert words[-2:] == ["--images", "a"]


@pytest.mark.parametrize(
    ("job", "threads"), [("build_masks", 2), ("build_imagenet", 1), ("inpaint", 4), ("evaluate", 2)]
)
def test_a_job_has_the_threads_that_its_machines_memory_holds(job, threads, shell):
    """A vCPU has 4 GB; a shard of 200 MB, its copy and its upload's buffer make 0.5 GB, and a dozen of them 6 GB."""
    (words,) = shell(f"infra/beam/dataflow.sh {job}", **TERRAFORM)
    options = options_of(words)
    assert options["--number_of_worker_harness_threads"] == str(threads) and options["--disk_size_gb"] == "50"
    assert {f"job={job.replace('_', '-')}", "app=pconv"} == {
        words[i + 1] for i, w in enumerate(words) if w == "--labels"
    }


@pytest.mark.parametrize("script", ["dataflow", "flink"])
def test_nothing_is_staged_that_workers_would_have_to_store(script, shell):
    (words,) = shell(f"infra/beam/{script}.sh inpaint", **TERRAFORM)
    assert "--no_save_main_session" in words
    assert "disable_logging_submission_environment" in [
        words[i + 1] for i, w in enumerate(words) if w == "--experiments"
    ]


def test_flink_uses_the_slots_of_its_cluster(shell):
    cluster = {"FLINK_MASTER": "flink:8081", "FLINK_ENVIRONMENT": "EXTERNAL", "FLINK_PARALLELISM": "16"}
    (words,) = shell("infra/beam/flink.sh build_masks", **TERRAFORM, **cluster)
    assert options_of(words)["--parallelism"] == "16" and options_of(words)["--sdk_worker_parallelism"] == "0"
    assert not any("add-opens" in word for word in words)
    (words,) = shell("infra/beam/flink.sh build_masks", **TERRAFORM)
    assert "--job_server_jvm_properties=--add-opens=java.base/java.util=ALL-UNNAMED" in words
