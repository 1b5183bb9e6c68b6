"""Says what works here and what does not, and what to do about it.

    pconv doctor
    pconv doctor gs://B/images gs://B/runs photos --address 10.0.0.9:6379

Each ADDRESS is listed; into a folder that is there, and into a bucket, a small hidden file is written and deleted
again. Nothing else is changed. Exit code 1 if the installation is broken or something that was asked for does not work;
what is only absent, such as a GPU or an extra package, is no fault.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from trainer import storage
from trainer.command import FAILURE, ArgumentParser, run_command
from trainer.config import ScalingConfig
from trainer.errors import Outage, UserError, no_gpu
from trainer.storage import recognize
from trainer.storage.objects.services import AZURE, S3, Service

OK, ABSENT, FAULT = "ok", "-", "fault"
_ANSWER_S = 180.0  # for one question: importing TensorFlow takes 5 s of a core, and the machine may be busy
_GIB = 2**30


class Finding(NamedTuple):
    """What was found of one subject: `OK`, `ABSENT` or `FAULT`, and a sentence."""

    state: str
    subject: str
    text: str


def ask(code: str, *arguments: str, seconds: float = _ANSWER_S) -> dict:
    """Runs Python ``code`` in a process of its own, for it may hang or crash; returns the JSON object that it prints.

    Raises:
        UserError: it prints none; the message is the last line of its stderr.
    """
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3"} | os.environ
    try:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(f"no answer within {seconds:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
        raise UserError(lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


# What is installed


def check_machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    temporary = tempfile.gettempdir()
    free = shutil.disk_usage(temporary).free / _GIB
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    return Finding(OK, "machine", f"{cores} cores, {memory:.0f} GiB of memory, {free:.0f} GiB free in {temporary}")


def check_packages() -> Finding:
    """Whether Python and the packages that are always needed have versions that `pyproject.toml` allows."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    metadata, python = importlib.metadata.metadata("pconv"), ".".join(map(str, sys.version_info[:3]))
    wrong = []
    if not SpecifierSet(metadata["Requires-Python"]).contains(python):
        wrong.append(f"Python {metadata['Requires-Python']}. Received {python}")
    for text in importlib.metadata.requires("pconv") or ():
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            version = "none"
        if version == "none" or not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name}{need.specifier}. Received {version}")
    if wrong:
        return Finding(FAULT, "packages", f"expected {'; '.join(wrong)}: pip install --upgrade pconv")
    return Finding(OK, "packages", f"Python {python}, pconv {metadata['Version']}, and all that it needs")


def check_tensorflow() -> Finding:
    """Whether TensorFlow loads, and sees the GPUs that the machine has."""
    code = (
        "import json, tensorflow as tf\n"
        "gpus = [tf.config.experimental.get_device_details(d).get('device_name', d.name)"
        " for d in tf.config.list_physical_devices('GPU')]\n"
        "print(json.dumps({'version': tf.__version__, 'gpus': gpus}))"
    )
    found = ask(code)
    gpus = found["gpus"]
    if not gpus and shutil.which("nvidia-smi"):
        return Finding(FAULT, "TensorFlow", f"{found['version']}: {no_gpu('nvidia-smi is here')}")
    have = ", ".join(gpus) if gpus else "no GPU, so networks are trained and used on the CPU"
    return Finding(OK, "TensorFlow", f"{found['version']}: {have}")


def check_library(subject: str, module: str, extra: str, purpose: str) -> Finding:
    """Whether an optional library is installed, and loads."""
    if importlib.util.find_spec(module) is None:
        return Finding(ABSENT, subject, f"not installed, so no {purpose}: pip install 'pconv[{extra}]'")
    found = ask(f"import json, {module} as m; print(json.dumps({{'version': getattr(m, '__version__', '')}}))")
    return Finding(OK, subject, found["version"])


def check_dataflow() -> Finding:
    if importlib.util.find_spec("google.cloud.dataflow_v1beta3") or importlib.util.find_spec("google.cloud.bigquery"):
        return Finding(OK, "Dataflow", "its client is installed")
    return Finding(ABSENT, "Dataflow", "its client is not installed: pip install 'pconv[dataflow]'")


def check_credentials() -> Finding:
    """Which credentials of Google Cloud a command would use, if any."""
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        return Finding(OK, "gs://", f"{emulator} (STORAGE_EMULATOR_HOST), without credentials")
    code = (
        "import json, google.auth\n"
        "from google.auth.exceptions import DefaultCredentialsError\n"
        "try:\n"
        "    found, project = google.auth.default()\n"
        "    who = getattr(found, 'service_account_email', None) or type(found).__module__\n"
        "    print(json.dumps({'who': who, 'project': project}))\n"
        "except DefaultCredentialsError as error:\n"
        "    print(json.dumps({'error': str(error)}))"
    )
    found = ask(code)
    if "error" in found and "GOOGLE_APPLICATION_CREDENTIALS" in os.environ:
        file = os.environ["GOOGLE_APPLICATION_CREDENTIALS"]
        return Finding(FAULT, "gs://", f"GOOGLE_APPLICATION_CREDENTIALS={file}: {found['error']}")
    if "error" in found:
        return Finding(ABSENT, "gs://", "no credentials of Google Cloud: gcloud auth application-default login")
    project = found["project"] or "no project: GOOGLE_CLOUD_PROJECT names one"
    return Finding(OK, "gs://", f"credentials of {found['who']} ({project})")


def check_service(service: Service) -> Finding:
    """Which credentials of S3 or Azure a command would use, if any; a machine's own are not asked for."""
    subject = f"{service.scheme}://"
    if importlib.util.find_spec("obstore") is None:
        return Finding(ABSENT, subject, f"obstore is not installed: pip install 'pconv[{service.extra}]'")
    endpoint = next((f"{os.environ[name]} ({name}), " for name in service.endpoints if os.environ.get(name)), "")
    for first, *others in service.credentials:
        if not os.environ.get(first):
            continue
        if missing := [name for name in others if not os.environ.get(name)]:
            return Finding(FAULT, subject, f"{endpoint}{first} is set: expected {' and '.join(missing)}, too")
        return Finding(OK, subject, f"{endpoint}credentials of {first}")
    return Finding(
        ABSENT, subject, f"{endpoint}no credentials but those of the machine, if it has some: {service.hint}"
    )


# What was asked for


def check_address(address: str) -> Finding:
    """Whether files can be listed at ``address`` and, if it is a folder, written there."""
    code = (
        "import json, sys\nfrom pipelines.doctor import probe\n"
        "text, error = probe(sys.argv[1])\nprint(json.dumps({'text': text, 'error': error}))"
    )
    found = ask(code, address, seconds=180)  # the longest that storage asks an unwilling service again
    return Finding(FAULT if found["error"] else OK, address, found["error"] or found["text"])


def probe(address: str) -> tuple[str, str | None]:
    """What is at ``address``, and why it cannot be used, if so."""
    try:
        address = storage.normalize(address)
        thing = recognize.look(address)
        if not storage.is_remote(address) and not os.path.isdir(address):
            return _describe_path(address, thing.what)
        storage.try_writing(address)
    except (UserError, Outage) as error:
        return "", str(error)
    what = "nothing there yet" if thing.what == "nothing" else thing.what
    return f"{what}; can be listed, written and read", None


def _describe_path(path: str, what: str) -> tuple[str, str | None]:
    """The same of a path that is no folder: nothing is made there."""
    if os.path.exists(path):
        return (f"{what}; can be read", None) if os.access(path, os.R_OK) else ("", f"{path} cannot be read: chmod it")
    parent = path
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
        return "", f"nothing is there, and {parent} is not a folder that this user can write to"
    return f"nothing is there yet; it can be made in {parent}", None


def check_ray(address: str | None) -> Finding:
    """Whether a training could start Ray on this machine or, with ``address``, join that cluster."""
    from trainer.training.ray_session import check_cluster, check_place

    if address is None:
        check_place("local", ScalingConfig(), False)
        return Finding(OK, "local Ray", "a training can start it")
    check_cluster(address)
    return Finding(OK, f"Ray at {address}", "answers")


def check_all(addresses: Sequence[str], cluster: str | None) -> list[Finding]:
    """All findings, in the order in which they are shown."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("machine", check_machine),
        ("packages", check_packages),
        ("TensorFlow", check_tensorflow),
        ("Beam", partial(check_library, "Beam", "apache_beam", "beam", "masks, records or batch inference")),
        ("Dataflow", check_dataflow),
        ("Ray", partial(check_library, "Ray", "ray", "ray", "training")),
        ("HEIC", partial(check_library, "HEIC", "pillow_heif", "heic", "photographs of phones")),
        ("ONNX", partial(check_library, "ONNX", "tf2onnx", "onnx", "export to ONNX")),
        ("page", partial(check_library, "page", "aiohttp", "try", "page to paint on, pconv try")),
        ("gs://", check_credentials),
        *((f"{service.scheme}://", partial(check_service, service)) for service in (S3, AZURE)),
        (f"Ray at {cluster}" if cluster else "local Ray", partial(check_ray, cluster)),
        *((address, partial(check_address, address)) for address in addresses),
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda check: _guarded(*check), checks))


def _guarded(subject: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except UserError as error:
        return Finding(FAULT, subject, str(error))


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.doctor", description=__doc__)
    parser.add_argument("addresses", nargs="*", metavar="ADDRESS", help="folder or bucket that a job would use")
    parser.add_argument("--address", help="Ray cluster that a training would join, HOST:PORT or auto")
    return parser


def main(argv: Sequence[str]) -> int:
    ours = parser().parse_args(argv)
    findings = check_all(ours.addresses, ours.address)
    width = max(len(finding.subject) for finding in findings)
    for state, subject, text in findings:
        print(f"{state:<6} {subject:<{width}}  {text}")
    faults = sum(finding.state == FAULT for finding in findings)
    print(f"{faults} faults" if faults != 1 else "1 fault")
    return FAILURE if faults else 0


if __name__ == "__main__":
    run_command(main)
