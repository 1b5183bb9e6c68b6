"""infra/kuberay on a Kubernetes with KubeRay's operator: what KUBECONFIG names, or a cluster that is made here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import yaml

from engines.pods import CONNECT, EVERY, LOGGED, OUTSIDE, ROOT, STEPS, fill, name_of, wait_for

ENGINE = "Kubernetes"
CLOUD = {  # as infra/README.md has a user fill the files in
    **{"PCONV_JOB": "a", "PCONV_GPU_WORKERS": "4", "PCONV_QUEUE": "gpus", "PCONV_TAG": "1"},
    **{"PCONV_REPOSITORY": "us-central1-docker.pkg.dev/some-project/pconv", "PCONV_DATA": "gs://some-data"},
    **{"PCONV_RUNS": "gs://some-runs", "PCONV_TRAINER_ACCOUNT": "pconv-trainer@some-project.iam.gserviceaccount.com"},
    **{"PCONV_BATCH": "gs://b", "PCONV_INFERENCE_ACCOUNT": "pconv-inference@some-project.iam.gserviceaccount.com"},
}


@pytest.fixture(scope="module")
def storage_url(pods, undisturbed):
    with pods.storage() as url:
        yield url


@pytest.fixture
def bucket(storage_url, monkeypatch):
    """gs://pconv of the pods, for this process, too."""
    from trainer.storage import gcs

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_url)
    gcs.client.cache_clear()
    yield "gs://pconv"
    gcs.client.cache_clear()


def make_strangers(cluster) -> None:
    """Two pods outside the namespace: one that is nobody, one with the labels of an operator that Helm installed."""
    labels = {"nobody": {}, "operator": {"app.kubernetes.io/name": "kuberay-operator"}}
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OUTSIDE}}]
    container = {"name": "c", "image": "pconv/ray:local", "imagePullPolicy": "Never", "command": ["sleep", "86400"]}
    for name, own in labels.items():
        spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
        pod = {"apiVersion": "v1", "kind": "Pod", "spec": spec}
        objects.append(pod | {"metadata": {"name": name, "namespace": OUTSIDE, "labels": own}})
    cluster("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))
    cluster("wait", "pods", "--all", f"--namespace={OUTSIDE}", "--for=condition=Ready", "--timeout=600s")


def look_at(cluster, pods) -> dict:
    """What can be seen while the run trains."""
    workers = pods.of("train", "worker")
    names = [pod["metadata"]["name"] for pod in workers]
    head = pods.of("train", "head")[0]
    head_name, head_ip = head["metadata"]["name"], head["status"]["podIP"]
    table = pods.execute(names[0], "cat", "/proc/net/tcp", "/proc/net/tcp6")
    listening = {int(port, 16) for port in re.findall(r":([0-9A-F]{4}) [0-9A-F]{8,}:0000 0A", table)}
    tensorflow = sorted(port for port in listening if 20000 <= port < 21000)
    ports = ["8265", "6379", "10001", "8080"]
    places = {"head": (head_ip, ports), "worker": (workers[0]["status"]["podIP"], list(map(str, tensorflow)))}
    answers = {}
    for kind, (address, asked) in places.items():
        probe = ["python", "-c", CONNECT, address, *asked]
        answers[kind, "inside"] = json.loads(pods.execute(head_name, *probe))
        for stranger in ("nobody", "operator"):
            told = cluster("exec", f"--namespace={OUTSIDE}", stranger, "--", *probe)
            answers[kind, stranger] = json.loads(told)
    level = "pod-security.kubernetes.io/enforce=restricted"
    labelled = cluster.run("label", "namespace", "pconv", level, "--overwrite", "--dry-run=server")
    return {
        "nodes": {pod["spec"]["nodeName"] for pod in workers},
        "answers": answers,
        "submitting": json.loads(pods.execute(head_name, "python", "-c", SUBMIT)),
        "restricted": labelled.stderr + labelled.stdout,
    }


# Asks the dashboard of its own pod for the jobs, and for a new one: with the token, without, and with another.
SUBMIT = """
import json, os, urllib.error, urllib.request
def ask(token, job=None):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request("http://127.0.0.1:8265/api/jobs/", job and json.dumps(job).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, len(json.load(answer))
    except urllib.error.HTTPError as error:
        return error.code, None
job = {"entrypoint": "touch /tmp/submitted"}
own = os.environ["RAY_AUTH_TOKEN"]
told = {"without": ask(None, job), "wrong": ask("x" * len(own), job), "listing": ask(None), "own": ask(own)}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def undisturbed(cluster, pods):
    """The run of train.sh: its output, what was seen meanwhile, how long it took."""
    kubectl, made = cluster
    make_strangers(kubectl)
    began = time.monotonic()
    with pods.script() as script:
        wait_for(
            "the RayJob", lambda: not kubectl.run("get", "rayjob/train", "--namespace=pconv").returncode, script.poll
        )
        applied = time.monotonic()
        pods.wait_for_step("train", LOGGED)
        seen = look_at(kubectl, pods)
        output = script.stdout.read()
    now = time.monotonic()
    seen |= {"output": output, "exit": script.returncode, "data_s": applied - began, "train_s": now - applied}
    return seen


def losses(run: str) -> dict[str, dict[int, float]]:
    """What a run logged: loss by step, by term."""
    from trainer.tensorboard import read_curves, read_scalars

    tags = [tag for tag in read_scalars(run, STEPS) if tag.startswith("loss/")]
    return {tag: dict(curve) for tag, curve in read_curves(run, tags).items()}


def logs_of(bucket: str, name: str) -> dict[str, str]:
    """Logs in the run's folder by file name; those of drivers in the order of their beginnings, joined."""
    from trainer import storage

    found = {}
    for address in sorted(storage.find(f"{bucket}/runs/{name}/logs")):
        if address.endswith(".log"):
            file = address.rpartition("/")[2]
            found[file] = found.get(file, "") + storage.read(address).decode()
    return found


def test_a_user_trains_in_pods(undisturbed, pods, bucket, figure):
    assert undisturbed["exit"] == 0 and "Complete/SUCCEEDED" in undisturbed["output"], undisturbed["output"]
    assert len(undisturbed["nodes"]) == 2
    assert set(losses(f"{bucket}/runs/train")["loss/total"]) == set(range(LOGGED, STEPS + 1, LOGGED))
    wait_for("the end of its pods", lambda: not pods.of("train", "head") and not pods.of("train", "worker"))
    logs = logs_of(bucket, "train")
    assert f"step {STEPS}/{STEPS}" in logs["driver.log"] and "2 workers x 8 examples" in logs["driver.log"]
    figure(f"{STEPS} steps in 2 pods in {undisturbed['train_s']:.0f} s from apply to result")


def test_only_the_operator_reaches_the_dashboard_from_outside(undisturbed):
    """And nobody else anything."""
    answers = undisturbed["answers"]
    assert answers["head", "inside"]["8265"] and answers["head", "inside"]["6379"]
    assert answers["worker", "inside"] and all(answers["worker", "inside"].values())  # TensorFlow listens
    for kind in ("head", "worker"):
        assert not any(answers[kind, "nobody"].values()), answers[kind, "nobody"]
        reached = {port for port, answer in answers[kind, "operator"].items() if answer}
        assert reached == ({"8265"} if kind == "head" else set())


def test_nothing_is_submitted_without_the_token(undisturbed):
    told = undisturbed["submitting"]
    assert told["without"] == told["listing"] == [401, None] and told["wrong"] == [403, None]
    assert told["own"] == [200, 1]  # the training, and nothing else


def test_pods_would_be_admitted_where_restricted_is_enforced(undisturbed):
    """The API server checks every pod that runs in the namespace, and warns of those that would not be."""
    assert "Warning" not in undisturbed["restricted"] and "pconv" in undisturbed["restricted"]
    assert "Warning" not in undisturbed["output"], undisturbed["output"]


def dry_run(kubectl, *objects: dict) -> subprocess.CompletedProcess:
    return kubectl.run(
        *("apply", "--server-side", "--dry-run=server", "--force-conflicts", "--filename=-"),
        stdin=yaml.safe_dump_all(objects),
    )


def test_the_api_server_takes_every_object(cluster, pods, undisturbed):
    """As users apply them to a cloud's cluster, and here: fields, kinds, admission, KubeRay's own rules."""
    kubectl, _ = cluster
    clouds = [found for name in ("namespace", "rayjob") for found in fill(name, CLOUD)]
    clouds += [
        *fill("inpaint", CLOUD | {"PCONV_JOB": "b"}),
        *fill("inpaint", CLOUD | {"PCONV_JOB": "c", "PCONV_GPU_WORKERS": ""}),
    ]
    for objects in (clouds, pods.objects("other")):
        done = dry_run(kubectl, *objects)
        assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
        assert len(done.stdout.splitlines()) == len(objects)


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda job: job["spec"].update(shutdownAfterJobFinish=True), "shutdownAfterJobFinish"),
        (lambda job: job["spec"].update(ttlSecondsAfterFinished="600"), "ttlSecondsAfterFinished"),
        (lambda job: job["spec"]["rayClusterSpec"].update(authOptions={"mode": "tokens"}), "authOptions.mode"),
        (lambda job: head(job)["rayStartParams"].update({"num-cpus": 0}), "num-cpus"),
        (lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(maxReplica=3), "maxReplica"),
        (lambda job: head(job)["template"]["spec"]["containers"][0].update(imagePullPolice="Never"), "imagePullPolice"),
    ],
    ids=["misspelt", "text for a number", "no such mode", "number for a text", "misspelt below", "misspelt in a pod"],
)
def test_the_api_server_refuses_planted_errors(cluster, pods, undisturbed, plant, told):
    kubectl, _ = cluster
    (job,) = fill("rayjob", CLOUD)
    plant(job)
    done = dry_run(kubectl, job)
    assert done.returncode != 0 and told in done.stderr


def head(job: dict) -> dict:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]


def test_inference_in_a_job_gives_the_bytes_of_this_machine(pods, bucket, tmp_path, figure):
    from trainer import storage

    photos = sorted((ROOT / "pipelines/photos/val").rglob("*.jpg"))[:3]
    for number, photo in enumerate(photos):
        height, width, _ = cv2.imread(str(photo)).shape
        hole = np.full((height, width), 255, np.uint8)
        hole[height // 4 : height // 2, width // 4 : width // 2] = 0
        storage.create(f"{bucket}/in/images/{number}.jpg", photo.read_bytes())
        storage.create(f"{bucket}/in/holes/{number}.png", cv2.imencode(".png", hole)[1].tobytes())
    options = ["--images", f"{bucket}/in/images", "--masks", f"{bucket}/in/holes", "--hole", "black"]
    options += ["--run", f"{bucket}/runs/train", "--output"]
    (job,) = (found for found in pods.objects() if found["kind"] == "Job")
    job["metadata"]["name"] = "inpaint"
    pod = job["spec"]["template"]["spec"]
    del pod["initContainers"]
    pod["containers"][0]["command"] = ["python", "-m", "pipelines.inpaint", *options, f"{bucket}/out"]
    pods.apply(job)
    over = "--output=jsonpath={.status.conditions[?(@.status=='True')].type}"
    ended = wait_for("the job", lambda: pods.run("get", "job", "inpaint", over))
    assert "Complete" in ended, pods.run("logs", "job/inpaint")
    here = [sys.executable, "-m", "pipelines.inpaint", *options, str(tmp_path)]
    subprocess.run(here, cwd=ROOT, check=True, capture_output=True)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == [f"{number}.png" for number in range(len(photos))]
    for name in names:
        assert storage.read(f"{bucket}/out/{name}") == (tmp_path / name).read_bytes()
    figure(f"{len(names)} images inpainted in a Job, bytes as here")


def delete_a_worker(name, pods, made):
    pods.run("delete", "pod", name_of(pods.of(name, "worker")[0]), "--wait=false")


def delete_the_head(name, pods, made):
    pods.run("delete", "pod", name_of(pods.of(name, "head")[0]), "--force", "--grace-period=0")


def delete_the_job(name, pods, made):
    """And apply it again."""
    pods.remove(name)
    pods.start(name)


def exceed_memory(name, pods, made):
    """That of a worker's container: Linux kills what Ray has told it to first, which is the training's process."""
    pod = name_of(pods.of(name, "worker")[0])
    pods.execute_anyway(pod, "python", "-c", "b'x' * (8 << 30)")
    wait_for("a process that was killed", lambda: pods.killed_for_memory(pod))


def cut_off_a_node(name, pods, made):
    """From all others, until Kubernetes has given it up, which Ray does earlier; then it is back."""
    if made is None:
        pytest.skip("only nodes that cluster.py has made can be cut off")
    head = pods.of(name, "head")[0]["spec"]["nodeName"]
    node = next(node for pod in pods.of(name, "worker") if (node := pod["spec"]["nodeName"]) != head)
    made.plug(node, "down")
    try:
        wait_for("its node to be given up", lambda: not pods.is_ready(node), lambda: pods.ended(name))
    finally:
        made.plug(node, "up")


DISTURBANCES = [delete_a_worker, delete_the_head, delete_the_job, exceed_memory, cut_off_a_node]


def pytest_generate_tests(metafunc):
    if "disturb" in metafunc.fixturenames:
        chosen = DISTURBANCES if metafunc.config.getoption("--soak") else DISTURBANCES[:2]
        metafunc.parametrize("disturb", chosen, ids=lambda disturb: disturb.__name__)


def test_a_disturbed_run_ends_as_if_it_had_not_been(cluster, pods, bucket, disturb, figure):
    """Disturbed once it has saved a checkpoint; nobody lends a hand."""
    name = disturb.__name__.replace("_", "-")
    began = time.monotonic()
    pods.start(name)
    pods.wait_for_step(name, 2 * EVERY)
    disturb(name, pods, cluster[1])
    assert wait_for("its end", lambda: pods.ended(name)) == "Complete/SUCCEEDED", pods.printed(name)
    seconds = time.monotonic() - began
    expected, found = losses(f"{bucket}/runs/train"), losses(f"{bucket}/runs/{name}")
    assert found.keys() == expected.keys()
    for tag, curve in found.items():
        assert STEPS in curve  # what was logged in the last seconds before a process was killed may be missing
        assert curve == pytest.approx({step: expected[tag][step] for step in curve}, rel=1e-6, abs=1e-6), tag
    pods.remove(name)
    logs = logs_of(bucket, name)
    resumed = [int(step) for step in re.findall(r"training resumes after step (\d+)", logs["driver.log"])]
    assert resumed and min(resumed) >= EVERY, logs["driver.log"]
    assert set(re.findall(r"(\d+) workers x", logs["driver.log"])) == {"2"}  # never fewer
    assert len(logs) > 1  # those of workers
    figure(f"{name.replace('-', ' ')}: resumed after step {resumed[-1]}, {seconds:.0f} s")
