"""Beam's own client of Dataflow submits each job to a stand-in of the service, which runs what was staged on Prism.

So all of dataflow.sh runs but Google's side: what arrives there is compared with a table, the pipeline that was staged
in a bucket runs in the project's image, and the command ends as the service says that the job has.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2, endpoints_pb2
from apache_beam.runners.portability.portable_runner import PipelineResult, PortableRunner

from dataflow_service import JOB, serve_dataflow
from engines import jobs, tools
from trainer import storage

ENGINE = f"Dataflow's client {tools.BEAM}"

BEAMS = {"beam_fn_api", "use_unified_worker", "use_runner_v2", "use_portable_job_submission"}
# What a job asks the service for, in the words of its REST interface.
COMMON = {
    "subnetwork": "regions/r/subnetworks/s",
    "ipConfiguration": 2,  # WORKER_IP_PRIVATE
    "autoscalingSettings": {"algorithm": 2, "maxNumWorkers": 50},  # AUTOSCALING_ALGORITHM_BASIC: by throughput
    "serviceOptions": [],
    "containerImage": "r/pconv/beam:1",
    "diskSizeGb": 50,
}
PROCESSES = COMMON | {
    "machineType": "n2-standard-4",
    "experiments": BEAMS | {"disable_logging_submission_environment", "use_multiple_sdk_containers"},
}
NETWORKS = COMMON | {
    "machineType": "n2-standard-8",
    "experiments": BEAMS | {"disable_logging_submission_environment", "no_use_multiple_sdk_containers"},
}
WANTED = {
    "build_masks": PROCESSES | {"serviceAccountEmail": "masks@x", "numThreadsPerWorker": 2},
    "build_imagenet": PROCESSES | {"serviceAccountEmail": "imagenet@x", "numThreadsPerWorker": 1},
    "inpaint": NETWORKS | {"serviceAccountEmail": "inference@x", "numThreadsPerWorker": 4},
    "evaluate": NETWORKS | {"serviceAccountEmail": "evaluation@x", "numThreadsPerWorker": 2},
}
L4 = {
    "machineType": "g2-standard-8",
    "diskSizeGb": 100,
    "containerImage": "r/pconv/beam-gpu:1",
    "autoscalingSettings": {"algorithm": 2, "maxNumWorkers": 4},
    "serviceOptions": ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"],
}


@pytest.fixture
def service():
    with serve_dataflow() as server:
        server.state = "JOB_STATE_RUNNING"
        yield server


def asked_for(request: dict) -> dict:
    """Of a request to make a job, what `WANTED` speaks of."""
    environment = request["environment"]
    (pool,) = environment["workerPools"]
    (image,) = pool["sdkHarnessContainerImages"]
    assert image["containerImage"] == pool["workerHarnessContainerImage"]
    found = {"serviceOptions": []} | environment | pool | image
    found["experiments"] = set(environment["experiments"])
    return {name: found[name] for name in WANTED["build_masks"]}


def submit(service, bucket: str, job: str, output: str, *options: str) -> subprocess.CompletedProcess:
    """Runs dataflow.sh; what is staged is in ``bucket``, and what has been is gone."""
    for address in storage.find(f"{bucket}/scratch"):
        storage.delete(address)
    return service.submit(*options, job, *jobs.options_of(job, bucket, output), SCRATCH=f"{bucket}/scratch")


def run_on_prism(cloud) -> None:
    """Runs the pipeline that was staged, the one file there is."""
    (address,) = storage.find(f"{cloud.bucket}/scratch/staging/files")
    pipeline = beam_runner_api_pb2.Pipeline.FromString(storage.read(address))
    for environment in pipeline.components.environments.values():
        docker = beam_runner_api_pb2.DockerPayload.FromString(environment.payload)
        assert docker.container_image == "r/pconv/beam:1" and not environment.dependencies
        here = endpoints_pb2.ApiServiceDescriptor(url=cloud.options[cloud.options.index("--environment_config") + 1])
        environment.urn = common_urns.environments.EXTERNAL.urn
        environment.payload = beam_runner_api_pb2.ExternalPayload(endpoint=here).SerializeToString()
    handle = PortableRunner().create_job_service(PipelineOptions(cloud.options))
    PipelineResult(handle.job_service, *handle.submit(pipeline)).wait_until_finish()


@pytest.mark.parametrize("job", jobs.JOBS)
def test_the_staged_pipeline_writes_the_same_bytes_as_in_process(cloud, expected, service, figure, job):
    wanted, threads = expected(job), []

    def run() -> None:
        try:
            run_on_prism(cloud)
            service.state = "JOB_STATE_DONE"
        except BaseException as error:
            service.errors.append(repr(error))
            service.state = "JOB_STATE_FAILED"

    def start(asked: str) -> None:
        if asked == "jobs":
            threads.append(threading.Thread(target=run))
            threads[-1].start()

    service.on_asked = start
    done = submit(service, cloud.bucket, job, f"dataflow/{job}")
    for thread in threads:
        thread.join()
    assert done.returncode == (3 if job == "build_imagenet" else 0), (done.stderr, service.errors)
    assert done.stdout.startswith(f"{JOB}\n")
    (request,) = service.requests
    assert asked_for(request) == WANTED[job]
    assert request["labels"] == {"app": "pconv", "job": job.replace("_", "-")}
    found = jobs.contents(f"{cloud.bucket}/dataflow/{job}")
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    figure(f"{job}: {len(found)} objects")


@pytest.mark.parametrize("job", ["inpaint", "evaluate"])
def test_what_a_job_on_gpus_asks_for(cloud, expected, service, job):
    expected("build_masks"), expected("build_imagenet")
    done = submit(service, cloud.bucket, job, f"gpu/{job}", "--no-wait", "--gpu", "l4")
    assert (done.returncode, done.stdout) == (0, f"{JOB}\n"), done.stderr
    (request,) = service.requests
    assert asked_for(request) == WANTED[job] | L4


SAID = [
    (
        "FAILED",
        "Workflow failed. Causes: S01:Create failed.,\nThe job failed because a work item has failed 4 times.",
        f"the job {JOB} ended in the state FAILED: "
        "Workflow failed. Causes: S01:Create failed., The job failed because a work item has failed 4 times.",
    ),
    (
        "FAILED",
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
        "trainer.errors.Outage: gs://b/c: no answer [while running 'Write']\n",
        "gs://b/c: no answer",
    ),
    (
        "CANCELLED",
        "The Dataflow job appears to be stuck.",
        f"the job {JOB} ended in the state CANCELLED: The Dataflow job appears to be stuck.",
    ),
]


def test_a_job_that_failed_is_one_line_with_what_the_service_said(bucket):
    def run(number: int) -> subprocess.CompletedProcess:
        state, message, _ = SAID[number]

        def end(asked: str) -> None:
            if asked == "messages":
                service.state = f"JOB_STATE_{state}"

        with serve_dataflow() as service:
            service.state, service.errors, service.on_asked = "JOB_STATE_RUNNING", [message], end
            return submit(service, f"{bucket}/{number}", "build_masks", "failed")

    with ThreadPoolExecutor(len(SAID)) as pool:  # most of their time the commands wait
        ended = list(pool.map(run, range(len(SAID))))
    for done, (_, _, line) in zip(ended, SAID, strict=True):
        assert (done.returncode, done.stdout) == (1, f"{JOB}\n")
        assert done.stderr.splitlines()[-1] == f"error: {line}" and "Traceback" not in done.stderr, done.stderr


def test_an_interrupted_command_says_that_the_job_goes_on_and_how_to_cancel_it(bucket, service):
    waits = threading.Event()
    service.on_asked = lambda asked: asked == JOB and waits.set()
    options = ["build_masks", *jobs.options_of("build_masks", bucket, "left"), "--overwrite"]
    command, environment = service.command(*options, SCRATCH=f"{bucket}/scratch")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout.readline() == f"{JOB}\n" and waits.wait(600)
        job.send_signal(signal.SIGINT)
        said = job.stderr.read()
        assert job.wait() == 130
    assert said.splitlines()[-2:] == [
        "interrupted",
        f"the job {JOB} goes on without this command, and is canceled by: "
        f"gcloud dataflow jobs cancel {JOB} --project=some-project --region=us-central1",
    ]
    # With its claim, without which it would not be allowed to replace what is there.
    assert len(storage.find(f"{bucket}/left/.claims")) == 1
