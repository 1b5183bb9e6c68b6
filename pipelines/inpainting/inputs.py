"""Inputs of the inpainting job: which mask belongs to which image, and where the output goes.

An output has its image's path below the folder of all images, with the extension of the output's format: ``x/a.jpg``
becomes ``x/a.png``. Images that differ in the extension alone keep it: ``a.jpg`` and ``a.tif`` become ``a.jpg.png``
and ``a.tif.png``. What would still be written to one place is rejected, all of it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.pairs.lists import read_pairs
from pipelines.pairs.names import Match, match_names, root_of, stem_of, without_mask
from pipelines.transforms.rejects import Reject, reject, reject_name
from trainer import documents, storage
from trainer.errors import Corrupt, Denied, UserError
from trainer.images import HOLES
from trainer.storage import recognize
from trainer.storage.names import is_text

_CLEAR = (
    "expected masks that are this image's alone: one file, or some that are numbered, as a_mask_1.png and a_mask_2.png "
    "are (--pairs takes a list of any)."
)
MANIFEST, ITEMS, REJECTS = "manifest.json", "items.jsonl", "rejects.jsonl"
_DOTS = frozenset((".", ".."))  # objects in a bucket may have them as parts of their names


class Item(NamedTuple):
    """One image to inpaint.

    Attributes:
        image: its address.
        mask: address of its mask; empty if holes are in the image itself.
        output: the output's path below the output folder.
        more_masks: addresses of further masks; a hole of any is a hole.
    """

    image: str
    mask: str
    output: str
    more_masks: tuple[str, ...] = ()

    @property
    def masks(self) -> tuple[str, ...]:
        """Addresses of all its masks, the first one first."""
        return (self.mask, *self.more_masks) if self.mask else ()

    def describe(self) -> dict:
        """Its part of the record of its output; ``more_masks`` only if there are any."""
        described = self._asdict()
        more = list(described.pop("more_masks"))
        return described | ({"more_masks": more} if more else {})


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the images are: patterns of images and masks, or a list of pairs.

    Attributes:
        base: folder that the outputs' paths are relative to.
        images: pattern of the images; empty with a list.
        masks: pattern of the masks, or with ``one`` the mask; empty with a list, or if holes are in the images.
        listed: address of the list.
        match: how an image's mask is found, one of `MATCHES`.
    """

    base: str
    images: str = ""
    masks: str = ""
    listed: str = ""
    match: str = "stem"

    @property
    def lone(self) -> bool:
        """Whether one image is named: what is not its mask is no input then."""
        return bool(self.images and storage.select(self.images).name)

    @property
    def kinds(self) -> dict[str, tuple[str, str]]:
        """For ``images`` and, where they are found by name, ``masks``: their pattern, and that of the others."""
        kinds = {"images": (self.images, self.masks)}
        return kinds | ({"masks": (self.masks, self.images)} if self.masks and self.match != "one" else {})

    @property
    def patterns(self) -> list[str]:
        """What is listed by pattern."""
        return [pattern for pattern in (self.images, self.masks) if pattern]


@dataclass(frozen=True)
class _Stated:
    """What is read of the manifest beside mask files, which may be anybody's."""

    hole: Any = None


_STATED: documents.Form[_Stated] = documents.Form("a manifest", _Stated, max_bytes=1 << 25, error=Corrupt)


class MatchError(ValueError):
    """A file has no counterpart, or more than one."""


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


def find_inputs(
    images: str | None, masks: str | None, pairs: str | None, match: str | None = None
) -> tuple[Inputs, list[str], list[str]]:
    """Where the inputs are that options name, and the addresses of the images and masks that are found there.

    Args:
        images, masks, pairs, match: as given for the options; ``pairs``, or ``images`` with or without ``masks``.

    Raises:
        UserError: there are none, or something else is there.
    """
    if pairs:
        listed = storage.normalize(pairs)
        recognize.require_list("--pairs", listed)
        found = read_pairs(listed)
        if not found:
            raise UserError(f"--pairs: {listed} lists no images")
        names = [image for image, _ in found], [mask for _, mask in found if mask]
        return Inputs(base=common_folder(names[0]), listed=listed, match="csv"), *names
    assert images
    image_files = _require_files("--images", images)
    mask_files = _require_files("--masks", masks) if masks else []
    address = storage.normalize(masks) if masks else ""
    is_file = mask_files == [address]
    if is_file and image_files == mask_files:
        raise UserError(f"--masks: expected another file than the image. Received {address} for both.")
    if match == "one" and not is_file:
        raise UserError(f"--match one: expected --masks to be one file. Received {masks}.")
    where = Inputs(
        base=storage.select(images).base,
        images=storage.normalize(images),
        masks=address,
        match=match or ("one" if is_file else "stem"),
    )
    return where, image_files, mask_files


def _require_files(option: str, pattern: str) -> list[str]:
    selected, lost = storage.select(pattern), dict[str, Denied]()
    advice = {"list": "--pairs takes lists of images and masks"} if option == "--images" else {}
    recognize.require_files(option, pattern, "image files", advice)
    if found := list_files(selected, lost):
        return found
    raise next(iter(lost.values()), UserError(f"{option}: no files at {selected.address}"))


def list_roots(pattern: str, other: str = "") -> Iterator[tuple[str, str] | Reject]:
    """(root, address) of each file that ``pattern`` selects.

    A folder that may not be listed is a `Reject`, and so is a file whose name cannot be an output's.

    Args:
        other: pattern of the other files, masks or images: what it selects in a deeper folder is not this one's.
    """
    selected, lost = storage.select(pattern), dict[str, Denied]()
    others = storage.select(other) if other else selected
    inner = others.base.startswith(storage.join(selected.base, ""))
    for address in list_files(selected, lost):
        if (inner and others.holds(address)) or (others.name and others != selected and address == others.address):
            continue
        name = storage.relative(address, selected.base)
        yield _check_name(address, name) or (root_of(name), address)
    yield from (reject(folder, "list", error) for folder, error in lost.items())


def _check_name(address: str, name: str) -> Reject | None:
    """The `Reject` of a file whose name below the folder of images or masks is not UTF-8, or goes up and down."""
    if not is_text(address):
        return reject_name(address)
    if _DOTS.isdisjoint(name.split("/")):
        return None
    return reject(address, "match", MatchError("expected a name without the parts . and .., which no file can have"))


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


def resolve_hole(hole: str | None, where: Inputs, masks: list[str]) -> str:
    """The color of holes in mask files: the one that was given, or the one that their folder's manifest states.

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


# Matching


def match_all(where: Inputs, extension: str = "") -> Iterator[Item | Reject]:
    """Items of all images and their masks, and what is rejected: what the inpainting job does in parallel."""
    if where.listed:
        listed: dict[str, list[tuple[str, str]]] = {}
        for pair in list_pairs(where.listed, where.base):
            if isinstance(pair, Reject):
                yield pair
            else:
                listed.setdefault(pair[0], []).append(pair[1])
        for stem in listed.items():
            yield from match_listed(stem, where.base, True, extension)
        return
    roots: dict[str, dict[str, list[str]]] = {}
    for kind, (pattern, other) in where.kinds.items():
        for file in list_roots(pattern, other):
            if isinstance(file, Reject):
                yield file
            else:
                roots.setdefault(file[0], {kind: [] for kind in where.kinds})[kind].append(file[1])
    lone, mask_base = where.lone, storage.select(where.masks).base if where.masks else ""
    for root in roots.items():
        yield from match_files(root, where, extension, lone, mask_base)


def match_files(
    group: tuple[str, Mapping[str, Iterable[str]]],
    where: Inputs,
    extension: str,
    lone: bool = False,
    mask_base: str | None = None,
) -> Iterator[Item | Reject]:
    """Items of the files of one root; a file without a counterpart, or with unclear ones, becomes a `Reject`.

    Args:
        group: root, and addresses of ``images`` and ``masks``; no entry for masks if each image has the mask
            ``where.masks``, or none.
        extension: of the outputs.
        lone: whether one image alone is to be inpainted: masks of others are no inputs then.
        mask_base: folder of all masks; None asks the storage.
    """
    found = group[1]
    images = {storage.relative(address, where.base): address for address in found["images"]}
    if "masks" not in found:
        outputs = _outputs(images, extension)
        yield from (Item(address, where.masks, outputs[name]) for name, address in sorted(images.items()))
        return
    base = storage.select(where.masks).base if mask_base is None else mask_base
    masks = {storage.relative(address, base): address for address in found["masks"]}
    shared = images.keys() & masks.keys() if base == where.base else set()
    if where.match == "path":
        own = {name: [name] if name in masks.keys() - shared else [] for name in images}
        matched = Match(masks=own, strays=sorted(masks.keys() - images))
    else:
        matched = match_names(images, masks, shared)
    outputs = _outputs([*matched.masks, *matched.unclear], extension)
    for name, mine in sorted(matched.masks.items()):
        if mine:
            first, *more = (masks[mask] for mask in mine)
            yield Item(images[name], first, outputs[name], tuple(more))
        else:
            stem = stem_of(name)
            wanted = name if where.match == "path" else f"{stem}.*, {stem}_mask.* or {name}.*"
            yield reject(images[name], "match", MatchError(f"expected a mask file named {wanted}. Found none."))
    for name, mine in sorted(matched.unclear.items()):
        yield reject(images[name], "match", MatchError(f"{_CLEAR} Found {', '.join(mine[:4])}."))
    for mask in () if lone else matched.strays:
        wanted = mask if where.match == "path" else f"{without_mask(stem_of(mask)) or stem_of(mask)}.*"
        yield reject(masks[mask], "match", MatchError(f"expected an image file named {wanted}. Found none."))


def _outputs(names: Iterable[str], extension: str) -> dict[str, str]:
    """Path of the output of each image path."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(stem_of(name), []).append(name)
    return {name: output for alike in stems.values() for name, output in output_names(alike, extension).items()}


def match_listed(
    group: tuple[str, Iterable[tuple[str, str]]], base: str, needs_mask: bool, extension: str
) -> Iterator[Item | Reject]:
    """Items of the listed pairs of one stem; an image that needs a mask and has none becomes a `Reject`."""
    listed: dict[str, list[str]] = {}
    for image, mask in sorted(set(group[1])):
        listed.setdefault(image, []).extend([mask] if mask else [])
    outputs = output_names((storage.relative(image, base) for image in listed), extension)
    for image, masks in listed.items():
        output = outputs[storage.relative(image, base)]
        if not needs_mask:
            yield Item(image, "", output)
        elif masks:
            yield Item(image, masks[0], output, tuple(masks[1:]))
        else:
            yield reject(image, "match", MatchError("expected a mask in the list. Found none."))


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
