"""Buckets whose reader pays: every request says so, to Cloud Storage with the project of ``--billing-project``."""

from __future__ import annotations

import urllib.parse

import clouds
import pytest
from faults import proxied

from trainer import storage
from trainer.command import ArgumentParser


@pytest.fixture
def billed(monkeypatch):
    """As a command does it that is given the option."""
    monkeypatch.setenv("PCONV_BILLING_PROJECT", "")
    assert vars(ArgumentParser().parse_args(["--billing-project", "who-pays"])) == {}


def use_all(bucket: str) -> None:
    """Each kind of request that the storage makes."""
    storage.require_writable(bucket)
    storage.create(f"{bucket}/in/a", b"123")
    storage.replace(f"{bucket}/in/a", b"456", storage.read_versioned(f"{bucket}/in/a")[1])
    storage.overwrite(f"{bucket}/in/a", b"789")
    assert storage.read_range(f"{bucket}/in/a", 1, 1) == b"8" and storage.folders(bucket) == ["in"]
    assert storage.checksum(f"{bucket}/in/a") == storage.crc32c(b"789") and storage.changed(bucket) > 0
    storage.delete(f"{bucket}/in/a")
    assert storage.find(bucket) == []


@pytest.mark.parametrize("is_billed", [True, False])
def test_every_request_names_who_pays(bucket, gcs_server, is_billed, request):
    if is_billed:
        request.getfixturevalue("billed")
    with proxied(gcs_server) as proxy:
        use_all(bucket)
    # Google's client asks once for the bucket itself, for its traces, and goes on whatever it is told.
    lines = [line for line in proxy.lines if "/o" in line]
    payers = [urllib.parse.parse_qs(urllib.parse.urlsplit(line).query).get("userProject") for line in lines]
    assert len(payers) >= 10 and all(payer == (["who-pays"] if is_billed else None) for payer in payers)


@pytest.mark.parametrize("is_billed", [True, False])
def test_every_request_to_s3_says_that_the_reader_pays(bucket, server, is_billed, monkeypatch):
    """MinIO bills nobody: it is the header that is seen, in the signature, too."""
    if clouds.chosen.scheme != "s3":
        pytest.skip("is of s3:// alone")
    if is_billed:
        monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    with proxied(server) as proxy:
        use_all(bucket)
    found = [headers.get("x-amz-request-payer") for headers in proxy.headers]
    signed = ["x-amz-request-payer" in headers["Authorization"] for headers in proxy.headers]
    assert len(found) >= 10 and set(zip(found, signed, strict=True)) == {
        ("requester", True) if is_billed else (None, False)
    }
