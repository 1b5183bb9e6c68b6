"""Commands that write datasets, given again: with other options, other inputs, or on a dataset that was damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from picture_files import block, noise, save, save_mask
from pipelines import build_imagenet, build_masks
from trainer import storage
from trainer.command import SOME_REJECTED
from trainer.data.manifest import load_manifest
from trainer.errors import UserError

MASKS = ["--count", "12", "--size", "32", "--num-shards", "2"]


def contents(folder) -> dict[str, bytes]:
    """Every file, by path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def draw(output, *options: str) -> int:
    return build_masks.main(["--output", str(output), *MASKS, *options])


def build(source, output, *options: str) -> int:
    return build_imagenet.main(["--input", str(source), "--output", str(output), *options])


def take_photos(folder):
    """Four photographs."""
    for number, name in enumerate(("a", "b", "x/c", "x/d")):
        save(f"{folder}/photos/{name}.png", noise(20, 30, 3, number))
    return folder / "photos"


@pytest.fixture
def photos(tmp_path):
    return take_photos(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with the datasets ``masks`` and ``images``, of the ``photos`` beside them, which no test changes."""
    folder = tmp_path_factory.mktemp("made")
    assert draw(folder / "masks") == 0 and build(take_photos(folder), folder / "images") == 0
    return folder


# Other options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "seed is 1 and was 0"),
        (["--count", "18"], "count is 18 and was 12"),
        (["--size", "48"], "height is 48 and was 32"),
        (["--generator", "boxes"], 'generator is "boxes" and was "shapes"'),
        (["--hole-ratio", "0.1,0.2"], r"hole_ratio is \[\[0.1, 0.2\]\] and was \[\[0.01, .*\]\]"),
        (["--border", "none"], r'border is \["none"\] and was \["any"\]'),
        (["--margin", "5"], "margin is 5 and was 3"),
        (["--num-shards", "3"], "num_shards.train is 3 and was 2"),
        (["--split", "val"], 'mask_seed is 1 and was 0|split is "val" and was "train"'),
    ],
)
def test_masks_of_other_options_are_not_finished(options, message, made):
    before = contents(made / "masks")
    with pytest.raises(UserError, match=f"masks holds the dataset of another job, ({message}): --overwrite, or choose"):
        draw(made / "masks", *options)
    assert contents(made / "masks") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short-side", "16"], "short_side is 16 and was null"),
        (["--quality", "80"], "quality is 80 and was 95"),
        (["--max-pixels", "1000"], "max_pixels is 1000 and was 100000000"),
        (["--min-side", "9"], "min_side is 9 and was 1"),
        (["--limit", "3"], "limit is 3 and was null"),
        (["--num-shards", "2"], "num_shards.train is 2 and was 1"),
        (["--split", "val"], "num_shards.val is 1 and was null"),
        (["--input", "{0}/x"], 'input is ".*/photos/x" and was ".*/photos"'),
        (["--input", "{0}/**"], r'input is ".*/photos/\*\*" and was ".*/photos"'),
    ],
)
def test_images_of_other_options_are_not_finished(options, message, made):
    before = contents(made / "images")
    with pytest.raises(
        UserError, match=f"images holds the dataset of another job, ({message}): --overwrite, or choose"
    ):
        build(made / "photos", made / "images", *(option.format(made / "photos") for option in options))
    assert contents(made / "images") == before


def test_the_same_options_are_finished_and_others_may_replace_them(tmp_path, photos, capsys):
    assert draw(tmp_path / "set") == 0 and draw(f"{tmp_path}/x/../set/") == 0
    assert draw(tmp_path / "set", "--seed", "1", "--overwrite") == 0
    assert draw(tmp_path / "set", "--seed", "1") == 0
    assert build(photos, tmp_path / "images") == 0
    assert build(f"{photos}/x/../", tmp_path / "images", "--split", "train") == 0
    assert capsys.readouterr().err.count("is already complete, nothing to do") == 3


def test_classes_are_part_of_the_dataset(tmp_path):
    for synset in ("n01", "n03"):
        save(f"{tmp_path}/tree/train/{synset}/{synset}_1.png", noise(20, 30, 3))
    assert build(tmp_path / "tree", tmp_path / "set") == 0
    (tmp_path / "tree" / "train" / "n02").mkdir()  # labels move up
    with pytest.raises(UserError, match="synsets is other ones and was these"):
        build(tmp_path / "tree", tmp_path / "set")


def test_the_same_words_in_another_folder_are_other_files(tmp_path, monkeypatch):
    for place in ("first", "second"):
        save_mask(f"{tmp_path}/{place}/holes/a.png", block(30, 40))
    options = ["--generator", "files", "--mask-files", "holes", "--hole", "black"]
    monkeypatch.chdir(tmp_path / "first")
    assert draw(tmp_path / "set", *options) == 0
    assert load_manifest(f"{tmp_path}/set", "mask").parameters["sources"]["mask_files"] == f"{tmp_path}/first/holes"
    assert draw(tmp_path / "set", *options) == 0
    monkeypatch.chdir(tmp_path / "second")
    with pytest.raises(UserError, match=r'sources.mask_files is ".*/second/holes" and was ".*/first/holes"'):
        draw(tmp_path / "set", *options)


def test_datasets_of_earlier_versions_are_finished(tmp_path, photos, monkeypatch):
    """Their manifests have fewer parameters, other code versions, and addresses as they were typed."""

    def rewrite(folder, change):
        manifest = json.loads((folder / "manifest.json").read_bytes())
        change(manifest["parameters"])
        (folder / "manifest.json").write_text(json.dumps({**manifest, "code_version": "0.0.1"}))

    assert build(photos, tmp_path / "images") == 0
    rewrite(tmp_path / "images", lambda parameters: parameters.pop("min_side"))
    assert build(photos, tmp_path / "images") == 0
    with pytest.raises(UserError, match="min_side is 9 and was 1"):
        build(photos, tmp_path / "images", "--min-side", "9")
    save_mask(f"{tmp_path}/holes/a.png", block(30, 40))
    options = ["--generator", "files", "--mask-files", "holes", "--hole", "black"]
    monkeypatch.chdir(tmp_path)
    assert draw(tmp_path / "masks", *options) == 0
    rewrite(tmp_path / "masks", lambda parameters: parameters["sources"].update(mask_files="holes/"))
    assert draw(tmp_path / "masks", *options) == 0


def test_a_dataset_that_an_earlier_version_wrote_is_finished(tmp_path, capsys):
    """Copied, so that all its files are newer than its manifest, or as old."""
    copy = shutil.copytree(Path(__file__).parent / "written_by_383277e" / "masks", tmp_path / "masks")
    options = ["--output", str(copy), "--count", "8", "--size", "32", "--num-shards", "2"]
    assert build_masks.main(options) == 0
    assert "is already complete, nothing to do" in capsys.readouterr().err
    with pytest.raises(UserError, match="seed is 7 and was 0"):
        build_masks.main([*options, "--seed", "7"])


# Another kind of job


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_dataset_is_not_taken_for_one_of_the_other_kind(options, made):
    before = {kind: contents(made / kind) for kind in ("masks", "images")}
    with pytest.raises(UserError, match=r"masks holds a dataset of mask records \(manifest.json\). Expected a dataset"):
        build(made / "photos", made / "masks", *options)
    with pytest.raises(UserError, match=r"images holds a dataset of image records .* choose another folder"):
        draw(made / "images", *options)
    assert before == {kind: contents(made / kind) for kind in ("masks", "images")}


def test_overwrite_removes_what_the_manifest_lists(tmp_path):
    """Records of another program, beside a dataset of ours, are not."""
    assert draw(tmp_path / "set") == 0
    mine = {"other-00000-of-00001.tfrecord": b"mine", "rejects/other.jsonl": b"mine", "notes.txt": b"mine"}
    for name, data in mine.items():
        storage.create(f"{tmp_path}/set/{name}", data)
    assert draw(tmp_path / "set", "--num-shards", "3", "--overwrite") == 0
    found = contents(tmp_path / "set")
    assert mine.items() <= found.items()
    shards = sorted(name for name in found if name.endswith("tfrecord") and name not in mine)
    assert shards == [f"train-0000{number}-of-00003.tfrecord" for number in range(3)]


# Other contents


def edit(path, data: bytes) -> None:
    """Changes a file in place and sets the time of its last write back."""
    before = os.stat(path)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def changes(photos) -> dict:
    one, other = photos / "a.png", photos / "b.png"
    return {
        "edited": lambda: edit(one, other.read_bytes()),
        "added": lambda: shutil.copy2(one, photos / "x" / "e.png"),
        "removed": lambda: one.unlink(),
        "renamed": lambda: one.rename(photos / "z.png"),
    }


@pytest.mark.parametrize("change", ["edited", "added", "removed", "renamed"])
def test_a_dataset_of_images_that_changed_since_is_not_finished(change, photos, tmp_path, capsys):
    assert build(photos, tmp_path / "set") == 0
    before = contents(tmp_path / "set")
    changes(photos)[change]()
    with pytest.raises(
        UserError, match="train-00000-of-00001.tfrecord exists with other contents: --overwrite, or choose"
    ):
        build(photos, tmp_path / "set")
    assert "set is complete, but its inputs may have changed since: comparing it" in capsys.readouterr().err
    assert contents(tmp_path / "set") == before
    assert build(photos, tmp_path / "set", "--overwrite") == 0
    assert contents(tmp_path / "set") != before
    assert build(photos, tmp_path / "set") == 0
    assert "is already complete" in capsys.readouterr().err


def test_images_that_only_look_changed_are_no_other_input(photos, tmp_path, capsys):
    assert build(photos, tmp_path / "set") == 0
    before = contents(tmp_path / "set")
    os.utime(photos / "a.png")
    assert build(photos, tmp_path / "set") == 0
    shown = capsys.readouterr()
    assert "comparing it with what they give now" in shown.err and f"4 images in {tmp_path}/set" in shown.out
    assert contents(tmp_path / "set") == before


def test_objects_that_changed_since_are_other_inputs(photos, bucket, capsys):
    for path in photos.glob("*.png"):
        storage.create(f"{bucket}/in/{path.name}", path.read_bytes())
    assert build(f"{bucket}/in", f"{bucket}/set") == 0
    assert build(f"{bucket}/in", f"{bucket}/set") == 0
    assert "is already complete" in capsys.readouterr().err
    storage.delete(f"{bucket}/in/a.png")  # which leaves no trace but the number of images
    with pytest.raises(UserError, match="exists with other contents"):
        build(f"{bucket}/in", f"{bucket}/set")
    storage.create(f"{bucket}/in/a.png", (photos / "b.png").read_bytes())
    with pytest.raises(UserError, match="exists with other contents"):
        build(f"{bucket}/in", f"{bucket}/set")
    storage.overwrite(f"{bucket}/in/a.png", (photos / "a.png").read_bytes())
    assert build(f"{bucket}/in", f"{bucket}/set") == 0


def test_masks_of_files_that_changed_since_are_not_finished(tmp_path):
    save_mask(f"{tmp_path}/holes/a.png", block(30, 40))
    options = ["--generator", "files", "--mask-files", f"{tmp_path}/holes", "--hole", "black"]
    assert draw(tmp_path / "set", *options) == 0
    before = contents(tmp_path / "set")
    storage.delete(f"{tmp_path}/holes/a.png")
    save_mask(f"{tmp_path}/holes/a.png", block(40, 30))
    with pytest.raises(UserError, match="exists with other contents: --overwrite, or choose another folder"):
        draw(tmp_path / "set", *options)
    assert contents(tmp_path / "set") == before  # the contact sheet, too


# Damage


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "emptied": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "other bytes": lambda path: edit(path, path.read_bytes()[:-1] + b"?"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_made_again(damage, tmp_path, capsys):
    assert draw(tmp_path / "set") == 0
    whole = contents(tmp_path / "set")
    untouched = os.stat(tmp_path / "set" / "train-00000-of-00002.tfrecord").st_ino
    DAMAGE[damage](tmp_path / "set" / "train-00001-of-00002.tfrecord")
    assert draw(tmp_path / "set") == 0
    assert (
        "set: made again, for they are missing or damaged: train-00001-of-00002.tfrecord\n" in capsys.readouterr().err
    )
    assert contents(tmp_path / "set") == whole
    assert os.stat(tmp_path / "set" / "train-00000-of-00002.tfrecord").st_ino == untouched


def test_a_damaged_shard_in_a_bucket_is_made_again(bucket):
    assert draw(f"{bucket}/set") == 0
    shard = f"{bucket}/set/train-00001-of-00002.tfrecord"
    whole = storage.read(shard)
    storage.overwrite(shard, whole[:-1] + b"?")
    assert draw(f"{bucket}/set") == 0 and storage.read(shard) == whole


def test_rejects_that_are_gone_are_written_again(photos, tmp_path):
    (photos / "x" / "text.png").write_bytes(b"no image")
    assert build(photos, tmp_path / "set") == SOME_REJECTED
    whole = contents(tmp_path / "set")
    (tmp_path / "set" / "rejects" / "train.jsonl").unlink()
    assert build(photos, tmp_path / "set") == SOME_REJECTED
    assert contents(tmp_path / "set") == whole
