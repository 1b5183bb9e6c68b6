"""cluster.yaml by Ray's own validation, rayjob.yaml by Kubernetes' schemas and KubeRay's documented fields."""

from __future__ import annotations

import copy
import importlib.util
import logging
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
VALUES = {
    "PCONV_PROJECT": "some-project",
    "PCONV_REGION": "us-central1",
    "PCONV_ZONE": "us-central1-a",
    "PCONV_SUBNETWORK": "regions/us-central1/subnetworks/pconv",
    "PCONV_REPOSITORY": "us-central1-docker.pkg.dev/some-project/pconv",
    "PCONV_TAG": "1",
    "PCONV_RAY_HEAD_ACCOUNT": "pconv-ray-head@some-project.iam.gserviceaccount.com",
    "PCONV_TRAINER_ACCOUNT": "pconv-trainer@some-project.iam.gserviceaccount.com",
    "PCONV_SSH_PUBLIC_KEY": "ssh-ed25519 AAAA ray",
    "PCONV_VM_IMAGE": "projects/some/global/images/family/other",
    "PCONV_DATA": "gs://some-data",
    "PCONV_RUNS": "gs://some-runs",
}


def exactly(required: str, **fields: object) -> dict:
    """Schema of an object that has no other fields."""
    kinds = {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in fields.items()}
    return {"type": "object", "properties": kinds, "required": required.split(), "additionalProperties": False}


# Fields and kinds of https://ray-project.github.io/kuberay/reference/api/ (v1.5); pods have Kubernetes' own schema.
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
HEAD_GROUP = exactly(
    "template rayStartParams",
    **{"template": "object", "headService": "object", "enableIngress": "boolean", "rayStartParams": TEXTS},
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)
WORKER_GROUP = exactly(
    "groupName template rayStartParams",
    **{"groupName": "string", "template": "object", "rayStartParams": TEXTS, "suspend": "boolean"},
    **{"replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT, "numOfHosts": COUNT},
    **{"idleTimeoutSeconds": COUNT, "scaleStrategy": "object"},
)
RAY_CLUSTER_SPEC = exactly(
    "headGroupSpec",
    authOptions=exactly("", mode={"enum": ["disabled", "token"]}),
    **{"autoscalerOptions": "object", "enableInTreeAutoscaling": "boolean", "gcsFaultToleranceOptions": "object"},
    **{"headServiceAnnotations": TEXTS, "managedBy": "string", "rayVersion": "string", "suspend": "boolean"},
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
RAY_JOB_SPEC = exactly(
    "entrypoint rayClusterSpec",
    **{"activeDeadlineSeconds": COUNT, "backoffLimit": COUNT, "clusterSelector": TEXTS, "deletionStrategy": "object"},
    **{"entrypoint": "string", "entrypointNumCpus": "number", "entrypointNumGpus": "number", "jobId": "string"},
    **{"entrypointResources": "string", "managedBy": "string", "metadata": TEXTS, "runtimeEnvYAML": "string"},
    **{"shutdownAfterJobFinishes": "boolean", "submitterConfig": exactly("", backoffLimit=COUNT), "suspend": "boolean"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    **{"submitterPodTemplate": "object", "ttlSecondsAfterFinished": COUNT},
    rayClusterSpec=RAY_CLUSTER_SPEC,
)
RAY_JOB = exactly(
    "apiVersion kind metadata spec",
    **{"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": "RayJob"}, "metadata": "object", "spec": RAY_JOB_SPEC},
)


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
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/pconv/.ray/auth_token": "~/.ray/auth_token"}
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        account = "pconv-ray-head" if name == "head" else "pconv-trainer"
        assert [a["email"].split("@")[0] for a in node["serviceAccounts"]] == [account]
        assert [set(face) for face in node["networkInterfaces"]] == [{"subnetwork"}]
        assert node["tags"] == {"items": ["pconv-ray"]}


def split_job() -> tuple[list[dict], dict]:
    *core, job = filled("infra/kuberay/rayjob.yaml")
    assert [item["kind"] for item in core] == ["Namespace", "ServiceAccount", "NetworkPolicy"]
    return core, job


def pods_of(job: dict) -> list[dict]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates = [*(group["template"] for group in groups), job["spec"]["submitterPodTemplate"]]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template} for template in templates]


def test_kubernetes_objects_and_pods_fit_their_schemas():
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    core, job = split_job()
    for item in [*core, *pods_of(job)]:
        validate(item, "1.31", strict=True)
    core[2]["spec"]["ingres"] = []
    with pytest.raises(Exception, match="ingres"):
        validate(core[2], "1.31", strict=True)


def test_the_job_has_only_fields_that_kuberay_documents():
    _, job = split_job()
    jsonschema.validate(job, RAY_JOB)


@pytest.mark.parametrize(
    "plant",
    [
        lambda spec: spec.update(shutdownAfterJobFinish=True),
        lambda spec: spec.update(ttlSecondsAfterFinished="600"),
        lambda spec: spec["rayClusterSpec"].update(authOptions={"mode": "tokens"}),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].update(maxReplica=3),
    ],
    ids=["misspelt", "text for a number", "no such mode", "number for a text", "misspelt below"],
)
def test_errors_planted_into_the_job_are_found(plant):
    _, job = split_job()
    plant(job["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAY_JOB)


def test_the_job_ends_and_is_closed():
    core, job = split_job()
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True and 0 < spec["activeDeadlineSeconds"] <= 7 * 86400
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"} and cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    (workers,) = cluster["workerGroupSpecs"]
    assert f"scaling.workers={workers['replicas']} " in spec["entrypoint"]
    for pod in pods_of(job):
        assert pod["spec"]["serviceAccountName"] == "trainer" and pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["image"] == VALUES["PCONV_REPOSITORY"] + "/ray:1"
    limits = pods_of(job)[1]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    policy = core[2]["spec"]
    assert policy["podSelector"] == {} and policy["ingress"][1]["ports"] == [{"protocol": "TCP", "port": 8265}]
