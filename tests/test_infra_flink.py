"""The Flink cluster of infra/flink: Kubernetes' schemas, the fields that the operator documents, and what it admits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
VALUES = {"PCONV_REPOSITORY": "registry/pconv", "PCONV_TAG": "1", "PCONV_FLINK_ACCOUNT": "masks@x"}


def exactly(required: str, **fields: object) -> dict:
    """Schema of an object that has no other fields."""
    kinds = {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in fields.items()}
    return {"type": "object", "properties": kinds, "required": required.split(), "additionalProperties": False}


# Fields and kinds of the operator's resource definition (nightlies.apache.org/flink, custom resource reference, 1.10);
# pods have Kubernetes' own schema.
RESOURCE = exactly("", cpu="number", memory="string", ephemeralStorage="string")
COUNT = {"type": "integer", "minimum": 1}
SPEC = exactly(
    "image flinkVersion jobManager taskManager serviceAccount",
    **{"job": "object", "restartNonce": "integer", "image": "string", "imagePullPolicy": "string"},
    **{"serviceAccount": "string", "ingress": "object", "podTemplate": "object", "logConfiguration": "object"},
    mode={"enum": ["native", "standalone"]},
    flinkVersion={"enum": ["v1_19", "v1_20", "v2_0", "v2_1", "v2_2"]},
    flinkConfiguration={"type": "object", "additionalProperties": {"type": "string"}},
    jobManager=exactly("resource", resource=RESOURCE, replicas=COUNT, podTemplate="object"),
    taskManager=exactly("resource", resource=RESOURCE, replicas=COUNT, podTemplate="object"),
)


def objects(**values: str) -> list[dict]:
    spec = importlib.util.spec_from_file_location("fill", ROOT / "infra/fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.fill((ROOT / "infra/flink/session.yaml").read_text("utf-8"), {**VALUES, **values})
    return list(yaml.safe_load_all(text))


def pods_of(cluster: dict) -> list[dict]:
    spec = cluster["spec"]
    templates = [spec["podTemplate"], spec["taskManager"]["podTemplate"]]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template} for template in templates]


def test_objects_and_pods_fit_their_schemas():
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    *core, cluster = objects()
    assert [item["kind"] for item in core] == ["Namespace", "ServiceAccount", "NetworkPolicy"]
    for item in [*core, *pods_of(cluster)]:
        validate(item, "1.31", strict=True)
    jsonschema.validate(cluster["spec"], SPEC)
    assert (cluster["apiVersion"], cluster["kind"]) == ("flink.apache.org/v1beta1", "FlinkDeployment")


@pytest.mark.parametrize(
    "plant",
    [
        lambda spec: spec["taskManager"].update(replica=3),
        lambda spec: spec.update(flinkVersion="1.20"),
        lambda spec: spec["flinkConfiguration"].update({"parallelism.default": 4}),
        lambda spec: spec["jobManager"]["resource"].update(cpu="1"),
    ],
    ids=["misspelt", "no such version", "number for a text", "text for a number"],
)
def test_errors_planted_into_the_cluster_are_found(plant):
    spec = objects()[-1]["spec"]
    plant(spec)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spec, SPEC)


def test_beams_workers_stand_beside_every_task_manager_and_nowhere_else():
    spec = objects(PCONV_FLINK_SLOTS="3", PCONV_FLINK_WORKERS="5")[-1]["spec"]
    assert spec["taskManager"]["replicas"] == 5 and spec["flinkConfiguration"]["taskmanager.numberOfTaskSlots"] == "3"
    base, beside = ({c["name"]: c for c in pod["spec"]["containers"]} for pod in pods_of({"spec": spec}))
    assert set(base) == {"flink-main-container"} and set(beside) == {"flink-main-container", "beam-workers"}
    workers = beside["beam-workers"]
    assert workers["image"] == "registry/pconv/beam:1" and workers["args"] == ["--worker_pool"]
    assert workers["resources"]["requests"]["cpu"] == "3" and "command" not in workers  # the image's own, Beam's boot
    # flink.sh sends the task managers to the port where Beam's pool listens.
    assert workers["readinessProbe"]["tcpSocket"]["port"] == 50000
    assert "--environment_config localhost:50000" in (ROOT / "infra/beam/flink.sh").read_text("utf-8")


def test_the_cluster_is_closed():
    *_, account, policy, cluster = objects()
    assert account["metadata"]["annotations"] == {"iam.gke.io/gcp-service-account": "masks@x"}
    own, operator = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {}}]} and policy["spec"]["podSelector"] == {}
    (peer,) = operator["from"]
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "flink-kubernetes-operator"}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8081}]
    for pod in pods_of(cluster):
        assert pod["spec"]["automountServiceAccountToken"] is False and pod["spec"]["securityContext"]["runAsNonRoot"]
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["runAsUser"] in (1000, 9999)
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
