"""What lies at an address, in words: for messages to those who gave one thing where another is expected.

thing = look("photos.zip")  # Thing("archive", "a ZIP archive")
raise UserError(f"--images: {address} is {thing.what}. Expected image files: unpack it.")
"""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Mapping
from typing import NamedTuple

from trainer import storage
from trainer.errors import NotFound, UserError

IMAGE_SUFFIXES = tuple(".avif .bmp .gif .heic .heif .jp2 .jpeg .jpg .mpo .pgm .png .ppm .tif .tiff .webp".split())
LIST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xlsx", ".xls", ".ods")
ARCHIVE_SUFFIXES = tuple(".tar .zip .gz .tgz .bz2 .tbz2 .xz .txz .zst .7z .rar".split())
_ARCHIVES = {
    b"PK\x03\x04": "a ZIP archive",
    b"PK\x05\x06": "an empty ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
}
_EXPORTS = (".keras", ".onnx", ".pb")
_TAR_MAGIC, _HEAD = (257, b"ustar"), 512
_MOST, _MOST_FOLDERS = 1000, 8  # files of a folder that are looked at, and folders in it, of four requests each


class Thing(NamedTuple):
    """What is there.

    Attributes:
        kind: ``nothing``, ``pattern``, ``file``, ``image``, ``list``, ``archive``, ``tar``, ``network``, ``folder``,
            ``images``, ``archives``, ``shards``, ``dataset``, ``run``, ``checkpoint``, ``export``, or ``parent``, a
            folder that holds one of the last four.
        what: the same in words, with an article.
        whole: of what belongs to a training run, the run's folder; of a file in a dataset, the dataset's folder.
    """

    kind: str
    what: str
    whole: str = ""


def look(address: str) -> Thing:
    """What lies at an address, which need not exist."""
    address = storage.normalize(address)
    whole = _find_whole(address)
    if storage.exists(address):
        return _look_at_file(address, whole)
    names = [storage.relative(name, address) for name, _ in itertools.islice(storage.scan(address, lost={}), _MOST)]
    if not names:
        return Thing("pattern", "a pattern") if storage.select(address).glob else Thing("nothing", "nothing")
    if found := _look_at_folder(address):
        return Thing(*found, whole if found[0] in ("checkpoint", "export") else "")
    if whole:
        return Thing("folder", f"a folder in the training run {whole}", whole)
    folders = itertools.islice(storage.folders(address), _MOST_FOLDERS)
    inner = ((name, _look_at_folder(storage.join(address, name))) for name in folders)
    if held := list(itertools.islice((f"{name} ({found[1]})" for name, found in inner if found), 3)):
        return Thing("parent", f"a folder that holds others: {', '.join(held)}")
    ends = {posixpath.splitext(name)[1].lower() for name in names}
    if ".tfrecord" in ends:
        return Thing("shards", "a folder of shards")
    if not ends.isdisjoint(IMAGE_SUFFIXES):
        return Thing("images", "a folder of image files")
    if not ends.isdisjoint(ARCHIVE_SUFFIXES):
        return Thing("archives", "a folder of archives")
    return Thing("folder", "a folder of other files")


def require_files(option: str, address: str, expected: str, advice: Mapping[str, str] | None = None) -> None:
    """Raises `UserError` if something is there that cannot be, or hold, image files or the like.

    Args:
        option: that the address was given for.
        expected: what the option takes, such as ``image files``.
        advice: by kind of a thing, what to do; archives and datasets have advice of their own.
    """
    selected = storage.select(address)
    if selected.glob:
        return
    thing, own = look(selected.address), {**_ADVICE, **(advice or {})}
    if thing.kind in own:
        raise UserError(f"{option}: {selected.address} is {thing.what}. Expected {expected}: {own[thing.kind]}.")


def require_folder(option: str, address: str) -> None:
    """Raises `UserError` for a file, or what is named as one, where files are to be written into a folder."""
    end = posixpath.splitext(address)[1].lower()
    named = end in (*IMAGE_SUFFIXES, *LIST_SUFFIXES, *ARCHIVE_SUFFIXES, *_EXPORTS, ".html", ".md", ".tfrecord")
    if not storage.is_remote(address) and storage.exists(address):
        raise UserError(f"{option}: expected a folder. Received the file {address}.")
    if named and next(iter(storage.scan(address, lost={})), None) is None:
        raise UserError(f"{option}: expected a folder. Received {address}, the name of a file {end}.")


def require_list(option: str, address: str) -> None:
    """Raises `UserError` unless a file is there that may list others."""
    thing = look(address)
    if thing.kind == "nothing":
        raise NotFound(f"{option}: {address} does not exist")
    if thing.kind in ("image", "network", "tar", "pattern") or not storage.exists(address):
        advice = "--images and --masks name files, folders and globs, and pair them by name"
        raise UserError(f"{option}: {address} is {thing.what}. Expected a list, .csv or .jsonl ({advice}).")


_ADVICE = {
    "archive": "unpack it and name the folder",
    "tar": "unpack it and name the folder",
    "archives": "unpack them",
    "dataset": "its records are no files",
    "run": "name a folder of files",
    "checkpoint": "name a folder of files",
    "export": "name a folder of files",
    "network": "name a folder of files",
    "list": "name the files or their folder",
}


def _look_at_folder(folder: str) -> tuple[str, str] | None:
    """Kind and words of a folder by the documents in it; None for one without."""

    def has(name: str) -> bool:
        return storage.exists(storage.join(folder, name))

    if has("state.json") and (has("config.json") or has("manifest.json")):
        return "checkpoint", "a checkpoint of a training run"
    if has("config.json") and "checkpoints" in storage.folders(folder):
        return "run", "the folder of a training run"
    if has("card.json"):
        return "export", "an exported network"
    if has("manifest.json") and any(
        name.endswith(".tfrecord") for name, _ in storage.scan(folder, deep=False, lost={})
    ):
        return "dataset", "a dataset"
    return None


def _find_whole(address: str) -> str:
    """The folder of the training run that an address is in; empty if it is in none."""
    folder = address
    for _ in range(3):
        folder = folder.rpartition("/")[0]
        if not posixpath.basename(folder):
            break
        if (found := _look_at_folder(folder)) and found[0] == "run":
            return folder
    return ""


def _look_at_file(address: str, whole: str) -> Thing:
    folder, _, name = address.rpartition("/")
    end = posixpath.splitext(name)[1].lower()
    found = _look_at_folder(folder)
    if end in _EXPORTS:
        return Thing("network", f"a network in a file {end}", whole)
    if found and found[0] == "dataset" and (end == ".tfrecord" or name == "manifest.json"):
        return Thing("file", f"a file of the dataset {folder}", folder)
    if whole:
        return Thing("file", f"a file of the training run {whole}", whole)
    if end in LIST_SUFFIXES:
        return Thing("list", f"a file {end}")
    if what := archive_of(address):
        return Thing("tar" if what == "a tar" else "archive", what)
    return Thing("image", "an image file") if end in IMAGE_SUFFIXES else Thing("file", "a file")


def archive_of(address: str) -> str | None:
    """What kind of archive a file is by its first bytes, with an article; None for other files."""
    head = storage.read_range(address, 0, _HEAD)
    start, magic = _TAR_MAGIC
    if head[start : start + len(magic)] == magic:
        return "a tar"
    found = next((what for signature, what in _ARCHIVES.items() if head.startswith(signature)), None)
    if found == "a gzip archive" and address.lower().endswith((".tar.gz", ".tgz")):
        return "a compressed tar"
    return found
