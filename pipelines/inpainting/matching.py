"""Which mask belongs to which image, and where the output goes.

An output has its image's path below the folder of all images, with the extension of the output's format: ``x/a.jpg``
becomes ``x/a.png``. Images that differ in the extension alone keep it: ``a.jpg`` and ``a.tif`` become ``a.jpg.png``
and ``a.tif.png``. What would still be written to one place is rejected, all of it.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipelines.inpainting.inputs import Inputs, Item, MatchError, Sources, common_folder, list_files, list_pairs
from pipelines.inpainting.pages import Share, as_path, hash_of
from pipelines.inpainting.versions import Record, files_of, is_seen, source_of
from pipelines.pairs.lists import find_lists, read_pairs
from pipelines.pairs.names import Match, match_names, root_of, roots_of, stem_of, without_mask
from pipelines.transforms.rejects import Reject, reject
from trainer import storage

_CLEAR = (
    "expected masks that are this image's alone: one file, or some that are numbered, as a_mask_1.png and a_mask_2.png "
    "are (--pairs takes a list of any)."
)


def output_names(names: Iterable[str], extension: str) -> dict[str, str]:
    """Path of the output of each image path; ``names`` are all the paths that have one stem."""
    names = sorted(set(names))
    return {name: (stem_of(name) if len(names) == 1 else name) + extension for name in names}


def match_all(where: Inputs, extension: str = "") -> Iterator[Item | Reject]:
    """Items of all images and their masks, and what is rejected: what the inpainting job does share by share."""
    sources = Sources.find(where)
    if where.listed:
        rows = [row for found in find_lists(where.listed) for row in read_pairs(found.address)]
        base = where.base or common_folder(image for image, _ in rows)
        pairs: dict[str, list[tuple[str, str]]] = {}
        for pair in list_pairs(rows, base):
            if isinstance(pair, Reject):
                yield pair
            else:
                pairs.setdefault(stem_of(pair[0]), []).append(pair[1])
        for listed in pairs.values():
            yield from match_listed(listed, base, True, extension)
        return
    roots: dict[str, dict[str, list[str]]] = {}
    for kind in sources.kinds:
        for found in list_files(sources, kind):
            if isinstance(found, Reject):
                yield found
                continue
            for name in found[0]:
                roots.setdefault(root_of(name), {kind: [] for kind in sources.kinds})[kind].append(name)
    for root in roots.values():
        yield from match_files(root["images"], root.get("masks"), sources, extension)


def match_files(
    images: Collection[str], masks: Collection[str] | None, sources: Sources, extension: str, share: str = ""
) -> Iterator[Item | Reject]:
    """Items of the files of one root; a file without a counterpart, or with unclear ones, becomes a `Reject`.

    Args:
        images: paths below the folder of all images.
        masks: paths below the folder of all masks; None if each image has the mask ``where.masks``, or none.
        sources: where they are. If one image is named, masks of others are no inputs.
        extension: of the outputs.
        share: of the items.
    """
    where = sources.where
    address, mask_address = sources.image_address, sources.mask_address
    if masks is None:
        outputs = _outputs(images, extension)
        yield from (Item(address(name), where.masks, outputs[name], (), share) for name in sorted(images))
        return
    if len(images) == len(masks) == 1 and where.match == "stem" and (sources.apart or images != masks):
        (image,), (mask,) = images, masks
        if (stem := stem_of(image)) == stem_of(mask):  # as nearly all are: what follows says the same, more slowly
            yield Item(address(image), mask_address(mask), stem + extension, (), share)
            return
    shared = set() if sources.apart else set(images) & set(masks)
    if where.match == "path":
        free = set(masks) - shared
        own = {name: [name] if name in free else [] for name in images}
        matched = Match(masks=own, strays=sorted(set(masks) - set(images)))
    else:
        matched = match_names(images, masks, shared)
    outputs = _outputs([*matched.masks, *matched.unclear], extension)
    for name, mine in sorted(matched.masks.items()):
        if mine:
            first, *more = map(mask_address, mine)
            yield Item(address(name), first, outputs[name], tuple(more), share)
        else:
            stem = stem_of(name)
            wanted = name if where.match == "path" else f"{stem}.*, {stem}_mask.* or {name}.*"
            yield reject(address(name), "match", MatchError(f"expected a mask file named {wanted}. Found none."))
    for name, mine in sorted(matched.unclear.items()):
        yield reject(address(name), "match", MatchError(f"{_CLEAR} Found {', '.join(mine[:4])}."))
    for mask in () if sources.is_lone else matched.strays:
        wanted = mask if where.match == "path" else f"{without_mask(stem_of(mask)) or stem_of(mask)}.*"
        yield reject(mask_address(mask), "match", MatchError(f"expected an image file named {wanted}. Found none."))


class Alike(NamedTuple):
    """The files of one root: paths of images and of masks, each below the folder of all of them."""

    images: list[str]
    masks: list[str]


def pair_up(
    images: list[str], masks: list[str] | None, sources: Sources
) -> tuple[dict[str, tuple[str, str, str]], dict[str, Alike]]:
    """(stem, image, mask) by root where an image and its mask are the only ones of it, and the files of other roots.

    Nearly all are pairs, of which `match_files` says the same, one by one and more slowly.

    Args:
        images: different paths below the folder of all images.
        masks: different paths below that of all masks; None as of `match_files`, then those of the pairs are empty.
    """
    (stems, roots), (mask_stems, mask_roots) = roots_of(images), roots_of(masks or [])
    owners = dict(zip(roots, zip(stems, images, strict=True), strict=True))
    owned = dict(zip(mask_roots, zip(mask_stems, masks or [], strict=True), strict=True))
    crowded = _repeated(roots, len(owners)) | _repeated(mask_roots, len(owned))
    pairs: dict[str, tuple[str, str, str]] = {}
    if masks is None:
        pairs = {root: (stem, image, "") for root, (stem, image) in owners.items() if root not in crowded}
    elif sources.where.match == "stem":
        for root, (stem, image) in owners.items():
            mask_stem, mask = owned.get(root, ("", ""))
            if mask and mask_stem == stem and root not in crowded and (sources.apart or image != mask):
                pairs[root] = stem, image, mask
    others: dict[str, Alike] = {}
    if not len(owners) == len(pairs) == len(owned) or masks is None:
        for part, (found, paths) in enumerate(((roots, images), (mask_roots, masks or []))):
            for root, path in zip(found, paths, strict=True):
                if root not in pairs:
                    others.setdefault(root, Alike([], []))[part].append(path)
    return pairs, others


def _repeated(roots: list[str], different: int) -> set[str]:
    """Those that occur several times, if there are some."""
    if len(roots) == different:
        return set()
    return {root for root, count in collections.Counter(roots).items() if count > 1}


def collide(alike: Iterable[Item]) -> Iterator[tuple[Item, Reject]]:
    """The rejects of images that would have one output."""
    alike = sorted(alike)
    images = ", ".join(item.image for item in alike[:4]) + (", ..." if len(alike) > 4 else "")
    error = MatchError(
        f"expected one image for each output. Received {len(alike)} for {alike[0].output}: {images}. Rename them, or "
        "inpaint them into folders of their own."
    )
    yield from ((item, reject(item.image, "match", error)) for item in alike)


def _outputs(names: Iterable[str], extension: str) -> dict[str, str]:
    """Path of the output of each image path."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(stem_of(name), []).append(name)
    return {name: output for alike in stems.values() for name, output in output_names(alike, extension).items()}


def match_listed(
    pairs: Iterable[tuple[str, str]], base: str, needs_mask: bool, extension: str, share: str = ""
) -> Iterator[Item | Reject]:
    """Items of the listed pairs of one stem; an image that needs a mask and has none becomes a `Reject`."""
    listed: dict[str, list[str]] = {}
    for image, mask in sorted(set(pairs)):
        listed.setdefault(image, []).extend([mask] if mask else [])
    outputs = output_names((storage.relative(image, base) for image in listed), extension)
    for image, masks in listed.items():
        output = outputs[storage.relative(image, base)]
        if not needs_mask:
            yield Item(image, "", output, (), share)
        elif masks:
            yield Item(image, masks[0], output, tuple(masks[1:]), share)
        else:
            yield reject(image, "match", MatchError("expected a mask in the list. Found none."))


# Of a share


@dataclass
class Matched:
    """The items of a share by their outputs.

    Attributes:
        mine: the share.
        pairs: of those that have one image and one mask, or none that is listed: root, and paths of both. They are made
            into items when they are needed, as those of a finished job never are.
        items: all others.
        is_local: whether outputs are local files.
    """

    mine: Share
    pairs: dict[str, tuple[str, str, str]]
    items: dict[str, list[Item]]
    is_local: bool

    def __post_init__(self) -> None:
        sources = self.mine.sources
        self._begins = sources.image_address(""), sources.mask_address("")
        self._mask = sources.where.masks  # of all, or none
        self._mark = self.mine.mark_of(self._mask) if self._mask else ""

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(self.pairs, self.items)

    def alike(self, output: str) -> list[Item]:
        """The items that have an output."""
        if output in self.items:
            return self.items[output]
        (image, mask), root = self._files(output), self.pairs[output][0]
        return [Item(image, mask, output, (), hash_of(as_path(root) if self.is_local else root))]

    def add(self, item: Item) -> None:
        """Takes an item that is no pair, or collides with one."""
        if self.is_local:
            item = item._replace(output=as_path(item.output))
        if item.output not in self.items:
            self.items[item.output] = self.alike(item.output) if item.output in self.pairs else []
            self.pairs.pop(item.output, None)
        self.items[item.output].append(item)

    def _files(self, output: str) -> list[str]:
        _, image, mask = self.pairs[output]
        return [self._begins[0] + image, self._begins[1] + mask if mask else self._mask]

    def is_seen(self, output: str, record: Record) -> bool:
        """Whether a record is of an output's files, and lists tell that all of these are as they were."""
        mine = self.mine
        there = mine.outputs.get(record["pack"]["name"] if "pack" in record else output, "")
        if pair := self.pairs.get(output):
            _, image, mask = pair
            address, marks = self._begins[1] + mask if mask else self._mask, [mine.images[image]]
            if address:
                marks.append(mine.masks[mask] if mask else self._mark)
            is_one = record["image"] == self._begins[0] + image and record["mask"] == address
            return is_one and not record.get("more_masks") and is_seen(record, there, marks)
        (item,) = self.items[output]
        marks = [mine.mark_of(address) for address in (item.image, *item.masks)]
        return source_of(record) == files_of(item) and is_seen(record, there, marks)
