"""Inputs of the inpainting job: which mask belongs to which image, and where the output goes.

An output has its image's path below the folder of all images, with the extension of the output's format: ``x/a.jpg``
becomes ``x/a.png``. Images that differ in the extension alone keep it: ``a.jpg`` and ``a.tif`` become ``a.jpg.png``
and ``a.tif.png``. What would still be written to one place is rejected, all of it.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from masks.codec import HOLES
from pipelines.transforms.rejects import Reject, reject, reject_name
from trainer import documents, storage
from trainer.errors import Corrupt, Denied, UserError
from trainer.storage.names import is_text

MANIFEST, ITEMS, REJECTS = "manifest.json", "items.jsonl", "rejects.jsonl"
_DOTS = frozenset((".", ".."))  # objects in a bucket may have them as parts of their names


class Item(NamedTuple):
    """One image to inpaint.

    Attributes:
        image: its address.
        mask: address of its mask; empty if holes are in the image itself.
        output: the output's path below the output folder.
    """

    image: str
    mask: str
    output: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the images are: patterns of images and masks, or a list of pairs.

    Attributes:
        base: folder that the outputs' paths are relative to.
        images: pattern of the images; empty with a list.
        masks: pattern of the masks; empty with a list, or if holes are in the images themselves.
        listed: address of the list.
        match: how an image's mask is found, one of `MATCHES`.
    """

    base: str
    images: str = ""
    masks: str = ""
    listed: str = ""
    match: str = "stem"

    @property
    def patterns(self) -> list[str]:
        """What is listed by pattern."""
        return [pattern for pattern in (self.images, self.masks) if pattern]


@dataclass(frozen=True)
class _Stated:
    """What is read of the manifest beside mask files, which may be anybody's."""

    hole: Any = None


_LINE: TypeAdapter = TypeAdapter(documents.Json)
_STATED: documents.Form[_Stated] = documents.Form("a manifest", _Stated, max_bytes=1 << 25, error=Corrupt)


class MatchError(ValueError):
    """A file has no counterpart, or more than one."""


def stem_of(name: str) -> str:
    """Path without extension, which an image and its mask have in common."""
    return posixpath.splitext(name)[0]


def output_names(names: Iterable[str], extension: str) -> dict[str, str]:
    """Path of the output of each image path; ``names`` are all the paths that have one stem."""
    names = sorted(set(names))
    return {name: (stem_of(name) if len(names) == 1 else name) + extension for name in names}


# Lists


def list_files(selected: storage.Selection, lost: dict[str, Denied] | None = None) -> list[str]:
    """The files of a selection, without the reports of an earlier job that wrote its outputs there.

    Args:
        lost: gets the folders that may not be listed, see `storage.scan`.
    """
    ours = {storage.join(selected.base, name) for name in (MANIFEST, ITEMS, REJECTS)} - {selected.address}
    return [address for address in selected.find(lost) if address not in ours]


def list_stems(pattern: str) -> Iterator[tuple[str, str] | Reject]:
    """(stem, address) of each file that ``pattern`` selects.

    A folder that may not be listed is a `Reject`, and so is a file whose name cannot be an output's.
    """
    selected, lost = storage.select(pattern), dict[str, Denied]()
    for address in list_files(selected, lost):
        name = storage.relative(address, selected.base)
        yield _check_name(address, name) or (stem_of(name), address)
    yield from (reject(folder, "list", error) for folder, error in lost.items())


def _check_name(address: str, name: str) -> Reject | None:
    """The `Reject` of a file whose name below the folder of images or masks is not UTF-8, or goes up and down."""
    if not is_text(address):
        return reject_name(address)
    if _DOTS.isdisjoint(name.split("/")):
        return None
    return reject(address, "match", MatchError("expected a name without the parts . and .., which no file can have"))


def read_pairs(address: str) -> list[tuple[str, str]]:
    """Addresses of image and mask (empty if the line has none) of each line of a list.

    The list is CSV whose first line names the columns ``image`` and ``mask``, or JSON lines with these keys. Paths
    are relative to the list's folder.

    Raises:
        UserError: the list cannot be parsed, or a line has no image.
    """
    pairs = []
    for number, row in _read_rows(address):
        found = [row.get(key) or "" for key in ("image", "mask")] if isinstance(row, dict) else [""]
        if not found[0] or not all(isinstance(value, str) for value in found):
            raise UserError(f"--pairs: {address}, line {number}: expected image and mask. Received {row!r}.")
        image, mask = (_beside(address, path) for path in found)
        pairs.append((image, mask))
    return pairs


def _read_rows(address: str) -> list[tuple[int, Any]]:
    """(line number, row) of each line of a list. Raises `UserError` if it cannot be parsed."""
    try:
        text = storage.read(address).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--pairs: {address} is not text in UTF-8") from None
    is_csv = not address.endswith((".jsonl", ".json", ".ndjson"))
    try:
        if is_csv:
            reader = csv.DictReader(io.StringIO(text), strict=True)
            return [(reader.line_num, row) for row in reader]
        lines = [(n, line.encode()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        return [(n, _parse_line(line)) for n, line in lines]
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"--pairs: {address} is not {'CSV' if is_csv else 'JSON lines'}: {error}") from None


def _parse_line(line: bytes) -> Any:
    """One line of JSON; a name that is not UTF-8 has lone surrogates there, which only Python's reader takes."""
    return json.loads(line) if b"\\ud" in line.lower() else documents.parse(line, _LINE)


def _beside(address: str, path: str) -> str:
    if not path:
        return ""
    if not (storage.is_remote(path) or path.startswith(("/", "~"))):
        scheme, mark, folder = posixpath.dirname(address).rpartition("://")
        has_dots = not _DOTS.isdisjoint(path.split("/"))
        joined = storage.join(folder, path)
        path = scheme + mark + (posixpath.normpath(joined) if has_dots else joined)
    return storage.normalize(path) if is_text(path) else path  # the other is a reject, see `list_pairs`


def common_folder(addresses: Iterable[str]) -> str:
    """The deepest folder that contains all files, directly or below. Raises `UserError` if there is none."""
    folders = [posixpath.dirname(address).split("/") for address in addresses]
    low, high = min(folders), max(folders)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    folder = "/".join(low[:same])
    if folder.rstrip("/") in ("", *(f"{scheme}:" for scheme in storage.SCHEMES)):
        raise UserError("--pairs: expected all images in one bucket or file system. Received images of several.")
    return folder


def shared_folder(addresses: Iterable[str]) -> str | None:
    """The folder that directly contains all files, or None."""
    folders = {posixpath.dirname(address) for address in addresses if address}
    return folders.pop() if len(folders) == 1 else None


def list_pairs(address: str, base: str) -> Iterator[tuple[str, tuple[str, str]] | Reject]:
    """(stem, (image, mask)) of each line of a list; one with a name that cannot be used is a `Reject`."""
    for image, mask in read_pairs(address):
        name = storage.relative(image, base)
        lost = _check_name(image, name) or (None if is_text(mask) else reject_name(image))
        yield lost or (stem_of(name), (image, mask))


def hole_of_folder(base: str) -> str | None:
    """The color of holes that a folder's ``manifest.json`` names under ``hole``, or None."""
    try:
        stated = _STATED.read_if_any(storage.join(base, MANIFEST))
    except Corrupt:
        return None
    return stated.hole if stated and stated.hole in HOLES else None


# Matching


def match_files(
    group: tuple[str, dict[str, Iterable[str]]], base: str, match: str, extension: str
) -> Iterator[Item | Reject]:
    """Items of the files of one stem; a file without a counterpart, or with two, becomes a `Reject`.

    Args:
        group: stem, and addresses of ``images`` and ``masks``; no entry for masks if holes are in the images.
        base: folder of all images.
        match: ``stem``, or ``path`` for masks of the image's name, extension included.
        extension: of the outputs.
    """
    stem, found = group
    images = {storage.relative(address, base): address for address in found["images"]}
    outputs = output_names(images, extension)
    if "masks" not in found:
        yield from (Item(address, "", outputs[name]) for name, address in sorted(images.items()))
        return
    masks, used = sorted(found["masks"]), set()
    for name, address in sorted(images.items()):
        end = posixpath.splitext(name)[1]
        mine = [mask for mask in masks if match != "path" or posixpath.splitext(mask)[1] == end]
        if len(mine) == 1:
            used.add(mine[0])
            yield Item(address, mine[0], outputs[name])
        else:
            wanted = name if match == "path" else f"{stem}.*"
            yield reject(address, "match", MatchError(f"expected one mask file named {wanted}. Found {len(mine)}."))
    # Two masks for one image are one reject, that of the image.
    for mask in masks:
        if mask not in used and (match == "path" or not images):
            wanted = stem + posixpath.splitext(mask)[1] if match == "path" else f"{stem}.*"
            yield reject(mask, "match", MatchError(f"expected an image file named {wanted}. Found none."))


def match_listed(
    group: tuple[str, Iterable[tuple[str, str]]], base: str, needs_mask: bool, extension: str
) -> Iterator[Item | Reject]:
    """Items of the listed pairs of one stem; a pair that needs a mask and has none becomes a `Reject`."""
    pairs = sorted(group[1])
    outputs = output_names((storage.relative(image, base) for image, _ in pairs), extension)
    for image, mask in pairs:
        if needs_mask and not mask:
            yield reject(image, "match", MatchError("expected a mask in the list. Found none."))
        else:
            yield Item(image, mask if needs_mask else "", outputs[storage.relative(image, base)])


def check_outputs(inputs: Iterable[str], patterns: Iterable[str], output: str, extension: str) -> None:
    """Raises `UserError` if an output could replace an input, or would be an input of a second run.

    Args:
        inputs: addresses of images and masks.
        patterns: patterns that matched them.
        output: the output folder.
        extension: of the outputs.
    """
    if inside := [address for address in sorted(inputs) if address.startswith(output + "/")]:
        raise UserError(f"--output: expected a folder without inputs. Received {output}, where {inside[0]} is one.")
    for pattern in patterns:
        if storage.select(pattern).holds(storage.join(output, "a" + extension)):
            raise UserError(f"--output: expected a folder in which {pattern} matches no files. Received {output}.")
