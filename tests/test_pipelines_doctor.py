"""`pconv doctor` on machines that lack something: the lines, the exit code, and that nothing is left behind."""

from __future__ import annotations

import importlib.util
import os
import socket
import stat
import subprocess
import sys

import pytest

from pipelines import doctor
from trainer import storage
from trainer.storage.objects.services import AZURE, S3


def call(*arguments, **variables):
    """Findings by subject; of variables about storage and Ray the command sees ``variables`` alone."""
    hidden = ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    command = [sys.executable, "-m", "pipelines.doctor", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.stderr == "", done.stderr
    *lines, last = done.stdout.splitlines()
    found = {}
    for line in lines:
        state, rest = line[:7].strip(), line[7:]
        subject, _, text = rest.partition("  ")
        found[subject] = (state, text.strip())
    faults = sum(state == "fault" for state, _ in found.values())
    assert last == ("1 fault" if faults == 1 else f"{faults} faults") and done.returncode == min(faults, 1)
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Findings without a network that answers, credentials or a GPU, of several addresses."""
    root = tmp_path_factory.mktemp("bare")
    (root / "photos").mkdir()
    (root / "file").write_bytes(b"x")
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        addresses = [str(root / name) for name in ("photos", "new/folder", "file", "file/below")]
        found = call(
            *addresses, "ftp://x/y", "gs://bucket/x", "--address", f"127.0.0.1:{port}",
            HOME=str(root), CLOUDSDK_CONFIG=str(root), GCE_METADATA_HOST=f"127.0.0.1:{port}",
            GCE_METADATA_IP=f"127.0.0.1:{port}", GCE_METADATA_TIMEOUT="1", PATH=os.path.dirname(sys.executable),
        )  # fmt: skip
    assert os.listdir(root / "photos") == [] and not (root / "new").exists()
    return root, port, found


def test_what_is_absent_is_no_fault(bare):
    _, _, found = bare
    assert found["gs://"] == ("-", "no credentials of Google Cloud: gcloud auth application-default login")
    assert found["TensorFlow"][0] == "ok" and found["TensorFlow"][1].endswith("on the CPU")
    assert [found[name][0] for name in ("machine", "packages", "Beam", "Ray")] == ["ok"] * 4


def test_each_address_is_tried(bare):
    root, port, found = bare
    assert found[f"{root}/photos"] == ("ok", "nothing there yet; can be listed, written and read")
    assert found[f"{root}/new/folder"] == ("ok", f"nothing is there yet; it can be made in {root}")
    assert found[f"{root}/file"][0] == "ok"
    assert (
        found[f"{root}/file/below"][0] == "fault" and f"{root}/file is not a folder" in found[f"{root}/file/below"][1]
    )
    assert found["ftp://x/y"][0] == "fault" and "Received 'ftp://x/y'" in found["ftp://x/y"][1]
    assert found["gs://bucket/x"][0] == "fault" and "credentials" in found["gs://bucket/x"][1]
    state, text = found[f"Ray at 127.0.0.1:{port}"]
    assert state == "fault" and "refused" in text


def test_a_bucket_that_works_and_one_that_is_not_there(bucket, gcs_server):
    found = call(f"{bucket}/data", "gs://not-there-at-all/x", STORAGE_EMULATOR_HOST=gcs_server)
    assert found[f"{bucket}/data"][0] == "ok" and found[f"{bucket}/data"][1].endswith("listed, written and read")
    assert found["gs://not-there-at-all/x"][0] == "fault"
    assert found["gs://"][0] == "ok" and gcs_server in found["gs://"][1]
    assert storage.find(bucket) == []


def test_a_folder_that_may_not_be_written_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)  # what root is never told
    assert doctor.probe(str(tmp_path / "new"))[1].endswith("is not a folder that this user can write to")


def test_credentials_that_are_named_and_broken_are_a_fault(tmp_path, monkeypatch):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    (tmp_path / "key.json").write_text("{}")
    for name in ("key.json", "none.json"):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / name))
        found = doctor.check_credentials()
        assert found.state == doctor.FAULT and str(tmp_path / name) in found.text


@pytest.mark.parametrize(
    ("service", "variables", "expected"),
    [
        (S3, {}, ("-", "no credentials but those of the machine")),
        (S3, {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, ("ok", "credentials of AWS_ACCESS_KEY_ID")),
        (S3, {"AWS_ACCESS_KEY_ID": "k"}, ("fault", "AWS_ACCESS_KEY_ID is set: expected AWS_SECRET_ACCESS_KEY, too")),
        (
            S3,
            {"AWS_ENDPOINT_URL": "http://h:9", "AWS_WEB_IDENTITY_TOKEN_FILE": "f", "AWS_ROLE_ARN": "r"},
            ("ok", "http://h:9 (AWS_ENDPOINT_URL), credentials of AWS_WEB_IDENTITY_TOKEN_FILE"),
        ),
        (AZURE, {"AZURE_STORAGE_ACCOUNT_NAME": "a"}, ("-", "no credentials but those of the machine")),
        (
            AZURE,
            {"AZURE_CLIENT_SECRET": "secret", "AZURE_CLIENT_ID": "i"},
            ("fault", "AZURE_CLIENT_SECRET is set: expected AZURE_TENANT_ID and AZURE_STORAGE_ACCOUNT_NAME, too"),
        ),
    ],
)
def test_credentials_of_other_stores_are_told_and_their_secrets_are_not(monkeypatch, service, variables, expected):
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = doctor.check_service(service)
    assert (found.state, found.subject) == (expected[0], f"{service.scheme}://")
    assert found.text.startswith(expected[1]) and "secret" not in found.text
    assert (found.text.endswith(service.hint)) == (found.state == "-")


def test_a_store_whose_client_is_not_installed_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "obstore" else find(name))
    assert doctor.check_service(AZURE) == (
        "-",
        "az://",
        "obstore is not installed: pip install 'pconv[azure]'",
    )


def test_a_driver_without_a_gpu_that_tensorflow_can_use_is_a_fault(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "ask", lambda code: {"version": "2.21.0", "gpus": []})
    found = doctor.check_tensorflow()
    assert found.state == doctor.FAULT and "LD_LIBRARY_PATH" in found.text


def test_packages_that_are_missing_or_too_old_are_named(monkeypatch):
    assert doctor.check_packages().state == doctor.OK
    versions = {"numpy": "1.26.4"}

    def version(name):
        if name == "keras":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    real = doctor.importlib.metadata.version
    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    found = doctor.check_packages()
    assert found.state == doctor.FAULT
    assert "keras<4,>=3.12. Received none" in found.text and "numpy<3,>=2.1. Received 1.26.4" in found.text


def test_a_library_that_crashes_or_hangs_is_a_line():
    with pytest.raises(doctor.UserError, match="^OSError: no such library$"):
        doctor.ask("raise OSError('no such library')")
    with pytest.raises(doctor.UserError, match="exit code -9"):
        doctor.ask("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(doctor.UserError, match="^no answer within 1 s$"):
        doctor.ask("import time; time.sleep(600)", seconds=1)
