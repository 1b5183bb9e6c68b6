"""Buckets through faults on the way to a real server: what heals is not noticed, what stays is told.

The right value of each is what the same call gives without the fault.
"""

from __future__ import annotations

import os
import pickle
import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import clouds
import pytest
from faults import ANY, BUCKET, DELETE, DOWNLOAD, LIST, METADATA, UPLOAD, Fault, always, once_each, proxied

from pipelines.inpainting import outputs
from trainer import presets, runs, storage
from trainer.checkpoints import pointers
from trainer.errors import Denied, NotFound, Outage, UserError, is_outage
from trainer.storage import attempts, gcs

DATA = bytes(range(256)) * 5000


@pytest.fixture
def filled(bucket):
    """A bucket with a file of 1.28 MB and 25 small ones."""
    storage.create(f"{bucket}/data", DATA)
    for number in range(25):
        storage.create(f"{bucket}/many/{number:02d}", b"%d" % number)
    return bucket


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "_PAUSE", 0.004)


@pytest.fixture
def hurry(monkeypatch):
    """The same decisions after fractions of a second."""
    for name, seconds in {"_OUTAGE": 0.5, "_LOST": 0.3, "_DOUBT": 0.1}.items():
        monkeypatch.setattr(attempts, name, seconds)


READS = {
    "read": (lambda b: storage.read(f"{b}/data"), DOWNLOAD),
    "read_range": (lambda b: storage.read_range(f"{b}/data", 100, 1000), DOWNLOAD),
    "read_range to the end": (lambda b: storage.read_range(f"{b}/data", len(DATA) - 7, 1000), DOWNLOAD),
    "checksum": (lambda b: storage.checksum(f"{b}/data"), METADATA),
    "exists": (lambda b: (storage.exists(f"{b}/data"), storage.exists(f"{b}/nothing")), METADATA),
    "find": (lambda b: storage.find(f"{b}/many"), LIST),
    "folders": (lambda b: storage.folders(b), LIST),
    "entry": (lambda b: storage.entry(f"{b}/data").size, f"{LIST}|{METADATA}"),
}
SERVICE = {"gs": "Cloud Storage", "s3": "S3", "az": "Azure Blob Storage"}
KINDS = ["cut", "short", "empty", "closed", "lost", 401, 403, 404, 408, 429, 500, 503]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READS)
def test_a_fault_that_heals_is_not_noticed_by_who_reads(filled, server, name, kind):
    use, pattern = READS[name]
    expected = use(filled)
    fault = Fault(kind, pattern)
    with proxied(server, fault) as proxy:
        assert use(filled) == expected
    assert fault.count == 1 and len(proxy.lines) > 1


@pytest.mark.parametrize("start", [0, 1])
def test_flipped_bits_of_a_whole_object_are_read_again(filled, server, start):
    fault = Fault("flip", DOWNLOAD, lambda number: number < 2)
    with proxied(server, fault):
        assert storage.read(f"{filled}/data") == DATA
    assert fault.count == 2


def test_a_download_that_was_cut_is_checked_as_a_whole(filled, server):
    """The client itself would continue where it was cut, and then not compare the checksum."""
    cut, flipped = (
        Fault("cut", DOWNLOAD, lambda number: number == 0),
        Fault("flip", DOWNLOAD, lambda number: number == 1),
    )
    with proxied(server, cut, flipped):
        assert storage.read(f"{filled}/data") == DATA
    assert (cut.count, flipped.count) == (1, 1)


@pytest.mark.parametrize("kind", ["cut", "short", "empty", 503])
def test_a_list_of_many_pages_loses_and_repeats_nothing(filled, server, kind, monkeypatch):
    monkeypatch.setattr(gcs, "_PAGE", 4)
    fault = Fault(kind, LIST, once_each)
    with proxied(server, fault):
        assert storage.find(f"{filled}/many") == [f"{filled}/many/{number:02d}" for number in range(25)]
    # Only of Cloud Storage can a client ask for small pages; of the others, see test_trainer_storage_objects.
    assert fault.count == (7 if filled.startswith("gs:") else 1)


WRITES = {
    "create": lambda address: storage.create(address, b"new"),
    "replace": lambda address: storage.replace(address, b"new", 0),
    "overwrite": lambda address: storage.overwrite(address, b"new"),
}


@pytest.mark.parametrize("kind", ["lost", "cut", "short", "empty", "closed", 401, 403, 404, 408, 412, 429, 500, 503])
@pytest.mark.parametrize("name", WRITES)
def test_a_fault_that_heals_is_not_noticed_by_who_writes(bucket, server, name, kind):
    """The answer that is lost makes the next attempt meet its own object; a 412 is at times wrong."""
    fault = Fault(kind, UPLOAD)
    with proxied(server, fault):
        WRITES[name](f"{bucket}/x")
    assert fault.count == 1 and storage.read(f"{bucket}/x") == b"new"


def test_an_upload_in_pieces_whose_last_answer_is_lost(bucket, server):
    data = os.urandom(9 << 20)
    fault = Fault("lost", "PUT ")
    with proxied(server, fault):
        storage.create(f"{bucket}/big", data)
    assert fault.count == 1 and storage.read(f"{bucket}/big") == data


@pytest.mark.parametrize("kind", ["lost", 403, 404, 503])
def test_a_fault_that_heals_is_not_noticed_by_who_deletes(filled, server, kind):
    fault = Fault(kind, DELETE)
    with proxied(server, fault):
        storage.delete(f"{filled}/data")
    assert fault.count == 1 and not storage.exists(f"{filled}/data")


@pytest.mark.parametrize("theirs", [b"same", b"other"])
def test_bytes_of_another_writer_are_not_ours(bucket, server, theirs):
    """Also if they are equal: of two writers that count up from one value, one must lose."""
    storage.create(f"{bucket}/x", b"old")
    _, generation = storage.read_versioned(f"{bucket}/x")
    storage.replace(f"{bucket}/x", theirs, generation)
    fault = Fault("closed", UPLOAD)
    with proxied(server, fault):
        with pytest.raises(storage.Conflict):
            storage.replace(f"{bucket}/x", b"same", generation)
        with pytest.raises(storage.AlreadyExists):
            storage.create(f"{bucket}/x", b"same")
    assert fault.count == 1 and storage.read(f"{bucket}/x") == theirs


def test_counting_by_compare_and_swap_loses_nothing_although_answers_are_lost(bucket, server):
    start = threading.Barrier(4)

    def count_to_five(_):
        start.wait()
        done = 0
        while done < 5:
            data, generation = storage.read_versioned(f"{bucket}/count")
            try:
                storage.replace(f"{bucket}/count", b"%d" % (int(data or b"0") + 1), generation)
                done += 1
            except storage.Conflict:
                pass

    with proxied(server, Fault("lost", UPLOAD, lambda number: number % 3 == 0)), ThreadPoolExecutor(4) as pool:
        list(pool.map(count_to_five, range(4)))
    # More, where another writer's value replaced one whose answer was lost before its writer asked again.
    assert int(storage.read(f"{bucket}/count")) >= 20


@pytest.mark.parametrize("kind", ["cut", "short", "flip", "closed", 503])
def test_what_stays_broken_is_an_outage(filled, server, kind, hurry):
    with proxied(server, Fault(kind, ANY, always)), pytest.raises(Outage) as caught:
        storage.read(f"{filled}/data")
    message = str(caught.value)
    assert message.startswith(f"{filled}/data: no answer from {SERVICE[filled[:2]]}") and "\n" not in message
    assert is_outage(caught.value) and storage.is_transient(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == message  # it crosses processes


@pytest.mark.parametrize("kind", [401, 403])
@pytest.mark.parametrize("name", [*READS, "create", "delete"])
def test_what_stays_forbidden_is_denied(filled, server, name, kind, hurry):
    uses = {name: use for name, (use, _) in READS.items()}
    uses |= {"create": lambda b: storage.create(f"{b}/x", b""), "delete": lambda b: storage.delete(f"{b}/data")}
    fault = Fault(kind, ANY, always)
    with (
        proxied(server, fault),
        pytest.raises(Denied, match="may not be used: .*(injected|40[13])|no Google Cloud credentials"),
    ):
        uses[name](filled)
    assert fault.count >= 3


def test_wrong_use_is_told_within_seconds(server):
    """Of a bucket that never answered, by the constants themselves: at launch a user waits for them."""
    missing = f"{clouds.chosen.scheme}://pconv-{uuid.uuid4().hex[:12]}"
    assert 1 < attempts._DOUBT <= 5 and attempts._DOUBT < attempts._LOST < attempts._OUTAGE
    with clouds.reached(server), pytest.raises(NotFound):
        storage.require_writable(missing)


def test_a_bucket_that_has_answered_is_doubted_for_longer(filled, server, monkeypatch):
    """Credentials that are being renewed: of six answers that say no, a bucket that is new would have believed one."""
    monkeypatch.setattr(attempts, "_DOUBT", 0.0)
    monkeypatch.setattr(attempts, "_LOST", 60.0)
    with proxied(server, Fault(403, DOWNLOAD, lambda number: number < 6)) as proxy:
        storage.checksum(f"{filled}/data")  # of the verb that is asked for next
        assert storage.read(f"{filled}/data") == DATA
        assert sum(bool(re.match(DOWNLOAD, line)) for line in proxy.lines) == 7


@pytest.mark.parametrize("other", [403, 503, "closed"])
def test_absence_that_is_said_once_between_other_faults_is_not_believed(filled, server, other):
    faults = [Fault(other, DOWNLOAD), Fault(404, DOWNLOAD, lambda number: number == 1)]
    with proxied(server, *faults):
        assert storage.read_versioned(f"{filled}/data")[0] == DATA
    assert [fault.count for fault in faults] == [1, 1]


def test_a_server_without_a_scheme_is_told_at_once(bucket, server, monkeypatch):
    variable = [name for name, value in clouds.chosen.variables(server).items() if value.startswith(server)][-1]
    monkeypatch.setenv(variable, server.removeprefix("http://"))
    clouds.forget()
    with pytest.raises(UserError, match=f"^{variable}: expected http://HOST:PORT.* Received "):
        storage.find(bucket)


@pytest.mark.parametrize("kind", ["lost", "closed", "cut", "empty", 403, 404, 412, 503])
def test_a_run_starts_through_faults(bucket, server, kind):
    """What `trainer.train` writes first, and again when it continues: config.json and the claims of its pointers."""
    config, run = presets.PRESETS["demo"], f"{bucket}/run"
    fault = Fault(kind, UPLOAD, once_each)
    with proxied(server, fault):
        for _ in range(2):
            runs.settle_config(run, config)
            pointers.claim(run)
    assert fault.count >= 2 and runs.read_config(run) == config


@pytest.mark.parametrize("kind", ["lost", "closed", "cut", "empty", 403, 404, 412, 503])
def test_an_output_folder_is_claimed_through_faults(bucket, server, kind):
    fault = Fault(kind, UPLOAD)
    with proxied(server, fault):
        assert not outputs.claim_output(f"{bucket}/out", {"model": "m"}, False).is_own
    assert fault.count == 1


def test_absence_is_believed_when_it_is_said_twice(bucket, server):
    def count(use):
        with proxied(server) as proxy:
            use()
            return sum("/upload/" in line or line.partition("?")[0].endswith("/x") for line in proxy.lines)

    assert not storage.exists(f"{bucket}/x") and storage.read_versioned(f"{bucket}/x") == (None, 0)
    assert count(lambda: storage.exists(f"{bucket}/x")) == 2
    assert count(lambda: storage.read_versioned(f"{bucket}/x")) == 2
    assert count(lambda: storage.overwrite(f"{bucket}/x", b"")) == 2  # one of them writes: no certainty is needed
    assert count(lambda: storage.exists(f"{bucket}/x")) == count(lambda: storage.read_versioned(f"{bucket}/x")) == 1


def test_a_name_that_is_too_long_is_nobodys_outage(bucket):
    with pytest.raises(storage.Unwritable, match="at most 1024 bytes"):
        storage.create(f"{bucket}/{'é' * 520}", b"")
    assert issubclass(storage.Unwritable, UserError)


def test_a_managed_folder_is_listed_where_its_neighbors_may_not_be_asked_for(bucket, server):
    """As Google does it: whoever may read ``in/`` alone is denied the object ``in``, whether there is one or not."""
    for name in ("in/a.png", "in/b/c.png", "input.png"):
        storage.create(f"{bucket}/{name}", b"x")
    denied = Fault(403, rf"GET /storage/v1/b/[^/]+/o/(in|out)\?|HEAD /{BUCKET}/(in|out)$", always)
    with proxied(server, denied):
        assert storage.find(f"{bucket}/in") == [f"{bucket}/in/a.png", f"{bucket}/in/b/c.png"]
        assert denied.count
        with pytest.raises(Denied):
            storage.find(f"{bucket}/out")


def test_a_managed_folder_may_have_a_name_of_wildcards(bucket, server):
    """Nor may its account list the objects whose names merely begin like that of the folder."""
    for name in ("x [v2]/a.png", "x v/b.png"):
        storage.create(f"{bucket}/{name}", b"x")
    denied = Fault(403, r"[?&]prefix=[^&]*%5D(&|$)", always)
    with proxied(server, denied):
        assert storage.select(f"{bucket}/x [v2]/*.png").find() == [f"{bucket}/x [v2]/a.png"]
        assert denied.count or clouds.chosen.scheme != "gs"  # the others are asked for no beginnings of names
