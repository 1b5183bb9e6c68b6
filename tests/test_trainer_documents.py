"""What is read of JSON that anybody may have written: within the bounds of its form, or one line about why not."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Annotated

import pytest
from pydantic import FailFast, Field

from trainer import storage
from trainer.documents import CHECKED, Count, Crc32c, Form, Json, Text
from trainer.errors import UserError


@dataclass(frozen=True)
class Part:
    __pydantic_config__ = CHECKED

    name: Annotated[str, Field(pattern=r"^part-[0-9]+$")]
    size: Count = 0


@dataclass(frozen=True)
class Whole:
    __pydantic_config__ = CHECKED

    title: Text
    parts: Annotated[tuple[Part, ...], FailFast()] = ()
    ratio: float = 0.0
    crc32c: Crc32c = "AAAAAA=="
    notes: dict[str, Json] = field(default_factory=dict)


FORM: Form[Whole] = Form("a whole", Whole, max_bytes=10_000_000)


def test_a_document_is_read(tmp_path):
    address = str(tmp_path / "a.json")
    assert FORM.read_if_any(address) is None
    data = b'{"title": "t", "parts": [{"name": "part-1", "size": 3}], "ratio": 1, "notes": {"a": [1, {"b": null}]}}'
    storage.create(address, data)
    whole = Whole("t", (Part("part-1", 3),), 1, notes={"a": [1, {"b": None}]})
    assert FORM.read(address) == FORM.read_if_any(address) == FORM.read(address, storage.crc32c(data)) == whole
    assert FORM.read_versioned(address) == storage.read_versioned(address)
    with pytest.raises(storage.Corrupt, match="expected crc32c AAAAAA=="):
        FORM.read(address, "AAAAAA==")
    with pytest.raises(storage.NotFound):
        FORM.read(address + "x")


DEEP = b"[" * 100_000
HOSTILE = {
    "empty": (b"", "Invalid JSON"),
    "cut": (b'{"title": "t"', "Invalid JSON"),
    "binary": (b"\xff\xfe", "Invalid JSON"),
    "another type": (b"[]", r"expected the fields of Whole. Received \[\]"),
    "null": (b"null", "expected the fields of Whole. Received None"),
    "deep": (DEEP, "recursion limit"),
    "deep where anything may be": (b'{"title": "t", "notes": {"a": ' + DEEP, "recursion limit"),
    "number of 5,000 digits": (b'{"title": "t", "notes": {"a": ' + b"9" * 5000 + b"}}", "number out of range"),
    "number of 4,000 digits": (b'{"title": "t", "parts": [{"name": "part-1", "size": ' + b"9" * 4000, "Invalid JSON"),
    "negative": (b'{"title": "t", "parts": [{"name": "part-1", "size": -5}]}', r"parts\[0\].size: expected 0 or more"),
    "too large": (
        b'{"title": "t", "parts": [{"name": "part-1", "size": 1000000000000000000000000000000}]}',
        r"parts\[0\].size: expected 9007199254740992 or less. Received 1000000000000000000000000000000",
    ),
    "fraction": (b'{"title": "t", "parts": [{"name": "part-1", "size": 3.0}]}', "expected an integer. Received 3.0"),
    "truth": (b'{"title": "t", "parts": [{"name": "part-1", "size": true}]}', "expected an integer. Received True"),
    "path": (b'{"title": "t", "parts": [{"name": "../part-1"}]}', "a text of the form .* Received '../part-1'"),
    "NUL": (b'{"title": "t", "parts": [{"name": "part-1\\u0000"}]}', r"Received 'part-1\\x00'"),
    "line": (b'{"title": "t", "parts": [{"name": "part-1\\n"}]}', r"Received 'part-1\\n'"),
    "number for a name": (b'{"title": "t", "parts": [{"name": 5}]}', r"parts\[0\].name: expected a text. Received 5"),
    "NaN": (b'{"title": "t", "ratio": NaN}', "ratio: expected a finite number. Received nan"),
    "infinity": (b'{"title": "t", "ratio": 1e999}', "ratio: expected a finite number. Received inf"),
    "NaN within": (b'{"title": "t", "notes": {"a": [{"b": NaN}]}}', "expected finite numbers. Received nan"),
    "infinity within": (b'{"title": "t", "notes": {"a": [-1e999]}}', "expected finite numbers. Received -inf"),
    "checksum": (b'{"title": "t", "crc32c": "/etc/passwd"}', "crc32c: expected a text of the form"),
    "unknown key": (b'{"title": "t", "color": 1}', "unknown key 'color'. Was it written by a newer version"),
    "missing key": (b"{}", "title: expected a value"),
    "escape sequence": (b'{"title": 1, "\\u001b[31m": 2}', r"unknown key '\\x1b\[31m'"),
    "long text": (b'{"title": "' + b"x" * 5000 + b'"}', "title: expected 1000 characters or fewer. Received 'xxx"),
    "many": (b'{"title": "t", "notes": {"a": [' + b"1," * (1 << 20) + b"1]}}", "expected 1,048,576 values or fewer"),
    "many wrong ones": (b'{"title": "t", "parts": [' + b"1," * 1_000_000 + b"1]}", "expected the fields of Part"),
    "large": (b'{"title": "' + b"x" * 10_000_000 + b'"}', "too large: expected 10,000,000 bytes or fewer"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_anything_else_is_refused_in_one_short_line(tmp_path, case):
    data, message = HOSTILE[case]
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match=f"a.json is not a whole: .*{message}") as caught:
        FORM.read_if_any(str(tmp_path / "a.json"))
    text = str(caught.value)
    assert len(text) < 1000 and "\n" not in text and text.isprintable()


def test_a_pipe_and_an_endless_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(UserError, match=f"{name} cannot be read: expected a regular file"):
            FORM.read_if_any(str(tmp_path / name))


def test_at_most_three_errors_are_told():
    data = json.dumps({str(number): number for number in range(9)}).encode()
    with pytest.raises(UserError, match=r"title: expected a value.* unknown key '1'.* \(7 more.\)$"):
        FORM.parse(data, "A")
