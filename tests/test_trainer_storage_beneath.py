"""Local folders with links, pipes and hostile neighbors: what is outside stays as it is, each folder is listed once."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from trainer import storage
from trainer.errors import UserError
from trainer.storage import beneath

THEIRS = {"file": b"theirs", "a.jsonl": b"theirs too", "step-00000001-aaaaaaaa/model.npz": b"weights"}


@pytest.fixture
def victim(tmp_path):
    """A folder that is none of ours, and is checked at the end."""
    folder = tmp_path / "victim"
    for name, data in THEIRS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    yield folder
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == THEIRS


@pytest.fixture
def ours(tmp_path):
    folder = str(tmp_path / "ours")
    storage.require_writable(folder)
    return folder


def writes(address: str) -> list:
    """Every way to change what is at an address."""
    return [
        lambda: storage.create(address, b"ours"),
        lambda: storage.overwrite(address, b"ours"),
        lambda: storage.replace(address, b"ours", storage.read_versioned(address)[1]),
        lambda: storage.delete(address),
    ]


# Links


@pytest.mark.parametrize("name", ["link/file", "link/new", "link/deep/er/new", "real/link/file"])
def test_nothing_is_written_or_deleted_through_a_link(name, ours, victim):
    os.makedirs(f"{ours}/real")
    link = f"{ours}/{name.partition('link')[0]}link"
    os.symlink(victim, link)
    for write in writes(f"{ours}/{name}"):
        with pytest.raises(UserError, match=f"^{link} is a link: nothing is written or deleted through it"):
            write()


def test_a_link_to_a_file_is_replaced_or_removed_itself(ours, victim):
    address = f"{ours}/link"
    for change in writes(address)[1:]:
        os.symlink(victim / "file", address)
        change()
        assert not os.path.islink(address)
        storage.delete(address)
    os.symlink(victim / "file", address)
    with pytest.raises(storage.AlreadyExists):
        storage.create(address, b"ours")


def test_a_hard_link_of_a_file_is_replaced_or_removed_itself(ours, victim):
    for change in writes(f"{ours}/link")[1:]:
        os.link(victim / "file", f"{ours}/link")
        change()
        storage.delete(f"{ours}/link")


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_lock_file_that_is_a_link_empties_nothing(make, ours, victim):
    make(victim / "file", f"{ours}/.pointer.lock")
    try:
        storage.replace(f"{ours}/pointer", b"ours", 0)
    except UserError as error:
        assert make is os.symlink and f"{ours}/.pointer.lock is a link" in str(error)


def test_a_lock_file_that_is_a_pipe_holds_nobody_up(ours):
    os.mkfifo(f"{ours}/.pointer.lock")
    storage.replace(f"{ours}/pointer", b"ours", 0)
    assert storage.read(f"{ours}/pointer") == b"ours"


def test_names_that_lead_out_of_the_folder_are_refused(ours, victim):
    for name in ("../victim/file", "real/../../victim/file"):
        for write in writes(f"{ours}/{name}"):
            with pytest.raises(UserError, match="is not below"):
                write()


def test_the_users_own_links_to_the_folder_are_followed(ours, tmp_path):
    os.symlink(ours, tmp_path / "short")
    for folder in (str(tmp_path / "short"), str(tmp_path / "short" / "deep")):
        storage.require_writable(folder)
        storage.create(f"{folder}/x/file", b"1")
    assert storage.read(f"{ours}/x/file") == storage.read(f"{ours}/deep/x/file") == b"1"


def test_a_folder_that_becomes_a_link_during_the_job_is_refused(ours, victim):
    storage.create(f"{ours}/sub/file", b"1")
    os.rename(f"{ours}/sub", f"{ours}/gone")
    os.symlink(victim, f"{ours}/sub")
    with pytest.raises(UserError, match="sub is a link"):
        storage.overwrite(f"{ours}/sub/file", b"2")
    os.rename(ours, ours + "-gone")
    os.symlink(victim, ours)
    for write in writes(f"{ours}/file"):
        with pytest.raises(UserError, match=f"{ours} leads to {victim}. Expected {ours}"):
            write()


def test_a_folder_that_was_removed_is_made_again(ours):
    storage.create(f"{ours}/sub/file", b"1")
    os.unlink(f"{ours}/sub/file")
    os.rmdir(f"{ours}/sub")
    os.rmdir(ours)
    storage.create(f"{ours}/sub/file", b"2")
    assert storage.read(f"{ours}/sub/file") == b"2"


def test_a_folder_swapped_with_a_link_all_the_time_leads_nowhere(ours, victim):
    """Whoever swaps them meets the writer at every point between its system calls; nothing ever lands outside."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    if exchange is None:
        pytest.skip("needs renameat2 to swap two names at once")
    os.makedirs(f"{ours}/sub")
    os.symlink(victim, f"{ours}/link")
    stop, names = threading.Event(), [f"{ours}/sub".encode(), f"{ours}/link".encode()]

    def swap():
        while not stop.is_set():
            assert exchange(-100, names[0], -100, names[1], 2) == 0  # AT_FDCWD, RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = {True: 0, False: 0}
    try:
        while min(outcomes.values()) < 30:
            for change in (lambda a: storage.overwrite(a, b"ours"), storage.delete):
                try:
                    change(f"{ours}/sub/file")
                    outcomes[True] += 1
                except UserError as error:
                    # The latter where they were swapped back before the link was looked at.
                    assert "is a link" in str(error) or "Not a directory" in str(error)
                    outcomes[False] += 1
    finally:
        stop.set()
        thread.join()


# Drafts


def test_drafts_of_the_dead_are_swept_and_those_of_the_living_are_not(ours):
    for name in (".a.png.0123abcd", "x/.b.png.0123abcd", ".notes.20240101", ".a.png.lock", "a.png"):
        os.makedirs(os.path.dirname(f"{ours}/{name}"), exist_ok=True)
        with open(f"{ours}/{name}", "wb") as file:
            file.write(b"half")
    code = (
        "import os, sys, time\nfrom trainer.storage import beneath\n"
        "link = os.link\n"
        "def wait(*arguments, **options):\n"
        "    print('ready', flush=True); sys.stdin.readline(); link(*arguments, **options)\n"
        "os.link = wait\nbeneath.write(sys.argv[1], b'whole', once=True)\n"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen([*command, f"{ours}/living.png"], **pipes) as living,
        subprocess.Popen([*command, f"{ours}/killed.png"], **pipes) as killed,
    ):
        assert living.stdout.readline() == killed.stdout.readline() == b"ready\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
        assert sum(name.startswith(".killed.png.") for name in os.listdir(ours)) == 1
        storage.sweep(ours, lambda name: name.endswith(".png"))
        left = sorted(os.listdir(ours))
        assert len(left) == 5 and left[1].startswith(".living.png.")
        assert [left[0], *left[2:]] == [".a.png.lock", ".notes.20240101", "a.png", "x"] and not os.listdir(f"{ours}/x")
        living.stdin.write(b"\n")
        living.stdin.flush()
        assert living.wait(60) == 0
    assert storage.read(f"{ours}/living.png") == b"whole"


def test_a_draft_that_is_swept_before_it_is_locked_is_written_again(ours, monkeypatch):
    lock, swept = beneath._lock, []

    def late(file, wait):
        if not swept:
            swept.append([name for name in os.listdir(ours) if name.startswith(".file.")])
            os.unlink(f"{ours}/{swept[0][0]}")
        return lock(file, wait)

    monkeypatch.setattr(beneath, "_lock", late)
    storage.create(f"{ours}/file", b"whole")
    assert storage.read(f"{ours}/file") == b"whole" and os.listdir(ours) == ["file"]


def test_sweeping_follows_no_link(ours, victim):
    (victim / ".a.png.0123abcd").write_bytes(b"theirs")
    os.symlink(victim, f"{ours}/link")
    storage.sweep(ours, lambda _: True)
    storage.remove_folder(f"{ours}/link")
    assert os.path.islink(f"{ours}/link")
    (victim / ".a.png.0123abcd").unlink()


def _write_many(address: str) -> None:
    for number in range(50):
        storage.overwrite(address, b"%d" % number * 1000)


def test_writers_and_sweepers_at_once_lose_nothing(ours):
    writers = [multiprocessing.get_context("fork").Process(target=_write_many, args=(f"{ours}/{n}",)) for n in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        storage.sweep(ours, lambda _: True)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert sorted(os.listdir(ours)) == ["a", "b"] and storage.read(f"{ours}/a") == b"49" * 1000


def test_folders_without_files_are_removed(ours):
    for name in ("a/b/c", "a/d"):
        os.makedirs(f"{ours}/{name}")
    storage.create(f"{ours}/a/d/file", b"")
    storage.remove_folder(f"{ours}/a")
    assert storage.folders(f"{ours}/a") == ["d"]
    storage.delete(f"{ours}/a/d/file")
    storage.remove_folder(f"{ours}/a")
    storage.remove_folder(f"{ours}/nothing")
    assert os.listdir(ours) == []


# Listing


def found(folder) -> list[str]:
    return [storage.relative(address, str(folder)) for address in storage.find(str(folder))]


@pytest.mark.parametrize("links", [{"a": "."}, {"a": ".", "b": "."}, {"x/a": "..", "y/b": ".."}, {"a": "/"}])
def test_links_in_circles_add_nothing(links, tmp_path):
    for name in ("x/1.png", "y/2.png"):
        storage.create(f"{tmp_path}/in/{name}", b"")
    for name, target in links.items():
        os.symlink(target, tmp_path / "in" / name)
    assert found(tmp_path / "in") == ["x/1.png", "y/2.png"]
    assert storage.select(f"{tmp_path}/in/**/*.png").find() == storage.find(f"{tmp_path}/in")


def test_each_folder_is_listed_once_under_its_own_path_or_its_first_link(tmp_path):
    for name in ("in/real/1.png", "out/2.png", "out/deep/3.png"):
        storage.create(f"{tmp_path}/{name}", b"")
    links = {
        "in/a": "real",
        "in/z": "../out",
        "in/b": "../out",
        "in/real/c": "../../out/deep",
        "in/one.png": "real/1.png",
    }
    for name, target in links.items():
        os.symlink(target, tmp_path / name)
    # A link to a file is a file; out/ is listed under b, the first of its links, and what is below it as well.
    assert found(tmp_path / "in") == ["b/2.png", "b/deep/3.png", "one.png", "real/1.png"]
    assert found(tmp_path / "in" / "a") == ["1.png", "c/3.png"]  # asked for by a link


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/usr/bin/setpriv"), reason="needs setpriv as root")
def test_a_folder_that_may_not_be_listed_is_named(tmp_path):
    storage.create(f"{tmp_path}/in/open/1.png", b"")
    storage.create(f"{tmp_path}/in/closed/2.png", b"")
    code = (
        "import os, sys\nfrom trainer import storage\nfrom trainer.errors import UserError\n"
        "os.chmod(sys.argv[1] + '/closed', 0)\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for use in (storage.find, lambda folder: storage.folders(folder + '/closed')):\n"
        "    try: print(use(sys.argv[1]))\n"
        "    except UserError as error: print(error)\n"
    )
    above = [folder for folder in (tmp_path, *tmp_path.parents) if folder.stat().st_mode & 0o5 != 0o5]
    modes = [folder.stat().st_mode for folder in above]
    try:
        for folder in above:
            folder.chmod(0o755)
        shown = subprocess.run(
            [sys.executable, "-c", code, f"{tmp_path}/in"], capture_output=True, text=True, timeout=600
        )
    finally:
        for folder, mode in zip(above, modes, strict=True):
            folder.chmod(mode)
    assert shown.stdout.splitlines() == [f"{tmp_path}/in/closed cannot be listed: Permission denied"] * 2, shown.stderr


# What is no file


@pytest.fixture(params=["pipe", "socket", "device"])
def odd(request, tmp_path):
    """Address of something that is no regular file; reading it would wait or never end."""
    address = str(tmp_path / "odd.png")
    if request.param == "pipe":
        os.mkfifo(address)
    elif request.param == "socket":
        held = socket.socket(socket.AF_UNIX)
        request.addfinalizer(held.close)
        held.bind(address)
    else:
        os.symlink("/dev/zero", address)
    return address


@pytest.mark.timeout(60)
def test_only_regular_files_are_read(odd):
    assert storage.find(odd.rpartition("/")[0]) == [odd]
    for use in (storage.read, storage.checksum, storage.read_versioned, lambda a: storage.read_range(a, 0, 0)):
        with pytest.raises(UserError, match=f"{odd} cannot be read: expected a regular file"):
            use(odd)
