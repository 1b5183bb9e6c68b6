"""s3:// and az://: what is said before there is a server, and what only servers of S3 and Azure do (``--store``)."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import clouds
import pytest
from faults import DOWNLOAD, LIST, Fault, once_each, proxied

from trainer import storage
from trainer.errors import Denied, UserError
from trainer.storage import attempts
from trainer.storage.objects import services

NOTHING = "/nowhere/credentials"
SET = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "az": "AZURE_STORAGE_ACCOUNT_NAME"}


@pytest.fixture
def bare(monkeypatch):
    """An environment with nothing in it about a cloud, and no machine that would know more."""
    for name in [name for name in clouds.os.environ if name.startswith(("AWS_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AZURE_MSI_ENDPOINT", "http://127.0.0.1:9/metadata/identity/oauth2/token")
    monkeypatch.setattr(attempts, "_DOUBT", 0.1)
    services.client.cache_clear()
    yield monkeypatch
    services.client.cache_clear()


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_a_scheme_without_its_client_says_what_to_install(scheme, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    extra = {"s3": "s3", "az": "azure"}[scheme]
    with pytest.raises(
        UserError, match=rf"^{scheme}://bucket/a: {scheme}:// needs obstore: pip install 'pconv\[{extra}\]'"
    ):
        storage.normalize(f"{scheme}://bucket/a")
    assert storage.normalize("gs://bucket/a/") == "gs://bucket/a"


@pytest.mark.parametrize("address", ["s3://", "s3://a/b", "s3://Bucket/a", "s3://b*c/a", "az://-abc/a", "az://a.b.c/a"])
def test_names_that_no_bucket_has_are_refused(address):
    with pytest.raises(UserError, match=rf"^expected {address[:2]}://bucket/name. Received '{address[:6]}"):
        storage.normalize(address.replace("*", "*"))


@pytest.mark.parametrize("name", ["a//b", "../b", "a/./b", "a/..", "a\nb", "a\x7f"])
def test_names_that_the_client_cannot_ask_for_are_told(bare, name):
    for use in (storage.exists, storage.read, lambda address: storage.create(address, b"")):
        with pytest.raises(storage.Unwritable, match="expected a name without empty parts, '.', '..' and control char"):
            use(f"s3://bucket/{name}")


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_who_has_no_credentials_is_told_what_to_set(bare, scheme):
    with pytest.raises(UserError, match=f"et {SET[scheme]}") as caught:
        storage.require_writable(f"{scheme}://bucket/a")
    assert "\n" not in str(caught.value) and "bucket" in str(caught.value)
    bare.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    services.client.cache_clear()
    with pytest.raises(Denied, match=f"^no credentials for {scheme}://bucket.*set {SET[scheme]}"):
        storage.require_writable(f"{scheme}://bucket/a")


@pytest.mark.parametrize(("scheme", "variable"), [("s3", "AWS_ENDPOINT_URL"), ("az", "AZURE_STORAGE_ENDPOINT")])
def test_a_server_that_does_not_answer_is_an_outage_that_names_it(bare, scheme, variable):
    bare.setattr(attempts, "_OUTAGE", 0.1)
    for cloud in (clouds.CLOUDS["s3"], clouds.CLOUDS["az"]):
        for name, value in cloud.variables("http://127.0.0.1:9").items():
            bare.setenv(name, value)
    bare.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2021&sig=secret")
    with pytest.raises(storage.Outage, match="no answer from .*: http://127.0.0.1:9: Connection refused") as caught:
        storage.find(f"{scheme}://bucket/a")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    bare.setenv(variable, "localhost:9000")
    services.client.cache_clear()
    with pytest.raises(UserError, match=f"^{variable}: expected http://HOST:PORT or https://HOST. Received localhost"):
        storage.find(f"{scheme}://bucket/a")


@pytest.fixture
def ours(bucket):
    """A bucket of one of the two services."""
    if clouds.chosen.scheme == "gs":
        pytest.skip("runs with --store s3 and --store az (make engines)")
    return bucket


def test_an_object_of_somebody_else_is_read_to_know_its_checksum(ours, server):
    data = bytes(range(256)) * 9000
    clouds.chosen.put(server, f"{ours[5:]}/in/theirs", data)
    storage.create(f"{ours}/in/ours", data)
    with proxied(server) as proxy:
        assert storage.checksum(f"{ours}/in/ours") == storage.crc32c(data)
        assert len(proxy.lines) == 1
        assert storage.checksum(f"{ours}/in/theirs") == storage.crc32c(data)
        assert len(proxy.lines) == 3
    first = storage.stamp(f"{ours}/in/theirs")
    assert first and storage.stamp(f"{ours}/in/theirs") == first and storage.stamp(f"{ours}/in/ours") == ""
    clouds.chosen.put(server, f"{ours[5:]}/in/theirs", data[::-1])
    assert storage.stamp(f"{ours}/in/theirs") not in ("", first)
    assert storage.read(f"{ours}/in/theirs") == data[::-1]


@pytest.mark.parametrize("kind", ["short", 503])
def test_a_list_of_many_pages_loses_and_repeats_nothing(ours, server, kind):
    """Of a thousand objects each, which no client can make fewer."""
    if clouds.chosen.scheme != "s3":
        pytest.skip("a page of Azure's has five thousand, which take Azurite minutes")
    names = [f"{ours}/in/{number:05d}" for number in range(2100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.create(name, b"1"), names))
    fault = Fault(kind, LIST, once_each)
    with proxied(server, fault) as proxy:
        assert storage.find(f"{ours}/in") == names
    assert fault.count >= 2 and sum("list" in line for line in proxy.lines) >= 4


def test_what_is_written_can_be_told_from_what_was_damaged(ours, server):
    """Neither service tells bits that flip: the checksum that was written with the object does."""
    storage.create(f"{ours}/data", bytes(1000))
    fault = Fault("flip", DOWNLOAD)
    with proxied(server, fault):
        assert storage.read(f"{ours}/data") == bytes(1000)
    assert fault.count == 1


def test_a_store_without_conditions_is_refused_at_launch(ours, server, monkeypatch):
    """Behind a proxy that drops them from requests, which carry no signature here."""
    if clouds.chosen.scheme != "s3":
        pytest.skip("Azure's signatures cover them")
    clouds.chosen.open_to_all(server, ours[5:])
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with proxied(server) as proxy:
        storage.require_writable(f"{ours}/run")
    for dropped in ({"if-match"}, {"if-none-match"}, {"if-match", "if-none-match"}):
        with proxied(server) as proxy:
            proxy.drops = dropped
            storage.SCHEMES["s3"]._tried.clear()
            with pytest.raises(UserError, match=f"^{ours}: expected a store that heeds If-None-Match and If-Match"):
                storage.require_writable(f"{ours}/run")
    assert storage.find(ours) == storage.find(f"{ours}/run") == []
    assert not list(storage.store_of(ours)._list(ours))
