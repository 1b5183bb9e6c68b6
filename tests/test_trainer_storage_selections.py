"""What an address of a user's means: names that look like patterns, in a folder and in a bucket."""

from __future__ import annotations

import bisect
import errno
import itertools
import os
import random
import time

import pytest

from trainer import storage
from trainer.errors import Denied, UserError
from trainer.storage import names, selections
from trainer.storage.selections import compile_glob

# Folders with names of wildcards, and beside each what the name matches as a pattern.
DECOYS = {
    "x [v2]": ("x v", "x 2"),
    "50%*": ("50%off", "50%"),
    "who?": ("whom", "who1"),
    "[!a]": ("b", "!"),
    "**": ("any", "thing"),
}


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """Address of an empty folder, local and in a bucket."""
    return str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("bucket") + "/place"


def below(place: str, address: str) -> list[str]:
    return [name.removeprefix(place + "/") for name in storage.select(f"{place}/{address}").find()]


@pytest.mark.parametrize("name", DECOYS)
def test_what_exists_is_meant_by_its_name(name, place):
    for folder in (name, *DECOYS[name]):
        for file in ("a.png", "sub/b.png", "c.txt"):
            storage.create(f"{place}/{folder}/{file}", b"1")
    whole = [f"{name}/{file}" for file in ("a.png", "c.txt", "sub/b.png")]
    assert below(place, name) == below(place, f"{name}/") == below(place, f"{name}/**") == whole
    assert storage.select(f"{place}/{name}").base == f"{place}/{name}"
    # Only what comes after it is a pattern.
    assert below(place, f"{name}/*.png") == whole[:1]
    assert below(place, f"{name}/**/*.png") == [whole[0], whole[2]]
    assert storage.select(f"{place}/{name}/*.png").base == f"{place}/{name}"
    # A file of that name, too.
    storage.create(f"{place}/files/{name}", b"1")
    storage.create(f"{place}/files/{DECOYS[name][0]}", b"1")
    assert below(place, f"files/{name}") == [f"files/{name}"]
    assert storage.select(f"{place}/files/{name}") == storage.Selection(f"{place}/files", name=name)


@pytest.mark.parametrize("name", DECOYS)
def test_what_does_not_exist_is_a_pattern(name, place):
    for folder in DECOYS[name]:
        storage.create(f"{place}/{folder}/a.png", b"1")
    assert set(below(place, f"{name}/*.png")) >= {f"{folder}/a.png" for folder in DECOYS[name] if folder != "50%"}
    assert storage.select(f"{place}/{name}/*.png").base == place


@pytest.mark.parametrize("name", DECOYS)
def test_the_projects_own_calls_have_no_patterns(name, place):
    for folder in (name, *DECOYS[name]):
        storage.create(f"{place}/{folder}/a.png", b"1")
        storage.create(f"{place}/{folder}/sub/a.png", b"1")
    folder = f"{place}/{name}"
    assert storage.find(folder) == [f"{folder}/a.png", f"{folder}/sub/a.png"]
    assert storage.find(folder, deep=False) == [f"{folder}/a.png"]
    assert storage.folders(folder) == ["sub"]
    assert storage.find(f"{place}/[w]hom") == []


def test_only_folders_that_may_hold_a_match_are_listed(tmp_path, monkeypatch):
    for name in ("a1/x/1.png", "a1/y/2.png", "a2/x/deep/3.png", "b/x/4.png", "x [v2]/in/5.png"):
        storage.create(f"{tmp_path}/place/{name}", b"")
    listed, scandir = [], os.scandir

    def watched(folder):
        listed.append(os.path.relpath(folder, tmp_path))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", watched)

    def visited(address: str) -> list[str]:
        listed.clear()
        storage.select(f"{tmp_path}/{address}").find()
        return sorted(listed)

    assert visited("place/a*/x/*.png") == ["place", "place/a1", "place/a1/x", "place/a2", "place/a2/x"]
    assert visited("place/*2/**") == ["place", "place/a2", "place/a2/x", "place/a2/x/deep"]
    assert visited("place/*.png") == ["place"]
    # What exists lists nothing above itself.
    assert visited("place/x [v2]") == ["place/x [v2]", "place/x [v2]/in"]
    assert visited("place/x [v2]/in/*.png") == ["place/x [v2]/in"]
    assert visited("place/x [v2]/in/5.png") == []


def test_a_link_that_a_pattern_names_is_followed(tmp_path):
    storage.create(f"{tmp_path}/real/1.png", b"")
    os.symlink("real", tmp_path / "link")
    assert below(str(tmp_path), "link/*.png") == below(str(tmp_path), "l*/*.png") == ["link/1.png"]
    assert below(str(tmp_path), "*/*.png") == ["real/1.png"]  # each folder once


def test_objects_that_no_file_can_be_called(bucket, gcs_server):
    """``a//b`` and ``a/b`` are two objects; so are ``a/../b`` and ``b``."""
    objects = ["a/b", "a//b", "a/../b", "b", "/b", "a/./b"]
    for name in objects:
        storage.create(f"{bucket}/in/{name}", name.encode())
    found = storage.find(f"{bucket}/in")
    assert sorted(storage.relative(address, f"{bucket}/in") for address in found) == sorted(objects)
    for address in found:
        name = storage.relative(address, f"{bucket}/in")
        assert storage.join(f"{bucket}/in", name) == address and storage.read(address) == name.encode()
    assert below(bucket, "in//*") == ["in//b"] and below(bucket, "in/a//**") == ["in/a//b"]
    with pytest.raises(ValueError, match="is not below"):
        storage.relative(f"{bucket}/inside", f"{bucket}/in")


LEFT = ["Thumbs.db", "desktop.ini", "Desktop.ini", ".DS_Store", "__MACOSX/._a.png", "__MACOSX/a.png", "._a.png"]
LEFT += ["@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg", "$RECYCLE.BIN/$R1.png", "lost+found/#1", "sub/ehthumbs.db"]
LEFT += ["System Volume Information/x", "Icon\r"]


def test_what_systems_leave_in_folders_is_not_found_unless_asked_for(place):
    can_have = [name for name in LEFT if name != "Icon\r" or not place.startswith(("s3:", "az:"))]
    for name in [*can_have, "a.png", "sub/thumbs.png", "desktop.ini.png"]:
        storage.create(f"{place}/{name}", b"1")
    assert below(place, "") == below(place, "**") == ["a.png", "desktop.ini.png", "sub/thumbs.png"]
    assert below(place, "*") == ["a.png", "desktop.ini.png"]
    assert storage.folders(place) == ["sub"]
    for name in ("Thumbs.db", "lost+found/#1", "__MACOSX/a.png"):
        assert below(place, name) == [name]
    assert below(place, "__MACOSX") == ["__MACOSX/a.png"]


def test_what_is_hidden_among_many_may_be_so():
    for hidden in {*LEFT, *(name.upper() for name in LEFT), *names._LEFT_BEHIND, ".a", "b/.c/d"}:
        assert names.is_hidden(hidden) and names.may_hide(f"/in/a.png\0/in/{hidden}\0/in/b.png"), hidden
    assert not names.may_hide("/in/a.png\0/in/b/thumb.png")


def test_every_file_is_in_one_batch_and_the_first_is_not_waited_for():
    for count in (0, 1, 2, 12, 1111, 5000):
        listed = iter([storage.Entry(str(number), number) for number in range(count)])
        batches = storage.in_batches(listed)
        found = list(itertools.islice(batches, 1))
        assert [len(some) for some in found] == [1][:count] and len(list(listed)) == max(0, count - 1)
    batches = list(storage.in_batches(storage.Entry(str(number), number) for number in range(5000)))
    assert [entry.size for some in batches for entry in some] == [*range(5000)] and max(map(len, batches)) == 1000


def test_folders_that_may_not_be_listed_are_told(tmp_path, monkeypatch):
    for name in ("open/1.png", "closed/2.png", "open/shut/3.png"):
        storage.create(f"{tmp_path}/in/{name}", b"")
    scandir = os.scandir

    def guarded(folder):
        if os.path.basename(folder) in ("closed", "shut"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    for address in (f"{tmp_path}/in", f"{tmp_path}/in/**", f"{tmp_path}/in/**/*.png"):
        lost: dict[str, Denied] = {}
        assert storage.select(address).find(lost) == [f"{tmp_path}/in/open/1.png"]
        assert sorted(lost) == [f"{tmp_path}/in/closed", f"{tmp_path}/in/open/shut"]
        for folder, error in lost.items():
            assert str(error) == f"{folder} cannot be listed: Permission denied"
        with pytest.raises(Denied, match="cannot be listed: Permission denied"):
            storage.select(address).find()
    # A pattern that does not go there does not meet it.
    assert storage.select(f"{tmp_path}/in/o*/*.png").find() == [f"{tmp_path}/in/open/1.png"]


def test_addresses_that_are_not_utf8_are_refused(tmp_path):
    for use in (storage.normalize, storage.select):
        with pytest.raises(UserError, match=r"expected an address in UTF-8. Received .*/caf\\xe9\."):
            use(f"{tmp_path}/" + os.fsdecode(b"caf\xe9"))


def test_would_be_members(tmp_path):
    folder, glob = storage.Selection("/d/in"), storage.Selection("/d", glob="*/*.png")
    one = storage.Selection("/d", name="a.png")
    assert folder.holds("/d/in/x/a.png") and not folder.holds("/d/in2/a.png") and not folder.holds("/d/a.png")
    assert glob.holds("/d/x/a.png") and not glob.holds("/d/a.png") and not glob.holds("/e/x/a.png")
    assert one.holds("/d/a.png") and not one.holds("/d/b.png")
    assert storage.Selection("/").holds("/a") and storage.Selection("/", glob="*").holds("/a")


@pytest.mark.parametrize("address", ["/d", "/d/*.png", "/", "/*", "/**", "gs://bucket/in"])
def test_the_address_of_a_selection_means_the_same(address, monkeypatch):
    selected = storage.Selection("gs://bucket/in") if address.startswith("gs") else storage.select(address)
    assert selected.address == address


def test_sets_stay_within_a_folder():
    assert compile_glob("x[a/b]").fullmatch("x[a/b]") and not compile_glob("x[a/b]").fullmatch("xa")


# Long names


def long_names() -> list[str]:
    """Names of 236 to 255 bytes: of one, two and four bytes a character, and without an extension."""
    found = []
    for length in (236, 237, 245, 246, 249, 250, 254, 255):
        for letter in "aé😀":
            width = len(letter.encode())
            room = length - len(".png")
            found.append("x" * (room % width) + letter * (room // width) + ".png")
        found.append("n" * length)
    return found


def test_files_of_any_name_that_a_folder_takes_are_written(tmp_path):
    for number, name in enumerate(long_names()):
        address = f"{tmp_path}/{number}/{name}"
        storage.create(address, b"1")
        storage.overwrite(address, b"2")
        storage.replace(address, b"3", storage.read_versioned(address)[1])
        with pytest.raises(storage.AlreadyExists):
            storage.create(address, b"4")
        assert storage.read(address) == b"3"
        lock, file = sorted(os.listdir(tmp_path / str(number)))
        assert file == name and lock.startswith(".") and lock.endswith(".lock")
        storage.delete(address)
        assert os.listdir(tmp_path / str(number)) == [lock]


def test_names_are_shortened_alike_and_apart():
    for name in long_names():
        assert names.shorten(name) == name
        for size in (40, 236, 250):
            short = names.shorten(name, size)
            assert len(short.encode()) <= size and names.shorten(name, size) == short
            assert os.path.splitext(short)[1] == (".png" if name.endswith(".png") else "")
    alike = ["a" * 251 + end for end in ("1.png", "2.png", "3.png")]
    assert len({names.shorten(name, 245) for name in alike}) == 3
    odd = os.fsdecode(b"\xff" * 250 + b".jpg")
    assert len(os.fsencode(names.shorten(odd, 245))) <= 245


def test_drafts_of_killed_writers_are_swept_though_their_names_are_long(tmp_path):
    name = "a" * 251 + ".png"
    draft = f".{names.shorten(name, 245)}.0123abcd"
    (tmp_path / draft).write_bytes(b"half")
    storage.sweep(str(tmp_path), lambda path: path.endswith(".jpg"))
    assert os.listdir(tmp_path) == [draft]
    storage.sweep(str(tmp_path), lambda path: path.endswith(".png"))
    assert os.listdir(tmp_path) == []


# Cut into parts that are listed at the same time


def names_of(rng: random.Random) -> set[str]:
    """Names in one of the ways that cameras, crawlers and people have."""
    kind, count = rng.randrange(6), rng.randrange(1, 300)
    if kind == 0:
        return {f"IMG_{number:08d}.jpg" for number in range(count)}
    if kind == 1:
        return {f"{rng.getrandbits(32):08x}.png" for _ in range(count)}
    if kind == 2:
        return {f"class {number % 7}/{number}" for number in range(count)} | {"class 3", "class"}
    if kind == 3:
        return {
            "".join(rng.choice("aé\u4e00\U0001f600~ \x7f") for _ in range(rng.randrange(1, 9))) for _ in range(count)
        }
    if kind == 4:
        return {"a" * length for length in range(1, min(count, 200))} | {"b"}
    return {f"{'x' * 50}/{number}" for number in range(count)} | {"lone.png"}


def test_a_cut_list_has_each_name_once(soak, monkeypatch):
    monkeypatch.setattr(selections, "_PAGE", 10)
    for seed in range(2000 if soak else 100):
        rng = random.Random(seed)
        ordered, count = sorted(names_of(rng) | names_of(rng)), rng.randrange(2, 40)

        def look(start, end, most, ordered=ordered):
            last = bisect.bisect_left(ordered, end) if end else len(ordered)
            return ordered[bisect.bisect_left(ordered, start) : last][:most]

        starts = selections.cut_names(look, count)
        assert starts[0] == "" and starts == sorted(set(starts))
        sizes = [len(look(start, end, 10**9)) for start, end in zip(starts, [*starts[1:], ""], strict=True)]
        assert sum(sizes) == len(ordered)
        # Where there are enough names for it, no part has them all, unless each name begins the next one.
        assert len(ordered) <= 10 * selections._WIDE or len(sizes) > 1 or "aaa" in ordered, ordered


def test_two_million_numbered_names_are_cut_evenly_by_a_few_hundred_requests():
    looks, width = itertools.count(), len("in/00000000.jpg")

    def look(start, end, most):
        next(looks)
        begin = bisect.bisect_left(range(2_000_000), start, key=lambda number: f"in/{number:08d}.jpg")
        last = (
            bisect.bisect_left(range(2_000_000), end, key=lambda number: f"in/{number:08d}.jpg") if end else 2_000_000
        )
        return [f"in/{number:08d}.jpg" for number in range(begin, min(last, begin + most))]

    starts = selections.cut_names(look, 32)
    assert all(len(start) < width for start in starts)
    numbers = [int(start.removeprefix("in/").ljust(8, "0") or 0) for start in starts] + [2_000_000]
    sizes = [end - begin for begin, end in itertools.pairwise(numbers)]
    assert sum(sizes) == 2_000_000 and max(sizes) <= 100_000 and 20 <= len(sizes) <= 200
    assert next(looks) < 700


def test_a_list_is_not_cut_by_more_requests_than_it_takes():
    """Of 100,000 names in folders of 1,000: 100 requests; to cut these into as many parts took 330."""
    requests, ordered = itertools.count(), [f"{number // 1000:05d}/{number:09d}.jpg" for number in range(100_000)]

    def look(start, end, most):
        last = bisect.bisect_left(ordered, end) if end else len(ordered)
        found = ordered[bisect.bisect_left(ordered, start) : last][:most]
        for _ in range(0, max(1, len(found)), 1000):
            next(requests)
        return found

    starts = selections.cut_names(look, 32)
    assert starts == ["", *(f"{number:04d}" for number in range(1, 10))]
    assert next(requests) < 80


def test_parts_of_a_selection_find_what_it_finds(place, monkeypatch):
    monkeypatch.setattr(selections, "_PAGE", 1)
    for number in range(60):
        storage.create(f"{place}/in/{number % 3}/{number:03d}.{'png' if number % 2 else 'txt'}", bytes(number))
    for name in ("a.png", ".hidden/b.png", "c é.png"):
        storage.create(f"{place}/in/{name}", b"1")
    storage.create(f"{place}/in-2/d.png", b"1")
    for pattern in ("in", "in/**", "in/**/*.png", "in/*.png", "in/1/*", "in/a.png", "in/nothing"):
        whole = storage.select(f"{place}/{pattern}")
        parts = whole.cut()
        assert sorted(found for part in parts for found in part.scan()) == sorted(whole.scan()), pattern
        assert sorted(address for part in parts for address in part.find()) == whole.find(), pattern
    assert len(storage.select(f"{place}/in").cut()) >= 8
    assert len(storage.select(f"{place}/in/a.png").cut()) == 1


def test_a_version_is_another_one_for_other_contents(place):
    address = f"{place}/a.png"
    assert storage.entry(address).size == 0
    storage.create(address, b"first")
    if not storage.is_remote(place):  # long enough ago for the clock of any file system
        os.utime(address, (1, 1))
        time.sleep(0.2)
    one = storage.entry(address)
    assert one.version and one == storage.entry(address) == next(storage.select(place).entries())
    storage.overwrite(address, b"other")
    if not storage.is_remote(place):
        time.sleep(0.2)
    other = storage.entry(address)
    assert (one.size, other.size) == (5, 5) and other.version not in ("", one.version)


def test_a_local_file_that_was_written_just_now_has_no_version(tmp_path):
    (tmp_path / "a.png").write_bytes(b"first")
    assert storage.entry(f"{tmp_path}/a.png").version == ""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert storage.entry(f"{tmp_path}/link")[1:3] == (0, f"error {errno.ENOENT}")
