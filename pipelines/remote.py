"""Jobs whose workers are elsewhere, in the project's image, and jobs that outlive the process that submits them."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
import sys
from pathlib import Path

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineState

from trainer.command import code_version
from trainer.errors import LeftRunning, Outage, UserError, outage_in, user_error_in

OTHER_CODE = "PCONV_OTHER_CODE"  # environment variable
# What Beam puts before a service's message, and how the last line of a traceback begins.
_BEAMS_WORDS = re.compile(r"Dataflow pipeline failed\. State: \w+, Error:\s|Pipeline \S+ failed in state \w+: ")
_ERROR = re.compile(r"[A-Za-z_][\w.]*(: |$)")
_DATAFLOW, _PORTABLE = "DataflowRunner", "PortableRunner"


def has_workers_elsewhere(options: PipelineOptions) -> bool:
    """Whether workers run in an environment of their own, such as a container."""
    environment = options.view_as(PortableOptions).environment_type
    return options.view_as(StandardOptions).runner == _DATAFLOW or environment in ("DOCKER", "EXTERNAL")


def outlives_us(options: PipelineOptions) -> bool:
    """Whether the job goes on when this process ends, for neither its service nor its workers are parts of it."""
    runner, portable = options.view_as(StandardOptions).runner, options.view_as(PortableOptions)
    has_service = runner == _PORTABLE and portable.job_endpoint not in (None, "embed")
    return runner == _DATAFLOW or (has_service and portable.environment_type != "LOOPBACK")


def start(pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
    """Starts a job; a service's id of it is printed. Workers that are elsewhere compare their code with this one's."""
    if has_workers_elsewhere(options):
        pipeline | "SameCode" >> CompareCode()
    result = pipeline.run()
    if outlives_us(options) and (name := _id_of(result)):
        print(name, flush=True)
    return result


def wait(result: PipelineResult, is_remote: bool) -> None:
    """Waits for a job's end.

    Args:
        is_remote: whether the job is a service's, as `outlives_us` says.

    Raises:
        Outage: it was canceled or failed; with what the service says of that.
        Exception: what a runner of this process raises if it failed.
    """
    try:
        result.wait_until_finish()
    except Exception as error:
        state = _state_of(result)
        if state == PipelineState.CANCELLED:
            said = is_remote and not isinstance(error, grpc.RpcError)
            raise _ended(result, state, reason_in(str(error)) if said else "") from None
        if not is_remote or user_error_in(error) or outage_in(error):
            raise
        if isinstance(error, grpc.RpcError):
            raise Outage(f"the job {_id_of(result)}: its service does not answer any more") from None
        raise _ended(result, state, reason_in(str(error))) from None
    if (state := _state_of(result)) in (PipelineState.CANCELLED, PipelineState.FAILED):
        raise _ended(result, state)


def _ended(result: PipelineResult, state: str, reason: str = "") -> Outage:
    return Outage(f"the job {_id_of(result)} ended in the state {state}{reason and f': {reason}'}")


def reason_in(text: str) -> str:
    """What a service says of a job that failed; of a traceback its last line; empty if it says nothing."""
    text = _BEAMS_WORDS.sub("", text, count=1).strip()
    if text == "None":  # Beam's client, of a job without messages
        return ""
    if "Traceback (most recent call last)" in text:
        lines = text.splitlines()
        return ([line for line in lines if _ERROR.match(line)] or lines)[-1].strip()
    return " ".join(text.split())


def leave(result: PipelineResult | None, options: PipelineOptions) -> None:
    """For a command that was interrupted: if its job goes on says so, and how to cancel it.

    Raises:
        LeftRunning: it does.
    """
    if result is None or not outlives_us(options):
        return
    name, cloud = _id_of(result), options.view_as(GoogleCloudOptions)
    how = f"is canceled where it runs, at {options.view_as(PortableOptions).job_endpoint}"
    if options.view_as(StandardOptions).runner == _DATAFLOW:
        command = f"gcloud dataflow jobs cancel {name} --project={cloud.project} --region={cloud.region}"
        how = f"is canceled by: {command}"
    print(f"the job {name} goes on without this command, and {how}", file=sys.stderr)
    raise LeftRunning from None


def _state_of(result: PipelineResult) -> str:
    try:
        return result.state
    except grpc.RpcError:
        return PipelineState.UNKNOWN


def _id_of(result: PipelineResult) -> str:
    if getattr(result, "has_job", False):
        return result.job_id()  # type: ignore[attr-defined]  # Dataflow's
    return getattr(result, "_job_id", "")


# The code


def digest() -> str:
    """Digest of the project's Python files, the same in a checkout and in what is installed of it."""
    hasher = hashlib.blake2b(digest_size=6)
    for package in ("masks", "trainer", "pipelines"):
        folder = Path(next(iter(importlib.import_module(package).__path__)))
        for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).parts):
            name = path.relative_to(folder.parent).as_posix().encode()
            data = path.read_bytes()
            hasher.update(b"%d %b %d\n%b" % (len(name), name, len(data), data))
    return hasher.hexdigest()


class CompareCode(beam.PTransform):
    """Fails the job if its workers have other code than this process: they would run theirs, and nobody would know.

    With ``PCONV_OTHER_CODE=allow`` in this process's environment the workers log it, and go on.
    """

    def expand(self, pipeline):
        allowed = os.environ.get(OTHER_CODE) == "allow"
        code = beam.Create([(digest(), code_version())])
        return pipeline | "OurCode" >> code | "Compare" >> beam.Map(compare_code, allowed)


def compare_code(submitted: tuple[str, str], allowed: bool) -> None:
    """Compares this process's code with the digest and the version of what was submitted.

    Raises:
        UserError: they differ, and ``allowed`` is not set.
    """
    expected, version = submitted
    if (found := digest()) == expected:
        return
    message = (
        f"the workers' image has other code than the machine that submits: expected {version} ({expected}). "
        f"Received {code_version()} ({found}). Build the images of this code (make images), or submit from theirs; "
        f"{OTHER_CODE}=allow runs the workers' code."
    )
    if not allowed:
        raise UserError(message)
    logging.getLogger(__name__).warning(message)
