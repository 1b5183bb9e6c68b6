"""Lists of images and their masks: CSV, as spreadsheets write it too, and JSON lines.

    image,mask                       {"image": "in/a.jpg", "mask": "holes/a.png"}
    in/a.jpg,holes/a.png             {"image": "in/b.jpg", "mask": ["holes/b1.png", "holes/b2.png"]}
    in/b.jpg,holes/b1.png
    in/b.jpg,holes/b2.png

Columns may be separated by commas, semicolons or tabs, and there may be others; blanks around values, capitals in the
header and empty lines do not matter. The text is UTF-8 or, with its byte order mark, UTF-16. Paths are relative to the
list's folder. The masks of an image that is listed several times are joined.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from trainer import documents, storage
from trainer.errors import UserError
from trainer.storage.names import is_text

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
SUFFIXES = (".csv", ".tsv", *JSON_SUFFIXES)
_HEAD = 1 << 20  # bytes
_COLUMNS = {"image": "image", "images": "image", "mask": "mask", "masks": "mask"}
_SEPARATORS = (",", ";", "\t", "|")
_STATED = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # a first line of Excel's own
_NO_TEXT = {b"PK\x03\x04": "a workbook or ZIP archive", b"\xd0\xcf\x11\xe0": "a workbook", b"\x1f\x8b": "gzip"}
_DOTS = frozenset((".", ".."))
_LINE: TypeAdapter = TypeAdapter(documents.Json)


class _ListError(ValueError):
    """What is wrong with a list: a sentence without its beginning, the list's address."""


def read_pairs(address: str) -> list[tuple[str, str]]:
    """(image, mask) of each line of a list, as addresses; of a line with several masks, one pair for each.

    A line without a mask has an empty one.

    Raises:
        UserError: the list cannot be parsed, or a line has no image.
    """
    return _parse_list(storage.read(address), address)


def read_head(address: str) -> list[tuple[str, str]]:
    """`read_pairs` of the lines that are whole in the first megabyte of a list; of an array of rows, none.

    Raises:
        UserError: as of `read_pairs`; the rest of the list may still be wrong.
    """
    data = storage.read_range(address, 0, _HEAD)
    if len(data) == _HEAD:
        for newline in (b"\n\0", b"\0\n") if b"\0" in data[:4] else (b"\n",):
            data = data[: data.rfind(newline) + len(newline)]
        if data.lstrip().startswith(b"["):
            return []
    return _parse_list(data, address)


def find_lists(pattern: str) -> Iterator[storage.Entry]:
    """A list, or those that a glob selects."""
    selected = storage.select(pattern)
    yield from (found for found in selected.entries() if selected.name or found.address.lower().endswith(SUFFIXES))


def _parse_list(data: bytes, address: str) -> list[tuple[str, str]]:
    """The pairs in ``data``, which was read from ``address``."""
    try:
        text = _decode(data)
        rows = _read_json(text) if address.lower().endswith(JSON_SUFFIXES) else _read_csv(text)
        return [(_beside(address, image), _beside(address, mask)) for row in rows for image, mask in _pairs_of(*row)]
    except _ListError as error:
        raise UserError(f"--pairs: {address}{error}") from None


def _decode(data: bytes) -> str:
    for signature, what in _NO_TEXT.items():
        if data.startswith(signature):
            raise _ListError(f" is {what}. Expected text: save it as CSV (UTF-8).")
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data[:2]:  # the first character is one of ASCII
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise _ListError(
            f" is not text in {encoding.upper().removesuffix('-SIG')}: save it as CSV UTF-8, or convert it "
            "(iconv -f CP1252 -t UTF-8 for one of Windows)"
        ) from None


def _pairs_of(number: int, row: Any) -> Iterator[tuple[str, str]]:
    """(image, mask) as they stand in a row; raises `_ListError`."""
    named = {str(key).strip().casefold(): value for key, value in row.items()} if isinstance(row, dict) else {}
    values = {_COLUMNS[key]: value for key, value in named.items() if key in _COLUMNS}
    image, masks = values.get("image"), values.get("mask") or ""
    masks = masks if isinstance(masks, list) and masks else [masks]
    if not isinstance(image, str) or not image or not all(isinstance(mask, str) for mask in masks):
        raise _ListError(f", line {number}: expected image and mask. Received {documents.show(row)}.")
    yield from ((image, mask) for mask in masks)


def _beside(address: str, path: str) -> str:
    if not path:
        return ""
    if not (storage.is_remote(path) or path.startswith(("/", "~"))):
        scheme, mark, folder = posixpath.dirname(address).rpartition("://")
        has_dots = not _DOTS.isdisjoint(path.split("/"))
        joined = storage.join(folder, path)
        path = scheme + mark + (posixpath.normpath(joined) if has_dots else joined)
    return storage.normalize(path) if is_text(path) else path  # who uses the list rejects the other


# CSV


def _read_csv(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each line below the header that has any."""
    stated = _STATED.match(text)
    skipped, text = (1, text[stated.end() :]) if stated else (0, text)
    for separator in stated[1] if stated else _SEPARATORS:
        rows = _split_rows(text, separator)
        try:
            _, header = next(rows, (0, []))
        except _ListError:  # quotes that belong to another separator
            continue
        columns = [_COLUMNS.get(cell.casefold(), "") for cell in header]
        if "image" in columns:
            break
    else:
        first = next(filter(None, map(str.strip, text.splitlines())), None)
        if first is None:
            return
        raise _ListError(
            f", line {skipped + 1}: expected a first line that names the columns, such as image,mask. "
            f"Received {documents.show(first)}."
        )
    if twice := [name for name in ("image", "mask") if columns.count(name) > 1]:
        raise _ListError(f", line {skipped + 1}: expected one column {twice[0]}. Received {documents.show(header)}.")
    for number, cells in rows:
        if any(cells[len(columns) :]):
            raise _ListError(
                f", line {skipped + number}: expected {len(columns)} columns. Received {documents.show(cells)}; "
                f'a name that holds the separator stands in quotes, as in "a{separator}b.png".'
            )
        yield skipped + number, {column: cell for column, cell in zip(columns, cells, strict=False) if column}


def _split_rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells without blanks around them) of each line that has any."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise _ListError(f", line {reader.line_num}, is not CSV: {error}") from None


# JSON


def _read_json(text: str) -> Iterator[tuple[int, Any]]:
    """(line number, row) of each line; of a list of rows, (number, row)."""
    try:
        if text.lstrip().startswith("["):
            yield from enumerate(_parse(text), 1)
        else:
            yield from ((n, _parse(line)) for n, line in enumerate(text.splitlines(), 1) if line.strip())
    except (ValueError, RecursionError) as error:
        raise _ListError(f" is not JSON lines: {error}") from None


def _parse(text: str) -> Any:
    """A value of JSON; a name that is not UTF-8 has lone surrogates there, which only Python's reader takes."""
    return json.loads(text) if "\\ud" in text.lower() else documents.parse(text.encode(), _LINE)
