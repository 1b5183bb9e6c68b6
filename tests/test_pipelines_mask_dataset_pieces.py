"""pipelines.mask_dataset.pieces: a mask job that was killed draws nothing again that it had drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json

import pytest

from masks.sampling import MaskSpec
from pipelines.build_masks import main
from pipelines.mask_dataset import pieces, sampling
from pipelines.mask_dataset.pieces import MaskShards, cut_shard, dump_tally, parse_tally, place_masks
from pipelines.mask_dataset.plan import Plan
from pipelines.mask_dataset.sampling import Cell, Count
from pipelines.transforms import dataset_writer
from pipelines.transforms.dataset_writer import shard_of
from trainer import storage
from trainer.data import kept

COUNT = 130
OPTIONS = ["--count", str(COUNT), "--size", "48", "--seed", "5", "--num-shards", "3"]
SHARDS = [0, 0, 0]  # masks of each
for index in range(COUNT):
    SHARDS[int.from_bytes(hashlib.blake2b(b"%012d" % index, digest_size=8).digest(), "big") % 3] += 1


class Killed(Exception):
    """The machine is gone."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "_LEAST", 8)


@pytest.fixture
def drawn(monkeypatch):
    """Indices of the masks that were drawn."""
    found, sample = [], sampling.sample_mask
    monkeypatch.setattr(sampling, "sample_mask", lambda spec, index: found.append(index) or sample(spec, index))
    return found


def contents(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "set"
    assert main(["--output", str(folder), *OPTIONS]) == 0
    return {name: data for name, data in contents(folder).items() if not name.startswith(".claims/")}


def kill(folder, monkeypatch, files: int) -> None:
    """A job that is killed when it is to create one more file of masks than ``files``."""
    create, left = storage.create, [files]

    def create_until_death(address, data):
        if address.endswith((".piece", ".tfrecord")):
            if left[0] == 0:
                raise Killed("the machine is gone")
            left[0] -= 1
        create(address, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", create_until_death)
        with pytest.raises(Exception, match="the machine is gone"):
            main(["--output", str(folder), *OPTIONS])
    assert not (folder / "manifest.json").exists()


def finish(folder, whole) -> None:
    assert main(["--output", str(folder), *OPTIONS]) == 0
    assert {name: data for name, data in contents(folder).items() if not name.startswith(".claims/")} == whole


def masks_in(folder) -> dict[str, int]:
    """How many masks each piece has that is there."""
    found = {path.name: path.read_bytes() for path in (folder / kept.FOLDER).glob("*.piece")}
    heads = {name: json.loads(data.partition(b"\n")[0]) for name, data in found.items()}
    return {name: sum(row[3] for row in json.loads(head["notes"])) for name, head in heads.items()}


@pytest.mark.parametrize("there", [1, 11])
def test_pieces_that_are_there_are_not_drawn_again(there, whole, drawn, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    kill(folder, monkeypatch, there)
    known = masks_in(folder)
    assert len(known) == there and max(known.values()) == 8
    drawn.clear()
    finish(folder, whole)
    assert len(drawn) == len(set(drawn)) == COUNT - sum(known.values())


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_that_are_there_are_neither_drawn_nor_written_again(shards, whole, drawn, tmp_path, monkeypatch):
    folder, files = tmp_path / "set", sum(-(-count // 8) for count in SHARDS)
    if shards < 3:
        kill(folder, monkeypatch, files + shards)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(dataset_writer, "dump_manifest", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                main(["--output", str(folder), *OPTIONS])
    there = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tfrecord")}
    assert len(there) == shards and len(masks_in(folder)) == sum(-(-count // 8) for count in SHARDS[shards:])
    drawn.clear()
    finish(folder, whole)
    assert not drawn
    assert there.items() <= {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tfrecord")}.items()


@pytest.mark.parametrize("damage", ["piece", "notes", "shard"])
def test_what_is_not_as_it_was_written_is_drawn_again(damage, whole, drawn, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    kill(folder, monkeypatch, sum(-(-count // 8) for count in SHARDS) + 1)
    if damage == "shard":
        (path,) = folder.glob("*.tfrecord")
        size = SHARDS[int(path.name[6:11])]
        path.unlink()
    else:
        path = folder / kept.FOLDER / min(masks_in(folder))
        size, data = masks_in(folder)[path.name], path.read_bytes()
        path.write_bytes(data[:-1] + b"?" if damage == "piece" else data.replace(b"shapes", b'sha"es', 1))
    drawn.clear()
    finish(folder, whole)
    assert len(drawn) == size


def test_what_would_be_drawn_otherwise_is_not_taken():
    specs = (MaskSpec(generator="shapes", height=48, width=48, hole_ratio=(0.1, 0.2), seed=1),)
    plan = Plan(specs, 100, "train")
    job = MaskShards(plan, 2, "set")
    others = [
        MaskShards(dataclasses.replace(plan, specs=(dataclasses.replace(specs[0], seed=2),)), 2, "set"),
        MaskShards(dataclasses.replace(plan, count=101), 2, "set"),
        MaskShards(dataclasses.replace(plan, split="val"), 2, "set"),
        MaskShards(plan, 3, "set"),
    ]
    assert len({one.made_of for one in (job, *others)}) == 5 and dataclasses.replace(job).made_of == job.made_of


def test_each_mask_is_in_one_piece_of_its_shard():
    specs = (MaskSpec(generator="shapes", height=48, width=48, hole_ratio=(0.1, 0.2)),)
    job, count = MaskShards(Plan(specs, 40_000, "train"), 3, "/nowhere"), 40_000
    placed: dict[int, list[list[int]]] = {}
    for first in range(0, count, pieces.PLACED):
        for shard, indices in place_masks(first, job):
            placed.setdefault(shard, []).append(indices)
    found = [place for shard, parts in placed.items() for place in cut_shard((shard, reversed(parts)), job)]
    assert sorted(index for _, _, indices in found for index in indices) == list(range(count))
    assert all(indices == sorted(indices) and len(indices) <= job.size == 156 for _, _, indices in found)
    assert all(shard_of(f"{index:012d}", 3) == shard for shard, _, indices in found for index in indices)
    in_order = sorted(found)
    for one, other in itertools.pairwise(in_order):
        assert one[0] != other[0] or one[2][-1] < other[2][0]


def test_a_tally_survives_as_text():
    tally = {Cell("shapes", 0, 1): Count(3, 7, b"\0png"), Cell("boxes", -1, 0): Count(1, 2, b"")}
    assert parse_tally(dump_tally(tally)) == tally
    for text in ("", "{}", "[[1]]", '[["shapes", 0, 1, 3, -7, ""]]', '[["shapes", 0, 1, 3, 7, "?"]]'):
        assert parse_tally(text) is None
