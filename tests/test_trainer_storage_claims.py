"""Which of several jobs may replace what is in a folder: the same in a local folder and in a bucket."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trainer import storage
from trainer.errors import LeftRunning, UserError
from trainer.storage import claims


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """Address of an empty folder, local and in a bucket."""
    return str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("bucket") + "/place"


def left(place) -> list[str]:
    return storage.find(f"{place}/{claims.CLAIMS}")


def test_a_later_claim_refuses_all_earlier_ones(place):
    first, adding = claims.take(place, replaces=True), claims.take(place, replaces=False)
    for claim in (first, adding, None):
        claims.require(claim)
    second = claims.take(place, replaces=True)
    for claim in (first, adding):
        with pytest.raises(UserError, match=f"{place} is being written by another job, which started later"):
            claims.require(claim)
    claims.require(second)
    with claims.held(second):
        pass
    # The one that had claimed the folder stays refused, whoever writes there now.
    for _ in range(2):
        with pytest.raises(UserError, match=f"{place} (was written by another job|is being written)"):
            claims.require(first)
        claims.take(place, replaces=True)


def test_jobs_that_only_add_do_not_refuse_each_other(place):
    for claim in [claims.take(place, replaces=False) for _ in range(3)]:
        claims.require(claim)
        with claims.held(claim):
            pass
    assert storage.find(place) == [] and left(place) == []


def test_of_many_that_claim_at_the_same_moment_one_wins(place):
    start = threading.Barrier(8)

    def take(_):
        start.wait()
        try:
            return claims.take(place, replaces=True)
        except UserError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(take, range(8)))
    valid = []
    for outcome in outcomes:
        if isinstance(outcome, claims.Claim):
            try:
                claims.require(outcome)
                valid.append(outcome)
            except UserError:
                pass
    assert len(valid) == 1 and len(left(place)) == 1
    with claims.held(valid[0]):
        pass
    assert left(place) == []


@pytest.mark.parametrize("ends", [True, False])
def test_a_killed_jobs_claim_goes_when_a_later_job_succeeds(ends, place):
    claims.take(place, replaces=True)  # and then the job was killed
    joined = claims.take(place, replaces=False)
    try:
        with claims.held(joined):
            if not ends:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert bool(left(place)) != ends


def test_a_job_that_fails_gives_its_folder_back(place):
    with pytest.raises(ZeroDivisionError), claims.held(claims.take(place, replaces=True)):
        raise ZeroDivisionError
    assert left(place) == []


def test_a_job_that_goes_on_when_its_command_is_interrupted_keeps_its_claim(place):
    claim = claims.take(place, replaces=True)
    with pytest.raises(LeftRunning), claims.held(claim):
        raise LeftRunning
    assert len(left(place)) == 1
    claims.require(claim)


def test_other_files_beside_the_claims_mean_nothing(place):
    for name in ("notes.txt", "999999999999-0000000000000000", "-1-0", "000001"):
        storage.create(f"{place}/{claims.CLAIMS}/{name}", b"")
    claims.require(claims.take(place, replaces=False))
    with claims.held(claims.take(place, replaces=True)) as _:
        pass
    assert len(left(place)) == 4


def test_a_folder_that_was_emptied_is_no_longer_claimed(place):
    claim = claims.take(place, replaces=True)
    for address in left(place):
        storage.delete(address)
    with pytest.raises(UserError, match=f"{place} was written by another job, or emptied, since"):
        claims.require(claim)


def test_all_files_of_a_job_have_to_be_there(place):
    for name in ("a", "x/b"):
        storage.create(f"{place}/{name}", b"12")
    files = {"a": (2, storage.crc32c(b"12")), "x/b": None}
    claims.require_files(place, files)
    for name, known in (("a", (2, storage.crc32c(b"12"))), ("x/b", None)):
        data = storage.read(f"{place}/{name}")
        storage.delete(f"{place}/{name}")
        with pytest.raises(UserError, match=f"1 of 2 files that this job wrote are missing or changed, such as {name}"):
            claims.require_files(place, files)
        storage.create(f"{place}/{name}", data)
        assert (name, known) in files.items()
    storage.overwrite(f"{place}/a", b"123")
    with pytest.raises(UserError, match="1 of 2 files .* such as a"):
        claims.require_files(place, files)


def test_what_a_stale_list_lacks_is_asked_for_by_name(place, monkeypatch):
    storage.create(f"{place}/a", b"12")
    claim = claims.take(place, replaces=True)
    monkeypatch.setattr(storage, "scan", lambda address: iter(()))
    monkeypatch.setattr(storage, "find", lambda address, deep: [])
    claims.require_files(place, {"a": (2, storage.crc32c(b"12"))})
    claims.require(claim)


def test_a_manifest_is_taken_back_if_another_job_came_between(place):
    claim = claims.take(place, replaces=True)
    address = f"{place}/manifest.json"
    claims.publish(claim, address, b"first", storage.overwrite)
    assert storage.read(address) == b"first"

    def write_late(address, data):
        claims.take(place, replaces=True)
        storage.overwrite(address, data)

    with pytest.raises(UserError, match="started later"):
        claims.publish(claim, address, b"second", write_late)
    assert not storage.exists(address)


def test_claims_are_made_through_no_link(tmp_path):
    os.makedirs(tmp_path / "victim")
    storage.require_writable(str(tmp_path / "ours"))
    os.symlink(tmp_path / "victim", tmp_path / "ours" / claims.CLAIMS)
    with pytest.raises(UserError, match=f"{claims.CLAIMS} is a link"):
        claims.take(str(tmp_path / "ours"), replaces=True)
    assert os.listdir(tmp_path / "victim") == []
