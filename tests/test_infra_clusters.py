"""cluster.yaml by Ray's own validation, pods of RayJobs by Kubernetes' schemas; engines/ has a real API server."""

from __future__ import annotations

import copy
import importlib.util
import logging
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.engines.on_ray import cluster
from trainer.command import SOME_REJECTED
from trainer.config import DataConfig

ROOT = Path(__file__).resolve().parents[1]
VALUES = {
    "PCONV_PROJECT": "some-project",
    "PCONV_REGION": "us-central1",
    "PCONV_ZONE": "us-central1-a",
    "PCONV_SUBNETWORK": "regions/us-central1/subnetworks/pconv",
    "PCONV_REPOSITORY": "us-central1-docker.pkg.dev/some-project/pconv",
    "PCONV_TAG": "1",
    "PCONV_RAY_HEAD_ACCOUNT": "pconv-ray-head@some-project.iam.gserviceaccount.com",
    "PCONV_RAY_WORKER_ACCOUNT": "pconv-ray-worker@some-project.iam.gserviceaccount.com",
    "PCONV_TRAINER_ACCOUNT": "pconv-trainer@some-project.iam.gserviceaccount.com",
    "PCONV_INFERENCE_ACCOUNT": "pconv-inference@some-project.iam.gserviceaccount.com",
    "PCONV_SSH_PUBLIC_KEY": "ssh-ed25519 AAAA ray",
    "PCONV_VM_IMAGE": "projects/some/global/images/family/other",
    "PCONV_DATA": "gs://some-data",
    "PCONV_RUNS": "gs://some-runs",
    "PCONV_BATCH": "gs://some-batch",
}


def filled(name: str, **values: str) -> list[dict]:
    spec = importlib.util.spec_from_file_location("fill", ROOT / "infra/fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(yaml.safe_load_all(module.fill((ROOT / name).read_text("utf-8"), {**VALUES, **values})))


def check(config: dict) -> dict:
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster():
    (config,) = filled("infra/ray/cluster.yaml", PCONV_GPU_WORKERS="0", PCONV_SPOT_WORKERS="7")
    prepared = check(config)
    types = prepared["available_node_types"]
    assert {name: kind["max_workers"] for name, kind in types.items()} == {"head": 0, "gpu": 0, "gpu_spot": 7}
    assert types["gpu_spot"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert types["gpu_spot"]["resources"]["GPU"] == 1
    assert prepared["setup_commands"] == []  # Ray's own default would install a nightly build


@pytest.mark.parametrize(
    "plant",
    [
        lambda config: config.update(max_wrokers=3),
        lambda config: config.update(max_workers="three"),
        lambda config: config["available_node_types"]["gpu"].update(resources={"GPU": 0.5}),
        lambda config: config["available_node_types"]["gpu"].update(spot=True),
        lambda config: config["docker"].update(tag="1"),
        lambda config: config["auth"].pop("ssh_proxy_command"),
    ],
    ids=["misspelt", "text for a number", "half a GPU", "unknown field", "unknown docker field", "no proxy command"],
)
def test_ray_rejects_a_planted_error(plant):
    (config,) = filled("infra/ray/cluster.yaml")
    plant(config)
    with pytest.raises(jsonschema.ValidationError):
        check(config)


def test_the_cluster_is_closed():
    (config,) = filled("infra/ray/cluster.yaml")
    assert config["provider"]["use_internal_ips"] is True and "start-iap-tunnel" in config["auth"]["ssh_proxy_command"]
    starts = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in starts and "0.0.0.0" not in starts
    assert {"--env RAY_AUTH_MODE=token", "--env RAY_AUTH_TOKEN_PATH=/run/pconv/auth_token"} <= set(
        config["docker"]["run_options"]
    )
    assert config["file_mounts"]["/run/pconv/auth_token"] == "~/.ray/auth_token"
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        account = "pconv-ray-head" if name == "head" else "pconv-ray-worker"
        assert [a["email"].split("@")[0] for a in node["serviceAccounts"]] == [account]
        assert [set(face) for face in node["networkInterfaces"]] == [{"subnetwork", "nicType"}]
        assert node["tags"] == {"items": ["pconv-ray"]}
        metadata = {item["key"]: item["value"] for item in node["metadata"]["items"]}
        assert metadata["enable-oslogin"] == "FALSE" and metadata["ssh-keys"] == "ray:ssh-ed25519 AAAA ray"


def test_machines_get_a_disk_and_a_network_that_g2_takes():
    """https://cloud.google.com/compute/docs/accelerator-optimized-machines#g2-disks, and -vms#gvnic."""
    (config,) = filled("infra/ray/cluster.yaml", PCONV_ZONE="us-east1-d")
    for kind in config["available_node_types"].values():
        (disk,) = kind["node_config"]["disks"]
        assert disk["initializeParams"]["diskType"] == "zones/us-east1-d/diskTypes/pd-balanced"
        assert [face["nicType"] for face in kind["node_config"]["networkInterfaces"]] == ["GVNIC"]


def test_a_machine_with_a_gpu_waits_for_its_driver_and_the_others_do_not(tmp_path):
    """Run by bash: the driver answers at the third time, the container runtime at the fourth."""
    (config,) = filled("infra/ray/cluster.yaml")
    types = config["available_node_types"]
    wait = types["gpu"]["initialization_commands"][-1]
    assert types["gpu_spot"]["initialization_commands"][-1] == wait
    assert types["gpu"]["initialization_commands"][:-1] == config["initialization_commands"]
    assert "initialization_commands" not in types["head"]
    answers = {
        "nvidia-smi": '[ "$(wc -l < asked)" -gt 2 ]',
        "docker": 'echo "map[runc:{runc} $([ "$(wc -l < asked)" -gt 3 ] && echo nvidia:{nvidia-container-runtime})]"',
        "sleep": "true",
    }
    for name, answer in answers.items():
        count = "echo >> asked" if name == "nvidia-smi" else "true"
        (tmp_path / name).write_text(f"#!/bin/bash\n{count}\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", wait], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "asked").read_text() == "\n" * 4
    (tmp_path / "nvidia-smi").write_text("#!/bin/bash\nexit 9\n")
    wait = wait.replace("timeout 900", "timeout 0.2")
    done = subprocess.run(["bash", "-c", wait], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "no NVIDIA driver" in done.stderr


JOBS = ("rayjob.yaml", "inpaint.yaml")


def namespace() -> list[dict]:
    return filled("infra/kuberay/namespace.yaml")


def job_of(name: str, **values: str) -> dict:
    (job,) = filled(f"infra/kuberay/{name}", **values)
    return job


def groups_of(job: dict) -> list[dict]:
    """The head, and the kinds of workers."""
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods_of(job: dict) -> list[dict]:
    """Of the groups and of what submits."""
    templates = [*(group["template"] for group in groups_of(job)), job["spec"]["submitterPodTemplate"]]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template} for template in templates]


def test_kubernetes_objects_and_pods_fit_their_schemas():
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    core = namespace()
    for item in [*core, *(pod for name in JOBS for pod in pods_of(job_of(name)))]:
        validate(item, "1.31", strict=True)
    core[-1]["spec"]["ingres"] = []
    with pytest.raises(Exception, match="ingres"):
        validate(core[-1], "1.31", strict=True)


@pytest.mark.parametrize(("name", "account"), [("rayjob.yaml", "trainer"), ("inpaint.yaml", "inference")])
def test_a_job_ends_and_is_closed(name, account):
    job = job_of(name)
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] is True and 0 < spec["activeDeadlineSeconds"] <= 7 * 86400
    assert cluster["authOptions"] == {"mode": "token"} and cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for pod in pods_of(job):
        assert pod["spec"]["serviceAccountName"] == account and pod["spec"]["automountServiceAccountToken"] is False
        # What Pod Security asks for at the level restricted.
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["image"] == VALUES["PCONV_REPOSITORY"] + "/ray:1"


def test_the_namespace_is_closed_and_each_kind_of_job_acts_as_its_own_account():
    space, *accounts, policy = namespace()
    assert space["kind"] == "Namespace"
    assert space["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    acts_as = {one["metadata"]["name"]: list(one["metadata"]["annotations"].values()) for one in accounts}
    assert acts_as == {name: [VALUES[f"PCONV_{name.upper()}_ACCOUNT"]] for name in ("trainer", "inference")}
    assert [one["automountServiceAccountToken"] for one in accounts] == [False, False]
    assert policy["kind"] == "NetworkPolicy" and policy["spec"]["podSelector"] == {}
    assert policy["spec"]["ingress"][1]["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_a_training_has_as_many_workers_as_it_waits_for():
    job = job_of("rayjob.yaml")
    _, workers = groups_of(job)
    assert f"scaling.workers={workers['replicas']} " in job["spec"]["entrypoint"]
    assert pods_of(job)[1]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_processes_are_kept_wherever_a_ray_is_started():
    """In images, by `ray up` and KubeRay; on this machine's hosts; and by a job that starts its own."""
    for path in ("docker/ray.Dockerfile", "infra/local/cluster.py"):
        found = re.search(r"(RAY_idle_\w+)\W{1,4}(\d+)", (ROOT / path).read_text("utf-8"))
        assert {found[1]: int(found[2])} == cluster._KEPT, path


@pytest.mark.parametrize(
    ("values", "most", "gpus"),
    [({}, (8, 0), "0"), ({"PCONV_GPU_WORKERS": "0"}, (8, 0), "0"), ({"PCONV_GPU_WORKERS": "4"}, (8, 4), "1")],
    ids=["by default", "no GPUs", "GPUs"],
)
def test_workers_that_inpaint_are_made_from_none_and_the_job_knows_whether_they_have_gpus(values, most, gpus, tmp_path):
    job = job_of("inpaint.yaml", **values)
    _, *workers = groups_of(job)
    assert [(group["replicas"], group["minReplicas"], group["maxReplicas"]) for group in workers] == [
        (0, 0, number) for number in most
    ]
    asked = [pod["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in pods_of(job)]
    assert asked == [None, None, "1", None]
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    # The second autoscaler's pods are not started again by Kubernetes: KubeRay refuses what says so.
    assert job["spec"]["rayClusterSpec"]["autoscalerOptions"]["version"] == "v2"
    assert {pod["spec"]["restartPolicy"] for pod in pods_of(job)} == {"Never"}
    words, code = run_entrypoint(job, 0, tmp_path)
    assert code == 0 and words[words.index("--gpus-per-actor") + 1] == gpus


def run_entrypoint(job: dict, code: int, folder: Path) -> tuple[list[str], int]:
    """What the program gets of a job's command when a shell runs it, and how that ends if the program does by code."""
    (folder / "python").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@"\nexit {code}\n')
    (folder / "python").chmod(0o755)
    command, environment = ["sh", "-c", job["spec"]["entrypoint"]], {"PATH": f"{folder}:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.splitlines(), done.returncode


@pytest.mark.parametrize(("code", "failed"), [(0, False), (1, True), (2, True), (SOME_REJECTED, False), (143, True)])
def test_rejects_are_no_reason_to_inpaint_again(code, failed, tmp_path):
    """KubeRay makes another cluster for a job that has failed, twice."""
    words, ended = run_entrypoint(job_of("inpaint.yaml"), code, tmp_path)
    assert words[:2] == ["-m", "pipelines.inpaint"] and bool(ended) is failed
    assert words[-2:] == ["--output", "gs://some-batch/out/inpaint"]  # and what is in no word is the shell's


def test_the_autoscaler_alone_has_a_token_of_kubernetes():
    """Its container is added to the head's pod, whose account KubeRay lets change the Ray cluster."""
    job = job_of("inpaint.yaml")
    options = job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    head, *others = pods_of(job)
    assert options["securityContext"] == head["spec"]["containers"][0]["securityContext"]
    (mount,) = options["volumeMounts"]
    assert mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount" and mount["readOnly"] is True
    volumes = {volume["name"]: volume for volume in head["spec"]["volumes"]}
    sources = [next(iter(source.items())) for source in volumes[mount["name"]]["projected"]["sources"]]
    assert sources[0] == ("serviceAccountToken", {"path": "token"})
    assert sources[1][1]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    for pod in (head, *others):
        assert {one["name"] for c in pod["spec"]["containers"] for one in c["volumeMounts"]} == {"shared-memory"}
    assert all([volume["name"] for volume in pod["spec"]["volumes"]] == ["shared-memory"] for pod in others)


# Labels of the operator's pod: KubeRay 1.5.1's Helm chart, its Kustomize base, and pods that are neither.
@pytest.mark.parametrize(
    ("name", "component", "admitted"),
    [
        ("kuberay-operator", "kuberay-operator", True),
        ("kuberay", "kuberay-operator", True),
        ("kuberay", "kuberay-apiserver", False),
        ("prometheus", "server", False),
    ],
)
def test_the_operator_reaches_the_dashboard_however_it_was_installed(name, component, admitted):
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/component": component}
    _, rule = namespace()[-1]["spec"]["ingress"]
    assert all(peer["namespaceSelector"] == {} for peer in rule["from"])
    wanted = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
    assert any(selector.items() <= labels.items() for selector in wanted) is admitted


def test_a_queue_is_named_only_if_one_is_given():
    """An empty label would be refused by Kueue: it takes names of objects alone."""
    label = "kueue.x-k8s.io/queue-name"
    job = job_of("rayjob.yaml")
    assert job["metadata"]["labels"] == {"app": "pconv"}
    job = job_of("rayjob.yaml", PCONV_QUEUE="gpus")
    assert job["metadata"]["labels"] == {"app": "pconv", label: "gpus"}
    assert job["spec"]["shutdownAfterJobFinishes"] is True  # Kueue requires it


@pytest.mark.parametrize("name", JOBS)
def test_pods_have_room_for_what_they_write(name):
    """On disk the shard cache, in memory Ray's object store; a pod that exceeds its share of the disk is evicted."""
    job = job_of(name)
    for group in groups_of(job):
        volumes = group["template"]["spec"]["volumes"]
        (shared,) = [v["emptyDir"]["sizeLimit"] for v in volumes if v["name"] == "shared-memory"]
        assert int(group["rayStartParams"]["object-store-memory"]) < gibibytes(shared) << 30
    for pod in pods_of(job):
        (container,) = pod["spec"]["containers"]
        requested, limit = (container["resources"][kind]["ephemeral-storage"] for kind in ("requests", "limits"))
        assert 1 <= gibibytes(requested) <= gibibytes(limit)
    if name == "rayjob.yaml":
        worker = pods_of(job)[1]["spec"]["containers"][0]["resources"]["requests"]
        assert gibibytes(worker["ephemeral-storage"]) << 30 > 1.5 * DataConfig().cache_gb * 1e9


def gibibytes(size: str) -> int:
    return int(size.removesuffix("Gi"))
