"""Members of archives against `tarfile` reading the whole file, with as few bytes read as that takes."""

from __future__ import annotations

import collections
import dataclasses
import io
import random
import tarfile

import pytest

from pipelines.image_dataset.parts import Part, TarError, list_members, list_part
from trainer import storage

FORMATS = {"GNU": tarfile.GNU_FORMAT, "PAX": tarfile.PAX_FORMAT, "USTAR": tarfile.USTAR_FORMAT}


def make_tar(files: dict[str, bytes], format=tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


FILES = {
    f"{'long/' * (number % 3 * 30)}{number} é \udcff.JPEG": bytes([number]) * (number * 333) for number in range(20)
}


@pytest.mark.parametrize("format", FORMATS)
def test_members_lie_where_tarfile_finds_them(format, tmp_path):
    if format == "USTAR":  # has no room for longer ones
        files = {name.removeprefix("long/" * 60): data for name, data in FILES.items()}
    else:
        files = FILES
    data = make_tar(files, FORMATS[format])
    (tmp_path / "a.tar").write_bytes(b"before" + data + b"behind")
    found = list(list_members(str(tmp_path / "a.tar"), 6, len(data)))
    whole = (tmp_path / "a.tar").read_bytes()
    assert {member.name: whole[member.start : member.start + member.size] for member in found} == files
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        assert [(m.name, m.start - 6, m.size) for m in found] == [(i.name, i.offset_data, i.size) for i in archive]


def test_what_is_no_file_is_left_out_or_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in [
            ("folder", tarfile.DIRTYPE),
            ("./a", tarfile.REGTYPE),
            ("/b", tarfile.REGTYPE),
            ("../c", tarfile.REGTYPE),
            ("folder/._a", tarfile.REGTYPE),
            (".git/a", tarfile.REGTYPE),
            ("link", tarfile.SYMTYPE),
            ("pipe", tarfile.FIFOTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
    found = {member.name: member.problem for member in list_members(str(tmp_path / "a.tar"))}
    assert list(found) == ["a", "b", "../c", "link", "pipe"]
    assert not found["a"] + found["b"] + found["../c"] and "expected a file" in found["link"] and found["pipe"]


@pytest.mark.parametrize("near", [0, 256 << 10])  # of a folder, and less than members of a bucket
def test_an_index_reads_little(near, tmp_path, monkeypatch):
    big = make_tar({f"{number}.tar": bytes(1 << 20) for number in range(40)})
    (tmp_path / "a.tar").write_bytes(big)
    lengths, read_range = [], storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda a, s, n: lengths.append(n) or read_range(a, s, n))
    monkeypatch.setattr(storage, "near", lambda address: near)
    assert len(list(list_members(str(tmp_path / "a.tar")))) == 40
    assert sum(lengths) < len(big) / 100 and len(lengths) <= 43


def test_of_a_bucket_near_headers_come_together(tmp_path, monkeypatch):
    data = make_tar({f"{number}.JPEG": bytes(20_000) for number in range(500)})  # 10 MB
    (tmp_path / "a.tar").write_bytes(data)
    expected = list(list_members(str(tmp_path / "a.tar")))
    requests, read_range = [], storage.read_range
    monkeypatch.setattr(storage, "near", lambda address: 4 << 20)
    monkeypatch.setattr(storage, "read_range", lambda a, s, n: requests.append(n) or read_range(a, s, n))
    assert list(list_members(str(tmp_path / "a.tar"))) == expected
    assert len(requests) < 20 and max(requests) <= 8 << 20  # 500 at one header a request


def test_of_a_tar_among_many_headers_alone_are_read(tmp_path, monkeypatch):
    rng = random.Random(0)  # sizes as ImageNet's: about 110 kB
    data = make_tar({f"{number}.JPEG": bytes(round(rng.lognormvariate(11.5, 0.5))) for number in range(200)})
    (tmp_path / "a.tar").write_bytes(b"before" + data)
    part = Part(split="train", address=f"{tmp_path}/a.tar", start=6, bytes=len(data), member="n01.tar", synset="n01")
    expected = list(list_part(part))
    lengths, read_range = [], storage.read_range
    monkeypatch.setattr(storage, "near", lambda address: 4 << 20)
    monkeypatch.setattr(storage, "read_range", lambda a, s, n: lengths.append(n) or read_range(a, s, n))
    assert list(list_part(part)) == expected and len(expected) == 200
    assert sum(lengths) < len(data) / 20 and len(lengths) <= 203
    lengths.clear()  # thumbnails: a request saved is worth the bytes
    data = make_tar({f"{number}.JPEG": bytes(2_000) for number in range(2_000)})
    (tmp_path / "a.tar").write_bytes(b"before" + data)
    assert len(list(list_part(dataclasses.replace(part, bytes=len(data))))) == 2_000
    assert len(lengths) < 20


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_archives_end_with_a_reason(format, tmp_path, soak):
    files = {f"{number}.JPEG": bytes([number]) * (number * 100) for number in range(1, 15)}
    data = make_tar(files, FORMATS[format])
    headers = [data.index(name.encode()) for name in files]
    rng, path, outcomes = random.Random(0), tmp_path / "a.tar", collections.Counter()
    for _ in range(5000 if soak else 200):
        broken = bytearray(data)
        if rng.random() < 0.3:
            del broken[rng.randrange(headers[-1] + 512 + 1400) :]
        else:
            for _ in range(rng.randint(1, 6)):
                broken[rng.choice(headers) + rng.randrange(512)] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        found, lost = {}, ""
        try:
            for member in list_members(str(path)):
                found[member.name] = member
                lost = lost or member.problem
        except TarError as error:
            lost = str(error)
        whole = {
            name for name, m in found.items() if not m.problem and broken[m.start : m.start + m.size] == files.get(name)
        }
        outcomes[bool(lost)] += 1
        assert lost or len(found) == len(files), "members were lost, and nothing said so"
        assert lost or whole == set(files)
    assert outcomes[True] > 100


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged or no uncompressed tar, after 0 of 0 bytes: empty file"),
        (b"\x1f\x8b\x08" + bytes(2000), "damaged or no uncompressed tar, after 0 of 2003 bytes"),
        (make_tar({"a": bytes(600)})[:1536], "the archive ends after 1536 bytes, without its end mark"),
        (make_tar({"a": b""})[:512] + b"?" * 5120, "expected a header at byte 512 of 5632"),
        (make_tar({"a": b""}) + b"?", "expected the end mark at the end. Received it at byte 512"),
    ],
)
def test_reasons(data, reason, tmp_path):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(TarError, match=reason):
        list(list_members(str(tmp_path / "a.tar")))
