"""Beam's real boot program under docker/beam-entrypoint.sh, where Dataflow's folder is root's."""

from __future__ import annotations

import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from apache_beam.portability.api import (
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
)

ROOT = Path(__file__).resolve().parents[2]
ENGINE = "Beam's boot program"
NAME = "pickled_main_session"  # what Dataflow's client stages unless it is told not to

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as Dataflow starts images")


class Provisioning(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    def __init__(self, address: str, artifacts: list):
        self.address, self.artifacts = address, artifacts

    def GetProvisionInfo(self, request, context):
        endpoint = {"url": self.address}
        info = beam_provision_api_pb2.ProvisionInfo(
            retrieval_token="token",
            logging_endpoint=endpoint,
            artifact_endpoint=endpoint,
            control_endpoint=endpoint,
            dependencies=self.artifacts,
        )
        info.pipeline_options.update({"options": {}})
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=info)


class Artifacts(beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceServicer):
    def ResolveArtifacts(self, request, context):
        return beam_artifact_api_pb2.ResolveArtifactsResponse(replacements=request.artifacts)

    def GetArtifact(self, request, context):
        yield beam_artifact_api_pb2.GetArtifactResponse(data=b"session")


@pytest.fixture
def service():
    """Address of a runner that stages one file with its workers."""
    payload = beam_runner_api_pb2.ArtifactStagingToRolePayload(staged_name=NAME).SerializeToString()
    artifact = beam_runner_api_pb2.ArtifactInformation(
        type_urn="beam:artifact:type:file:v1",
        type_payload=beam_runner_api_pb2.ArtifactFilePayload(path=f"/x/{NAME}").SerializeToString(),
        role_urn="beam:artifact:role:staging_to:v1",
        role_payload=payload,
    )
    server = grpc.server(ThreadPoolExecutor(4))
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(Provisioning(address, [artifact]), server)
    beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(Artifacts(), server)
    server.start()
    yield address
    server.stop(None).wait()


@pytest.mark.parametrize("has_entrypoint", [True, False], ids=["with the entry point", "as uid 1000 alone"])
def test_boot_stores_what_is_staged_in_a_folder_of_roots(tool, figure, service, has_entrypoint):
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o755)
        folder, programs, home = Path(place, "google"), Path(place, "programs"), Path(place, "home")
        for path in (folder, programs, home):
            path.mkdir(mode=0o755)
        os.chown(home, 1000, 1000)
        boot = programs / "boot"
        boot.write_bytes(tool("boot").read_bytes())
        worker = programs / "python"  # says who runs it, in the place of Beam's worker
        worker.write_text(f'#!/bin/sh\necho "$(id -u) $@" >> {home}/said\n')
        for program in (boot, worker):
            program.chmod(0o755)
        start = ["sh", ROOT / "docker/beam-entrypoint.sh"]
        if not has_entrypoint:
            start = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", boot]
        options = ["--id=1-1", f"--provision_endpoint={service}", f"--semi_persist_dir={folder}"]
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "PCONV_BOOT": str(boot)}
        environment |= {"RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1"}
        done = subprocess.run(
            list(map(str, [*start, *options])), cwd=home, env=environment, capture_output=True, text=True, timeout=300
        )
        if not has_entrypoint:
            assert done.returncode != 0 and "staged: permission denied" in done.stderr
            return
        staged = folder / "staged" / NAME
        assert staged.read_bytes() == b"session" and staged.stat().st_uid == 1000, done.stderr
        assert "1000 -m apache_beam.runners.worker.sdk_worker_main" in (home / "said").read_text()
