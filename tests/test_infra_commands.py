"""Every command that a README prints is understood by the program it names."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from pipelines import cli, launch
from pipelines.engines.on_ray import cluster as ray_cluster
from trainer import presets
from trainer.command import ArgumentParser
from trainer.errors import UserError
from trainer.training import ray_session

ROOT = Path(__file__).resolve().parents[1]
READMES = sorted(
    str(path.relative_to(ROOT))
    for top in ("", "masks/", "trainer/", "pipelines/", "infra/", "infra/*/", "docker/", "tests/")
    for path in ROOT.glob(f"{top}*.md")
    if path.name != "LICENSES.md"
)
ENVIRONMENT = {
    **{name: f"gs://some-{name.lower()}" for name in ("PCONV_DATA", "PCONV_RUNS", "PCONV_BATCH", "PCONV_SCRATCH")},
    **{f"PCONV_{name}_ACCOUNT": f"{name.lower()}@x" for name in ("MASKS", "IMAGENET", "INFERENCE", "EVALUATION")},
    **{"PCONV_PROJECT": "some-project", "PCONV_REGION": "us-central1", "PCONV_SUBNETWORK": "regions/r/subnetworks/s"},
    **{"PCONV_REPOSITORY": "us-central1-docker.pkg.dev/some-project/pconv", "PCONV_TAG": "1"},
}
# Programs that need not be here: subcommands, with the options that the pages use. Compared with gcloud 528,
# terraform 1.11, kubectl 1.32 and docker 28.2; compose, and gcloud's compute, container, iam and projects, by their
# documentation alone.
ELSEWHERE = {
    "gcloud compute project-info describe": {"--project", "--flatten", "--format"},
    "gcloud compute regions describe": {"--project", "--flatten", "--format"},
    "gcloud compute images list": {"--project"},
    "gcloud compute images create": {"--family", "--source-disk", "--source-disk-zone", "--guest-os-features"},
    "gcloud compute images delete": {"--project", "--quiet"},
    "gcloud compute instances create": {
        *("--zone", "--machine-type", "--maintenance-policy", "--boot-disk-size", "--boot-disk-type"),
        *("--image-project", "--image-family", "--metadata", "--scopes"),
    },
    "gcloud compute instances stop": {"--zone"},
    "gcloud compute instances delete": {"--zone", "--quiet"},
    "gcloud compute ssh": {"--zone", "--command"},
    "gcloud container clusters get-credentials": {"--location", "--dns-endpoint"},
    "gcloud iam service-accounts add-iam-policy-binding": {"--role", "--member"},
    "gcloud projects remove-iam-policy-binding": {"--all", "--role", "--member"},
    "gcloud auth application-default login": set(),
    "gcloud auth configure-docker": {"--quiet"},
    "gcloud dataflow jobs list": {"--region", "--status"},
    "gcloud storage buckets create": {"--location", "--uniform-bucket-level-access", "--public-access-prevention"},
    "gcloud storage cp": {"--recursive"},
    "gcloud storage rm": {"--recursive"},
    "kubectl apply": {"--filename", "--server-side", "--kustomize"},
    "kubectl delete": {"--filename"},
    "kubectl get": {"--namespace", "--watch"},
    "kubectl port-forward": {"--namespace"},
    "terraform init": {"-chdir", "-backend-config"},
    "terraform apply": {"-chdir", "-var"},
    "terraform destroy": {"-chdir", "-var"},
    "terraform output": {"-chdir", "-raw"},
    "terraform fmt": set(),
    "terraform validate": set(),
    "docker build": {"--build-arg", "--file", "--tag"},
    "kind load docker-image": set(),
    "infra/kuberay/local/train.sh": {"--operator", "--print"},
    "docker run": {"--rm", "--network", "--user", "--entrypoint"},
    "trivy image": {"--format", "--scanners", "--output"},
    "docker compose up": {"--file", "--detach"},
    "docker compose exec": {"--file"},
    "docker compose down": {"--file"},
    "ssh-keygen": {"-t", "-N", "-C", "-f"},
    "git clone": set(),
    "curl": {"--data-binary"},
}
PROGRAMS = r"(?:pconv|python|make|ray|docker|kind|trivy|gcloud|kubectl|terraform|git|pip|infra/[\w/]+\.sh)"


class Parsed(Exception):
    """Raised where a command of ours would begin to work."""


def commands_of(text: str) -> list[str]:
    """Commands in fenced sh blocks, in indented lines and in the text; continued lines are joined."""
    text = re.sub(r"\\\n\s*", " ", text)
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    blocks = fence.findall(text)
    assert {language for language, _ in blocks} <= {"sh", "python"}, "a block that nobody checks"
    found = [line for language, block in blocks if language == "sh" for line in block.splitlines()]
    text = fence.sub("", text)
    found += re.findall(rf"^ {{4}}({PROGRAMS} .*)$", text, re.MULTILINE)
    found += re.findall(rf"`({PROGRAMS} [^`]*)`", text)
    return [line for line in (line.strip() for line in found) if line and not line.startswith("#")]


def entrypoint(name: str) -> str:
    """The command of a RayJob of infra/kuberay, its variables filled in; inpaint.yaml's without the shell around it."""
    text = load("infra/fill.py").fill((ROOT / "infra/kuberay" / name).read_text("utf-8"), ENVIRONMENT)
    line = yaml.safe_load(text)["spec"]["entrypoint"]
    found = re.fullmatch(r"sh -c '(.*) \|\| .*'", line)
    return re.sub(r"\$\(\(.*?\)\)", "0", found[1]) if found else line


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ALL = [(page, line) for page in READMES for line in commands_of((ROOT / page).read_text("utf-8"))]
ALL += [(f"infra/kuberay/{name}", entrypoint(name)) for name in ("rayjob.yaml", "inpaint.yaml")]


def check_ours(module: str, argv: list[str], monkeypatch) -> None:
    """Lets a command parse its options and stops it there."""
    real_parse, real_split = ArgumentParser.parse_args, launch.parse_options

    def parse_args(self, *args, **kwargs):
        arguments = real_parse(self, *args, **kwargs)
        if module == "trainer.train":
            config = presets.override(presets.PRESETS[arguments.preset], arguments.set)
            ray_session.check_place(arguments.address, config.scaling, arguments.trusted_network)
        raise Parsed

    def parse_options(*args):
        real_split(*args)
        raise Parsed

    def check_cluster(address):
        assert address == "auto"
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(ray_cluster, "check_cluster", check_cluster)
    monkeypatch.setattr(launch, "parse_options", parse_options)
    # Dataflow's would ask Google for the buckets.
    monkeypatch.setattr(launch.beam, "Pipeline", lambda options: None)
    with pytest.raises(Parsed):
        importlib.import_module(module).main(argv)
    monkeypatch.undo()


def check_pconv(name: str, *options: str, monkeypatch) -> None:
    if name == "completion":
        assert set(options) <= set(cli.SHELLS)
    elif options:
        check_ours(cli.COMMANDS[name].module, list(options), monkeypatch)
    else:  # the text speaks of it
        assert name in cli.COMMANDS


def check_server(rest: list[str]) -> None:
    server = load("tests/storage_server.py")._binary()
    usage = subprocess.run([server, "-help"], capture_output=True, text=True)
    flags = re.findall(r"^  (-[\w.-]+)", usage.stdout + usage.stderr, re.MULTILINE)
    assert len(flags) > 10 and {word for word in rest if word.startswith("-")} <= set(flags), rest


def check_elsewhere(words: list[str]) -> None:
    bare = [word for word in words if not word.startswith("-")]
    known = [name for name in ELSEWHERE if bare[: len(name.split())] == name.split()]
    if words[:2] == ["docker", "compose"]:  # options come before the subcommand
        known = [name for name in ELSEWHERE if name.startswith("docker compose") and name.split()[2] in bare]
    assert known, f"unknown command {shlex.join(words)}"
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert used <= ELSEWHERE[known[0]], f"{known[0]}: unknown option {used - ELSEWHERE[known[0]]}"


def check(line: str, monkeypatch) -> None:
    if nested := re.fullmatch(r'eval "\$\((.*)\)"', line):
        return check(nested[1], monkeypatch)
    words = shlex.split(line.removesuffix(" &"), comments=True)
    if words[0] == "export":
        assert all(re.match(r"(PCONV_[A-Z_]+|STORAGE_EMULATOR_HOST)=", word) for word in words[1:])
        return
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if ">" in words:
        del words[words.index(">") :]
    program, rest = words[0], words[1:]
    if program == "pconv":
        check_pconv(*rest, monkeypatch=monkeypatch)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert rest and {word for word in rest if "=" not in word} <= set(targets), line
        given = {word.partition("=")[0] for word in rest if "=" in word}
        assert given <= {"PYTHON", "VENV", "REPOSITORY", "TAG", "PUSH", "GPU"}, line
    elif program == "pip":
        (package,) = rest[1:]
        extras = re.fullmatch(r"pconv\[([\w,]+)\]", package)
        where = "pyproject.toml" if extras else "constraints.txt"
        forms = [f"\n{extra} = [" for extra in extras[1].split(",")] if extras else [f"\n{package}=="]
        text = (ROOT / where).read_text("utf-8")
        assert rest[0] == "install" and all(form in text for form in forms), line
    elif program == "python" and rest[0] == "-m" and len(rest) == 2:  # the text speaks of it
        assert callable(importlib.import_module(rest[1]).main)
    elif program == "python" and rest[0] == "-m":
        check_ours(rest[1], rest[2:], monkeypatch)
    elif program == "python":
        assert (ROOT / rest[0]).is_file()
        if rest[0] == "infra/local/cluster.py":
            monkeypatch.syspath_prepend(ROOT / "infra/local")
            _, command = load(rest[0]).parse(rest[1:])
            if command:
                check(shlex.join(command), monkeypatch)
        elif rest[0] == "infra/fill.py":
            assert len(rest) == 2 and (ROOT / rest[1]).is_file()
        else:
            done = subprocess.run([sys.executable, *rest], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    elif program.startswith("infra/beam/"):
        check(dry_run(program, *[word for word in rest if word != "--dry-run"]), monkeypatch)
    elif program == "SERVER":
        check_server(rest)
    elif program == "ray":
        after = rest.index("--") if "--" in rest else len(rest)
        check_ray(rest[:after])
        if rest[after + 1 :]:
            check(shlex.join(rest[after + 1 :]), monkeypatch)
    elif words[:2] == ["docker", "compose"] and "exec" in words:
        inner = words.index("exec") + 2
        check_elsewhere(words[:inner])
        assert "exec head" in line
        check(shlex.join(words[inner:]), monkeypatch)
    elif program == "docker" and "pconv/" in line:
        check_elsewhere(words[: next(i for i, word in enumerate(words) if word.startswith("pconv/")) + 1])
    else:
        check_elsewhere(words)


def check_ray(arguments: list[str]) -> None:
    """By Ray's own command-line parser."""
    from ray.scripts.scripts import cli

    command, rest = cli, arguments
    while hasattr(command, "commands"):
        name, *rest = rest
        assert name in command.commands, f"ray has no command {name}"
        command = command.commands[name]
    if len(arguments) == 1 and not rest:  # the text speaks of it
        return
    needs_entrypoint = any(p.name == "entrypoint" for p in command.params)
    command.make_context(arguments[0], rest + (["true"] if needs_entrypoint else []))


def dry_run(script: str, *arguments: str) -> str:
    """The command that a submit script prints, its variables filled in."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": "python", **ENVIRONMENT}
    words = [re.sub(r"\$(\w+)", lambda match: ENVIRONMENT[match[1]], word) for word in arguments]
    command = ["bash", script, "--dry-run", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page}-{i}" for i, (page, _) in enumerate(ALL)])
def test_every_printed_command_parses(page, line, monkeypatch):
    with contextlib.redirect_stderr(io.StringIO()):
        check(line, monkeypatch)


def test_the_pages_print_many_commands():
    counts = {page: sum(1 for p, _ in ALL if p == page) for page in READMES}
    assert counts["README.md"] >= 7 and counts["infra/README.md"] >= 30 and counts["docker/README.md"] >= 8


@pytest.mark.parametrize(
    "line",
    [
        "python -m pipelines.build_masks --output gs://B/masks --cuont 5",
        "python -m pipelines.build_masks --output gs://B/masks --count 5 --max_num_wrokers 5",
        "python -m trainer.train --preset paper --images a --masks b",
        "infra/beam/dataflow.sh inpaint --images a --masks b --hole black --run c",
        "ray up --yess cluster.yaml",
        "ray job submit --adress x -- python -m trainer.train",
        "gcloud storage cp --recurse a b",
        "make imagse",
        "python infra/costs.py --price-cpu 3",
        "podman run x",
    ],
)
def test_a_stale_command_is_found(line, monkeypatch):
    with pytest.raises((AssertionError, UserError, click.UsageError)):
        check(line, monkeypatch)
