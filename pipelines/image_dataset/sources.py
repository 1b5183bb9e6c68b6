"""Sources of images: which form of ImageNet an address holds, and the parts it consists of.

    ILSVRC2012_img_train.tar                  a tar of class tars, n01440764.tar ...; read where it lies
    ILSVRC2012_img_val.tar, ..._test.tar      images; val's classes come from the development kit
    train/n01440764/n01440764_10026.JPEG      unpacked; val/ and test/ with or without class folders
    ILSVRC/Data/CLS-LOC/train/n01440764/...   Kaggle's folders; val's classes come from LOC_val_solution.csv
    any other folder, file or glob            images without classes

Every form gives an image the same key, split/synset/name, and so the same place in the same shard.
"""

from __future__ import annotations

import dataclasses
import itertools
import posixpath
import re
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pipelines.image_dataset import ilsvrc
from pipelines.image_dataset.parts import Part, TarError, list_twice
from pipelines.transforms.rejects import Reject, reject
from trainer import storage
from trainer.errors import Denied, UserError
from trainer.storage import recognize

K = TypeVar("K", bound=Hashable)

SPLITS = ("train", "val", "test")
_ENOUGH = 32  # parts that are listed at the same time
_THREADS = 16
_TAR = re.compile(r"_img_(train|val|test)\w*\.tar$")
_COMPRESSED = re.compile(r"_img_(train|val|test)\w*\.(?:tar\.\w+|tgz|tbz2?|txz|zip)$")
_DEVKIT = re.compile(r"devkit.*(\.tar(\.gz)?|/)$|validation_ground_truth\.txt$|^LOC_val_solution\.csv$")


_UNPACK = {
    "archive": "unpack it and name the folder (of a compressed tar, gunzip makes one that is read where it lies)",
    "archives": "unpack them, or name one tar",
}


@dataclass(frozen=True)
class Source:
    """What `find_source` found.

    Attributes:
        parts: of the wanted splits.
        synsets: of all splits, in label order.
        rejects: members that cannot hold images.
    """

    parts: tuple[Part, ...]
    synsets: tuple[str, ...] = ()
    rejects: tuple[Reject, ...] = ()

    def by_split(self) -> dict[str, list[Part]]:
        """The parts of each split."""
        found: dict[str, list[Part]] = {}
        for part in self.parts:
            found.setdefault(part.split, []).append(part)
        return found

    def places(self) -> set[str]:
        """The files and folders that the images and their classes are in."""
        images = {part.files.place if part.files else part.address for part in self.parts}
        found = images | {part.truth for part in self.parts if part.truth}
        return {place for place in found if not any(place.startswith(f"{other}/") for other in found)}

    def count(self) -> int | None:
        """The number of images, where deleting one leaves no other trace: in folders of a bucket. None elsewhere."""
        if not all(part.files and storage.is_remote(part.files.base) for part in self.parts):
            return None
        return len(self.rejects) + sum(part.count for part in self.parts)

    def cut(self) -> list[Part]:
        """The parts, large ones cut if there are few, to be listed at the same time."""
        few = len(self.parts) < _ENOUGH
        return [piece for part in self.parts for piece in (part.cut() if few else [part])]


def _tar_parts(address: str, split: str, truth: str) -> tuple[list[Part], list[Reject]]:
    """One part for each class tar in a tar, or one for a tar of images; and rejects for other members.

    Raises:
        UserError: the tar is damaged: without all class names there are no labels.
    """
    _, size, version, _ = storage.entry(address)
    try:
        found = list_twice(address, 0, size)
        first = next(found, None)
        if first is None or not first.name.endswith(".tar"):
            return [Part(split=split, address=address, bytes=size, version=version, truth=truth)], []
        members = [first, *found]
    except TarError as error:
        raise UserError(f"{address}: {error}") from None
    if broken := [member for member in members if member.problem]:
        raise UserError(f"{address}: {broken[0].name}: {broken[0].problem}")
    parts, rejects = [], []
    for member in members:
        synset, kind = posixpath.splitext(posixpath.basename(member.name))
        if kind == ".tar":
            part = Part(
                split=split,
                address=address,
                start=member.start,
                bytes=member.size,
                member=member.name,
                version=version,
                synset=synset,
            )
            parts.append(part)
        else:
            rejects.append(reject(address, "index", TarError("expected a tar of one class"), split, member.name))
    return parts, rejects


def _measure(
    selected: storage.Selection, key_of: Callable[[str], K], lost: dict[str, Denied]
) -> dict[K, tuple[int, int]]:
    """Bytes and number of the files of each key, which ``key_of`` makes of their names below the folder."""

    def measure(part: storage.Selection) -> dict[K, tuple[int, int]]:
        found: dict[K, tuple[int, int]] = {}
        for address, size in part.scan(lost):
            key = key_of(storage.relative(address, part.base))
            sizes, count = found.get(key, (0, 0))
            found[key] = sizes + size, count + 1
        return found

    parts = selected.cut() if storage.is_remote(selected.base) else [selected]
    total: dict[K, tuple[int, int]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for key, (size, count) in itertools.chain.from_iterable(found.items() for found in pool.map(measure, parts)):
            sizes, counts = total.get(key, (0, 0))
            total[key] = sizes + size, counts + count
    return total


def _tree_parts(folder: str, split: str, truth: str) -> list[Part]:
    """One part for each class folder, and one for the files directly in the split's folder.

    An object ``train//a.png`` is in no class: its folder has no name.
    """
    lost: dict[str, Denied] = {}

    def class_of(name: str) -> tuple[str, str]:
        synset, slash, _ = name.partition("/")
        return synset if slash else "", slash

    found = _measure(storage.Selection(folder), class_of, lost)
    if folder in lost:
        raise lost[folder]
    for address in lost:  # its part will tell
        found.setdefault((storage.relative(address, folder).partition("/")[0], "/"), (0, 0))
    return [
        Part(
            split=split,
            files=storage.Selection(
                storage.join(folder, synset) if synset else folder, "" if synset else f"{slash}**" if slash else "*"
            ),
            bytes=size,
            count=count,
            synset=synset,
            truth="" if synset else truth,
        )
        for (synset, slash), (size, count) in sorted(found.items())
    ]


def _other_images(selected: storage.Selection, splits: tuple[str, ...]) -> Source:
    """Images that are not in one of ImageNet's forms."""
    split = splits[0] if splits else "train"
    if len(splits) > 1 or not re.fullmatch(r"[\w-]+", split):
        raise UserError(f"--split: expected one name for images without splits. Received {','.join(splits)!r}.")
    lost: dict[str, Denied] = {}
    size, count = _measure(selected, lambda name: "", lost).get("", (0, 0))
    if not count:
        raise next(iter(lost.values()), UserError(f"no image files in or below {selected.address}"))
    return Source((Part(split=split, files=selected, bytes=size, count=count),))


def _find_truth(folders: list[str]) -> str:
    """Address of what states the classes of the validation images, in one of ``folders``; empty if nothing does."""
    for folder in folders:
        names = [posixpath.basename(address) for address, _ in storage.scan(folder, deep=False)]
        names = sorted(names + [name + "/" for name in storage.folders(folder)])
        for name in filter(_DEVKIT.search, names):
            return storage.join(folder, name.rstrip("/"))
    return ""


@dataclass(frozen=True)
class _Forms:
    """Folders and tars of splits: a split that exists in both forms is read from its folder.

    Attributes:
        root: folder of the tars.
        tree: folder of the splits' folders; empty without any.
        folders: splits that have a folder.
        tars: address of the tar of each other split.
    """

    root: str
    tree: str = ""
    folders: tuple[str, ...] = ()
    tars: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def tables(self) -> list[str]:
        """Folders that may hold files about the images."""
        outer = self.tree.removesuffix("/Data/CLS-LOC").removesuffix("/ILSVRC")
        return [self.root] + ([outer] if outer not in ("", self.root) else [])


def _find_forms(selected: storage.Selection) -> _Forms:
    root = selected.address
    if selected.glob:
        return _Forms(root)
    if selected.name:
        named = _TAR.search(root)
        is_tar = root.endswith(".tar") or recognize.archive_of(root) == "a tar"
        tars = {named[1] if named else "train": root} if is_tar else {}
        return _Forms(posixpath.dirname(root), tars=tars)
    candidates = [storage.join(root, *path) for path in ((), ("Data", "CLS-LOC"), ("ILSVRC", "Data", "CLS-LOC"))]
    for tree in candidates:
        if present := tuple(split for split in SPLITS if split in storage.folders(tree)):
            break
    names = [name for name, _ in storage.scan(root, deep=False)]
    tars = {found[1]: name for name in names if (found := _TAR.search(name)) and found[1] not in present}
    if compressed := [
        name for name in names if (found := _COMPRESSED.search(name)) and found[1] not in (*present, *tars)
    ]:
        raise UserError(f"--input: {compressed[0]} is compressed. Expected a tar that is not: gunzip {compressed[0]}.")
    return _Forms(root, tree if present else "", present, tars)


def _read_split(forms: _Forms, split: str, truth: str, wanted: bool) -> tuple[list[Part], list[Reject], set[str]]:
    """Parts, rejects and synsets of a split; of one that is not wanted only the synsets."""
    if split in forms.tars:
        parts, rejects = _tar_parts(forms.tars[split], split, truth)
        synsets = {part.synset for part in parts}
        return (parts, rejects, synsets) if wanted else ([], [], synsets)
    if split in forms.folders:
        folder = storage.join(forms.tree, split)
        return _tree_parts(folder, split, truth) if wanted else [], [], set(storage.folders(folder))
    return [], [], set()


def find_source(address: str, splits: tuple[str, ...] = (), devkit: str = "") -> Source:
    """The images at ``address``, in whichever form.

    Args:
        address: a folder, a tar, a file or a glob.
        splits: splits to read; all by default. Images without splits get this one, ``train`` by default.
        devkit: where the classes of validation images are, if not beside them.

    Raises:
        UserError: there are no images, or none of a split, or a tar of class tars is damaged.
    """
    selected = storage.select(address)
    if selected.name and recognize.archive_of(selected.address) not in (None, "a tar"):
        recognize.require_files("--input", address, "a folder, an uncompressed tar or image files", _UNPACK)
    root, forms = selected.address, _find_forms(selected)
    present = {*forms.folders, *forms.tars}
    if not present:
        recognize.require_files("--input", address, "a folder, an uncompressed tar or image files", _UNPACK)
        return _other_images(selected, splits)
    if wrong := [split for split in splits if split not in SPLITS]:
        raise UserError(f"--split: expected names of {SPLITS}. Received {wrong[0]!r}.")
    truth = storage.normalize(devkit) if devkit else _find_truth(forms.tables) if "val" in present else ""

    # All splits share the labels, so the classes of splits that are not wanted count as well.
    synsets = set(ilsvrc.validation_synsets(truth).values()) if truth else set()
    parts: list[Part] = []
    rejects: list[Reject] = []
    for split in SPLITS:
        wanted = not splits or split in splits
        found, lost, classes = _read_split(forms, split, truth if split == "val" else "", wanted)
        parts, rejects, synsets = parts + found, rejects + lost, synsets | classes
        if split in splits and not found:
            raise UserError(f"no image files below {storage.join(forms.tree or root, split)}")
    if not parts:
        raise UserError(f"no image files in or below {root}")
    for table in (storage.join(folder, ilsvrc.SYNSETS) for folder in forms.tables):
        if storage.exists(table):
            synsets |= ilsvrc.listed_synsets(table)
    return Source(tuple(parts), tuple(sorted(synsets - {""})), tuple(rejects))
