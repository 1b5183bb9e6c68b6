"""Lists of pairs as people and their spreadsheets write them."""

from __future__ import annotations

import pytest

from pipelines.pairs.lists import read_pairs
from trainer import storage
from trainer.errors import UserError


def read(folder, name, data):
    """The pairs of a list, below its folder."""
    storage.create(f"{folder}/{name}", data)
    pairs = read_pairs(f"{folder}/{name}")
    return [tuple(part and storage.relative(part, str(folder)) for part in pair) for pair in pairs]


def test_lists_of_pairs(tmp_path):
    folder = str(tmp_path)
    storage.create(
        f"{folder}/list.csv", "\ufeffimage,mask,note\nin/a.jpg,holes/a.png,x\n/b.png,gs://mmm/b.png,\nc,,\n".encode()
    )
    assert read_pairs(f"{folder}/list.csv") == [
        (f"{folder}/in/a.jpg", f"{folder}/holes/a.png"),
        ("/b.png", "gs://mmm/b.png"),
        (f"{folder}/c", ""),
    ]
    storage.create(f"{folder}/list.jsonl", b'{"image": "a.jpg", "mask": "../m/a.png"}\n\n{"image": "b.jpg"}\n')
    assert read_pairs(f"{folder}/list.jsonl") == [
        (f"{folder}/a.jpg", f"{folder.rpartition('/')[0]}/m/a.png"),
        (f"{folder}/b.jpg", ""),
    ]


TABLE = [("Größe 1.jpg", "m/a.png"), ("b,c;d.jpg", "m/b.png")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_spreadsheets(separator, end, encoding, tmp_path):
    rows = [
        [" Mask ", "note", "IMAGE"],
        ["m/a.png", "", " Größe 1.jpg "],
        ["", "", ""],
        ["m/b.png", "x", '"b,c;d.jpg"'],
    ]
    text = end.join(separator.join(row) for row in rows) + end
    assert read(tmp_path, "a.csv", text.encode(encoding)) == TABLE
    stated = f"sep={separator}{end if end != chr(13) else chr(13) + chr(10)}"
    assert read(tmp_path, "b.csv", (stated + text).encode(encoding)) == TABLE


def test_more_forms(tmp_path):
    assert read(tmp_path, "a.csv", b"\n\nimages,masks,,\na.jpg,m.png,,\n,,,\n") == [("a.jpg", "m.png")]
    assert read(tmp_path, "b.csv", b"image\na.jpg\n") == [("a.jpg", "")]
    assert read(tmp_path, "c.tsv", b"image\tmask\na.jpg\n") == [("a.jpg", "")]
    two = [("a.jpg", "1.png"), ("a.jpg", "2.png"), ("b.jpg", "")]
    assert (
        read(tmp_path, "d.jsonl", b'{"image": "a.jpg", "mask": ["1.png", "2.png"]}\n{"Image": "b.jpg", "mask": []}')
        == two
    )
    assert read(tmp_path, "e.json", b'[{"image": "a.jpg", "mask": ["1.png", "2.png"]},\n {"image": "b.jpg"}]') == two
    assert read(tmp_path, "f.csv", b"") == read(tmp_path, "g.csv", b"image;mask\n") == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"picture,mask\na,b\n", "a.csv, line 1: expected .* names the columns.* Received .picture,mask.\\."),
        ("a.csv", b"in/a.jpg,m/a.png\n", "such as image,mask. Received .in/a.jpg,m/a.png.\\."),
        ("a.csv", b"image mask\na.jpg m.png", "line 1: expected a first line that names the columns"),
        ("a.csv", b"image,image\na,b", "line 1: expected one column image"),
        ("a.csv", b"image,mask\n\na,b.jpg,m.png\n", 'line 3: expected 2 columns.*quotes, as in "a,b.png"'),
        ("a.csv", b"sep=;\nimage;mask\n;m.png\n", "line 3: expected image and mask"),
        ("a.csv", "image,mask\nä.jpg,m.png".encode("cp1252"), "not text in UTF-8: save it as CSV UTF-8, or"),
        ("a.csv", b"\xff\xfe", "lists no images"),
        ("a.csv", b"\xff\xfei\x00m\x00", "line 1: expected a first line"),
        ("a.csv", b"\xff\xfei", "not text in UTF-16"),
        ("a.csv", b"PK\x03\x04xlsx", "a.csv is a workbook or ZIP archive. Expected text"),
        ("a.jsonl", b'{"image": "a"}\n[1]\n', "a.jsonl, line 2: expected image and mask"),
        ("a.jsonl", b'{"image": 5}\n', "line 1: expected"),
        ("a.jsonl", b'{"image": "a", "mask": [5]}\n', "line 1: expected"),
        ("a.jsonl", b"{", "is not JSON lines"),
        ("a.json", b"[", "is not JSON lines"),
        ("a.csv", b'image,mask\n"a', "a.csv, line 2, is not CSV"),
    ],
)
def test_lists_that_are_none_are_refused(name, data, message, tmp_path):
    storage.create(f"{tmp_path}/{name}", data)
    with pytest.raises(UserError, match=message) as caught:
        if not read_pairs(f"{tmp_path}/{name}"):
            raise UserError("lists no images")
    assert "\n" not in str(caught.value)
