"""Inputs of the inpainting job: where images and masks are, what is listed there, and what an item is.

The launcher only looks whether there is one of each; who lists them all is the job (`pages`).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.pairs.lists import find_lists, read_head, read_pairs
from pipelines.transforms.rejects import Reject, reject, reject_name
from trainer import documents, storage
from trainer.errors import Corrupt, Denied, UserError
from trainer.images import HOLES
from trainer.storage import Entry, Selection, in_batches, recognize
from trainer.storage.names import is_text

MANIFEST, ITEMS, REJECTS = "manifest.json", "items.jsonl", "rejects.jsonl"
REPORT = re.compile(r"manifest\.json|(?:items|rejects)(?:-\d{5}-of-\d{5})?\.jsonl")
_REPORTS = ".jsonl", ".json"
_ODD = "/.", ".json"  # signs that a path may be a report's, or no output's
_DOTS = frozenset((".", ".."))  # objects in a bucket may have them as parts of their names
_READ_AT_LAUNCH = 16 << 20  # bytes of lists: larger ones are read by the job alone, and their first lines at launch


class Item(NamedTuple):
    """One image to inpaint.

    Attributes:
        image: its address.
        mask: address of its mask; empty if holes are in the image itself.
        output: the output's path below the output folder.
        more_masks: addresses of further masks; a hole of any is a hole.
        share: of its records, see `pages.share_of`.
        earlier: checksums of outputs that earlier runs made of the same files, or of what these were then.
    """

    image: str
    mask: str
    output: str
    more_masks: tuple[str, ...] = ()
    share: str = ""
    earlier: tuple[str, ...] = ()

    @property
    def masks(self) -> tuple[str, ...]:
        """Addresses of all its masks, the first one first."""
        return (self.mask, *self.more_masks) if self.mask else ()

    def describe(self) -> dict:
        """Its part of the record of its output; ``more_masks`` only if there are any."""
        more = {"more_masks": list(self.more_masks)} if self.more_masks else {}
        return {"image": self.image, "mask": self.mask, "output": self.output, **more}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the images are: patterns of images and masks, or lists of pairs.

    Attributes:
        base: folder that the outputs' paths are relative to; empty if the job is to find it in lists.
        images: pattern of the images; empty with lists.
        masks: pattern of the masks, or with ``one`` the mask; empty with lists, or if holes are in the images.
        listed: address of the list, or a glob of several.
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


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What `Inputs` mean, looked up once: workers do not ask the storage again.

    Attributes:
        where: the inputs.
        kinds: for ``images`` and, where they are found by name, ``masks``: what is selected, and the others.
        mask_base: folder of all masks.
        output: address of the output folder, in which no input may be; empty for none.
    """

    where: Inputs
    kinds: dict[str, tuple[Selection, Selection | None]]
    mask_base: str = ""
    output: str = ""

    @classmethod
    def find(cls, where: Inputs, output: str = "") -> Sources:
        images, masks = (storage.select(pattern) if pattern else None for pattern in (where.images, where.masks))
        kinds = {"images": (images, masks)} if images else {}
        if masks and where.match != "one":
            kinds["masks"] = (masks, images)
        return cls(where=where, kinds=kinds, mask_base=masks.base if masks else "", output=output)

    @property
    def is_lone(self) -> bool:
        """Whether one image is named: what is not its mask is no input then."""
        return "images" in self.kinds and bool(self.kinds["images"][0].name)

    @property
    def apart(self) -> bool:
        """Whether no file can be an image and a mask by the same path."""
        return self.mask_base != self.where.base

    def image_address(self, name: str) -> str:
        return storage.join(self.where.base, name)

    def mask_address(self, name: str) -> str:
        return storage.join(self.mask_base, name)


@dataclass(frozen=True)
class _Stated:
    """What is read of the manifest beside mask files, which may be anybody's."""

    hole: Any = None


_STATED: documents.Form[_Stated] = documents.Form("a manifest", _Stated, max_bytes=1 << 25, error=Corrupt)


class MatchError(ValueError):
    """A file has no counterpart, or more than one."""


# At launch


def find_inputs(
    images: str | None, masks: str | None, pairs: str | None, match: str | None = None
) -> tuple[Inputs, list[tuple[str, str]]]:
    """Where the inputs are that options name, and pairs of an image and a mask, or none, that are found there.

    Of files these are the first of each; of lists all pairs, but no more than their beginning if they are large.

    Args:
        images, masks, pairs, match: as given for the options; ``pairs``, or ``images`` with or without ``masks``.

    Raises:
        UserError: there are none, or something else is there.
    """
    if pairs:
        return _find_lists(storage.normalize(pairs))
    assert images
    image = _first_file("--images", images)
    mask = _first_file("--masks", masks) if masks else ""
    address = storage.normalize(masks) if masks else ""
    is_file = bool(mask) and mask == address
    if is_file and storage.normalize(images) == image == mask:
        raise UserError(f"--masks: expected another file than the image. Received {address} for both.")
    if match == "one" and not is_file:
        raise UserError(f"--match one: expected --masks to be one file. Received {masks}.")
    where = Inputs(
        base=storage.select(images).base,
        images=storage.normalize(images),
        masks=address,
        match=match or ("one" if is_file else "stem"),
    )
    return where, [(image, mask)]


def _find_lists(pattern: str) -> tuple[Inputs, list[tuple[str, str]]]:
    """`find_inputs` of a list, or of a glob of lists."""
    if not storage.select(pattern).glob:
        recognize.require_list("--pairs", pattern)
    lists, size = list[str](), 0
    for found in find_lists(pattern):
        lists.append(found.address)
        size += found.size
        if size > _READ_AT_LAUNCH:
            rows = read_head(lists[0])
            return Inputs(base="", listed=pattern, match="csv"), rows
    if not lists:
        raise UserError(f"--pairs: no lists, .csv or .jsonl, at {pattern}")
    rows = [row for address in sorted(lists) for row in read_pairs(address)]
    if not rows:
        raise UserError(f"--pairs: {pattern} lists no images")
    return Inputs(base=common_folder(image for image, _ in rows), listed=pattern, match="csv"), rows


def _first_file(option: str, pattern: str) -> str:
    selected, lost = storage.select(pattern), dict[str, Denied]()
    advice = {"list": "--pairs takes lists of images and masks"} if option == "--images" else {}
    recognize.require_files(option, pattern, "image files", advice)
    for found in selected.entries(lost):
        if not _is_report(found.address, selected):
            return found.address
    raise next(iter(lost.values()), UserError(f"{option}: no files at {selected.address}"))


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


def hole_of_folder(base: str) -> str | None:
    """The color of holes that a folder's ``manifest.json`` names under ``hole``, or None."""
    try:
        stated = _STATED.read_if_any(storage.join(base, MANIFEST))
    except Corrupt:
        return None
    return stated.hole if stated and stated.hole in HOLES else None


def resolve_hole(hole: str | None, where: Inputs, masks: Iterable[str]) -> str:
    """The color of holes in mask files: the one that was given, or the one that their folder's manifest states.

    Args:
        masks: addresses of those that lists name.

    Raises:
        UserError: there is neither, or they differ.
    """
    folder = storage.select(where.masks).base if where.masks else shared_folder(masks)
    stated = hole_of_folder(folder) if folder else None
    if hole and stated and hole != stated:
        raise UserError(f"--hole: the manifest.json of {folder} says {stated!r}. Received {hole!r}.")
    if found := hole or stated:
        return found
    raise UserError(
        "--hole: say whether holes in the mask files are black or white, or give their --hole-label; no manifest.json "
        "states it"
    )


def check_outputs(inputs: Iterable[str], patterns: Iterable[str], output: str, extension: str) -> None:
    """Raises `UserError` if an output could replace an input, or would be an input of a second run.

    Args:
        inputs: addresses of images and masks; the job looks at those that are not known at launch.
        patterns: patterns that matched them.
        output: the output folder.
        extension: of the outputs.
    """
    if among := [address for address in sorted(inputs) if address.startswith(output + "/")]:
        raise inside(among[0], output)
    for pattern in patterns:
        if storage.select(pattern).holds(storage.join(output, "a" + extension)):
            raise UserError(f"--output: expected a folder in which {pattern} matches no files. Received {output}.")


def inside(address: str, output: str) -> UserError:
    """The error of an input in the output folder."""
    return UserError(f"--output: expected a folder without inputs. Received {output}, where {address} is one.")


# Listing


Columns = tuple[list[str], Sequence[int], Sequence[str], Sequence[str]]  # paths, and what else `Entry` has, of files


def list_files(sources: Sources, kind: str, part: Selection | None = None) -> Iterator[Columns | Reject]:
    """The files of one kind, some at a time, by their paths below its folder; not the reports of an earlier job.

    A folder that may not be listed is a `Reject`, and so is a file whose name cannot be an output's.

    Args:
        part: of the selection, if not all of it is to be listed.

    Raises:
        UserError: one is in the output folder.
    """
    (selected, others), lost = sources.kinds[kind], dict[str, Denied]()
    below = storage.join(selected.base, "")
    inner = others is not None and others.base.startswith(below)
    lone = others.address if others is not None and others.name and others != selected else None
    outputs = storage.join(sources.output, "") if sources.output.startswith(below) else None
    for some in in_batches((part or selected).entries(lost)):
        addresses = [found[0] for found in some]
        text = "\0".join(addresses)
        # As nearly all are: what follows takes longer.
        if not inner and lone is None and outputs is None and text.isascii() and not any(s in text for s in _ODD):
            yield from columns_of(some, len(below))
            continue
        usual = list[Entry]()
        for found in some:
            address = found.address
            if (inner and others is not None and others.holds(address)) or address == lone:
                continue
            if outputs and address.startswith(outputs):
                raise inside(address, sources.output)
            if _is_report(address, selected):
                continue
            if rejected := _check_name(address, address[len(below) :]):
                yield rejected
            else:
                usual.append(found)
        yield from columns_of(usual, len(below))
    yield from (reject(folder, "list", error) for folder, error in lost.items())


def columns_of(some: list[Entry], skipped: int) -> Iterator[Columns]:
    """Those of some files, if there are any, of whose addresses so many characters are left out."""
    if some:
        addresses, sizes, versions, checksums = zip(*some, strict=True)
        yield [address[skipped:] for address in addresses], sizes, versions, checksums


def _is_report(address: str, selected: Selection) -> bool:
    """Whether a file is the report of a job that wrote its outputs among the files that are selected."""
    name = address[len(selected.base) + (selected.base != "/") :]
    return name.endswith(_REPORTS) and not selected.name and REPORT.fullmatch(name) is not None


def _check_name(address: str, name: str) -> Reject | None:
    """The `Reject` of a file whose name below the folder of images or masks is not UTF-8, or goes up and down."""
    if not is_text(address):
        return reject_name(address)
    if "." not in name or _DOTS.isdisjoint(name.split("/")):
        return None
    return reject(address, "match", MatchError("expected a name without the parts . and .., which no file can have"))


def list_pairs(rows: Iterable[tuple[str, str]], base: str) -> Iterator[tuple[str, tuple[str, str]] | Reject]:
    """(path below ``base``, (image, mask)) of each pair of a list; one whose name cannot be used is a `Reject`."""
    for image, mask in rows:
        name = storage.relative(image, base)
        lost = _check_name(image, name) or (None if is_text(mask) else reject_name(image))
        yield lost or (name, (image, mask))
