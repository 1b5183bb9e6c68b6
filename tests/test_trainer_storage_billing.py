"""Buckets whose reader pays: every request names the project that ``--billing-project`` gave."""

from __future__ import annotations

import urllib.parse

import pytest
from faults import proxied

from trainer import storage
from trainer.command import ArgumentParser


@pytest.fixture
def billed(monkeypatch):
    """As a command does it that is given the option."""
    monkeypatch.setenv("PCONV_BILLING_PROJECT", "")
    assert vars(ArgumentParser().parse_args(["--billing-project", "who-pays"])) == {}


@pytest.mark.parametrize("is_billed", [True, False])
def test_every_request_names_who_pays(bucket, gcs_server, is_billed, request):
    if is_billed:
        request.getfixturevalue("billed")
    with proxied(gcs_server) as proxy:
        storage.require_writable(bucket)
        storage.create(f"{bucket}/in/a", b"123")
        storage.replace(f"{bucket}/in/a", b"456", storage.read_versioned(f"{bucket}/in/a")[1])
        storage.overwrite(f"{bucket}/in/a", b"789")
        assert storage.read_range(f"{bucket}/in/a", 1, 1) == b"8" and storage.folders(bucket) == ["in"]
        assert storage.checksum(f"{bucket}/in/a") == storage.crc32c(b"789") and storage.changed(bucket) > 0
        storage.delete(f"{bucket}/in/a")
        assert storage.find(bucket) == []
    # Google's client asks once for the bucket itself, for its traces, and goes on whatever it is told.
    lines = [line for line in proxy.lines if "/o" in line]
    payers = [urllib.parse.parse_qs(urllib.parse.urlsplit(line).query).get("userProject") for line in lines]
    assert len(payers) >= 10 and all(payer == (["who-pays"] if is_billed else None) for payer in payers)
