"""Which mask files belong to which images, by their names.

Masks of the image ``x/a.jpg``, each with any extension, in any case and with ``-``, ``.`` or a blank for ``_``:

    x/a                      the image's name
    x/a.jpg                  and its extension: x/a.jpg.png
    x/a_mask  x/mask_a       and the word, also with the extension: x/a.jpg_mask.png
    x/a_mask_1  x/a_mask002  several masks: their holes are joined
    x/mask_7                 of the image x/image_7.jpg or x/img_7.jpg

The first of these that names an image counts: ``a_mask.png`` is the mask of ``a_mask.jpg`` where there is one.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# Also ``mask001``: digits need no separator.
_MASK_FIRST = re.compile(r"masks?(?:[ _.-]+|(?=\d))(?P<rest>.+)", re.IGNORECASE | re.DOTALL)
_MASK_LAST = re.compile(r"(?P<rest>.+?)(?:[ _.-]+masks?|[ ]?\(masks?\))(?:[ _.-]*\d+)?", re.IGNORECASE | re.DOTALL)
_IMAGE_FIRST = re.compile(r"(?:image|img)(?:[ _.-]+|(?=\d))(?P<rest>.+)", re.IGNORECASE | re.DOTALL)
_IMAGE_LAST = re.compile(r"(?P<rest>.+?)[ _.-]+(?:image|img)", re.IGNORECASE | re.DOTALL)
_EXTENSIONS = re.compile(r"\.(?:avif|bmp|gif|hei[cf]|jpe?g|jp2|mpo|png|p[bgnp]m|tiff?|webp)", re.IGNORECASE)


@dataclass
class Match:
    """What belongs together among files of one `root_of`.

    Attributes:
        masks: those of each image, in order; none, one, or several whose holes are to be joined.
        unclear: images whose masks cannot be told, and the masks that may be theirs.
        strays: masks of no image.
    """

    masks: dict[str, list[str]] = field(default_factory=dict)
    unclear: dict[str, list[str]] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)


def stem_of(name: str) -> str:
    """Path without extension."""
    dot, slash = name.rfind("."), name.rfind("/")
    if slash + 1 < dot and name[slash + 1] != ".":  # as most names are: what follows says the same, more slowly
        return name[:dot]
    return posixpath.splitext(name)[0]


def _strip(name: str, *rules: re.Pattern[str]) -> str | None:
    """``name``, a path, without a word before or after its last part; None if it has none of them."""
    folder, slash, last = name.rpartition("/")
    found = next(filter(None, (rule.fullmatch(last) for rule in rules)), None)
    return folder + slash + found["rest"] if found else None


def without_mask(name: str) -> str | None:
    """``x/a`` of ``x/a_mask`` and the like, ``x/a.jpg`` of ``x/a_mask.jpg``; None for other names."""
    stem, extension = posixpath.splitext(name)
    if not _EXTENSIONS.fullmatch(extension):
        return _strip(name, _MASK_LAST, _MASK_FIRST)
    bare = _strip(stem, _MASK_LAST, _MASK_FIRST)
    return bare and bare + extension


def root_of(name: str) -> str:
    """What the names of an image and of all its masks have in common, so that files can be grouped before matching."""
    root, shorter = None, stem_of(name)
    if _is_plain(name[name.rfind("/") + 1 :]):  # as most names are: the loop says the same, more slowly
        return shorter
    while root != shorter:
        root = shorter
        stem, extension = posixpath.splitext(root)
        shorter = stem if _EXTENSIONS.fullmatch(extension) else _strip(root, *_RULES) or root
    return root


def roots_of(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """`stem_of` and `root_of` of each of many names."""
    text = "\0" + "\0".join(names)
    # With one dot each, which begins an extension, and none of the words anywhere: asked once for all.
    if names and text.isascii() and text.count(".") == len(names) and "/." not in text and "\0." not in text:
        lower = text.lower()
        if "mask" not in lower and "im" not in lower:
            end = names[0][names[0].rfind(".") :] + "\0"
            if "/" not in end and f"{text}\0".count(end) == text.count("\0") == len(names):
                same = f"{text}\0".replace(end, "\0").split("\0")[1:-1]  # all have one extension: a tenth of the time
                return same, same[:]
            stems, dots, ends = zip(*[name.rpartition(".") for name in names], strict=True)
            if all(dots) and not any("/" in end for end in set(ends)):
                return list(stems), list(stems)
    return [stem_of(name) for name in names], [root_of(name) for name in names]


def _is_plain(last: str) -> bool:
    """Whether the last part of a path has neither one of the words nor two extensions."""
    lower = last.lower()  # of ASCII alone what the rules take for lower case
    return last.isascii() and last.count(".") < 2 and "mask" not in lower and "im" not in lower


_RULES = (_MASK_LAST, _MASK_FIRST, _IMAGE_LAST, _IMAGE_FIRST)


def _readings(mask: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of what a mask's name may say about its image, the plainest first: see `_index`."""
    stem = stem_of(mask)
    yield from (("stem", stem), ("name", stem))
    if bare := without_mask(stem):
        yield from (("stem", bare), ("name", bare), ("bare", bare))


def _index(images: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """Images by all that a mask's name may say about them."""
    found: dict[tuple[str, str], list[str]] = {}
    for image in images:
        keys = [("stem", stem_of(image)), ("name", image)]
        if bare := _strip(stem_of(image), _IMAGE_LAST, _IMAGE_FIRST):
            keys.append(("bare", bare))
        for key in keys:
            found.setdefault(key, []).append(image)
    return found


def _owners(mask: str, index: Mapping[tuple[str, str], list[str]], but: str = "") -> tuple[int, list[str]]:
    """The images that a mask may belong to, and the number of the reading that says so."""
    for number, reading in enumerate(_readings(mask)):
        if images := [image for image in index.get(reading, ()) if image != but]:
            return number, images
    return -1, []


def match_names(images: Iterable[str], masks: Iterable[str], both: Iterable[str] = ()) -> Match:
    """What belongs together.

    Args:
        images: paths of one `root_of`, below the folder of all images.
        masks: paths of the same root, below the folder of all masks.
        both: paths of files that are listed as images and as masks: each is the one or the other.
    """
    shared, found = set(both), Match()
    index = _index(images := sorted(images))
    no_image, no_mask = set(), set()
    for name in sorted(shared):
        reading, owners = _owners(name, index, but=name)
        if not owners or (reading == 0 and shared.issuperset(owners)):
            no_mask.add(name)
        if owners:
            no_image.add(name)
        if name in no_image & no_mask:  # a.jpg and a.png: either may be the other's mask
            found.unclear[name] = owners
    images = [name for name in images if name not in no_image]
    masks = [name for name in sorted(masks) if name not in no_mask]
    index = _index(images)
    ways: dict[str, list[tuple[str, int, list[str]]]] = {image: [] for image in images}
    for mask in masks:
        reading, owners = _owners(mask, index)
        for image in owners:
            ways[image].append((mask, reading, owners))
        if not owners:
            found.strays.append(mask)
    for image, mine in ways.items():
        into = found.masks if _belong_together(mine) else found.unclear
        into[image] = [mask for mask, *_ in mine]
    return found


def _belong_together(masks: list[tuple[str, int, list[str]]]) -> bool:
    """Whether masks that may be an image's are its own: named in one way, and if several, by numbers."""
    readings = {reading for _, reading, _ in masks}
    owners = {tuple(owners) for *_, owners in masks}
    stems = {stem_of(mask) for mask, *_ in masks}
    if len(owners) > 1 or any(len({stem_of(image) for image in images}) > 1 for images in owners):
        return False
    return len(masks) < 2 or (len(stems) == len(masks) and min(readings) >= 2)
