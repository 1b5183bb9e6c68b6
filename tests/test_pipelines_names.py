"""The jobs on names that people and systems give: wildcards, long ones, objects no file can be called, leftovers."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable

import pytest

from networks import save_network, small_config, write_run
from picture_files import block, counts, load, noise, save, save_mask
from pipelines import build_imagenet, build_masks, evaluate, inpaint
from trainer import checkpoints, export, storage, train
from trainer.data.manifest import load_manifest
from trainer.errors import UserError
from trainer.model.unet import build_unet

ODD = "x [v2] 50%*, who?"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(str(tmp_path_factory.mktemp("run")), small_config(32))


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """Address of an empty folder, local and in a bucket."""
    return str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("bucket") + "/place"


def make(folder: str, names: Iterable[str]) -> None:
    """Images and masks that differ from each other."""
    for number, name in enumerate(names):
        save(f"{folder}/in/{name}", noise(30, 40, 3, number))
        save_mask(f"{folder}/holes/{name}", block(30, 40))


def fill(folder: str, run: str, *options: str, output: str = "") -> int:
    where = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--hole", "black"]
    return inpaint.main([*where, "--run", run, "--output", output or f"{folder}/out", *options])


def tally(folder: str) -> list[int]:
    """Inputs, outputs, rejects, and outputs that were there before, of an inpainting job."""
    found = counts(folder)
    return [found[name] for name in ("inputs", "outputs", "rejects", "finished_before")]


def lines(address: str) -> list[dict]:
    return [json.loads(line) for line in storage.read(address).splitlines()]


def shards(folder: str) -> list[str]:
    return [name for name in storage.find(folder) if name.endswith(".tfrecord")]


def bar_listing(monkeypatch, *names: str) -> None:
    """Lets no folder of these names be listed, as without permission; a test may run as root, who may list all."""
    scandir = os.scandir

    def guarded(folder="."):
        if isinstance(folder, str) and os.path.basename(folder) in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)


# Wildcards


@pytest.mark.parametrize("place", ["folder", pytest.param("bucket", marks=pytest.mark.soak)], indirect=True)
def test_images_and_datasets_in_a_folder_whose_name_has_wildcards(place, run):
    home = f"{place}/{ODD}"
    make(home, ["a.png", "b [1].png", "sub*/c.png"])
    make(f"{place}/x v 50%off, whom", ["other.png"])
    assert fill(home, run) == 0
    assert tally(f"{home}/out") == [3, 3, 0, 0]
    assert fill(home, run) == 0 and counts(f"{home}/out")["finished_before"] == 3
    assert fill(home, run, "--overwrite") == 0 and counts(f"{home}/out")["finished_before"] == 0
    with pytest.raises(UserError, match="--output: expected a folder"):
        fill(home, run, output=f"{home}/in/out")
    one = ["--images", f"{home}/in/b [1].png", "--masks", f"{home}/holes/b [1].png", "--hole", "black"]
    assert inpaint.main([*one, "--run", run, "--output", f"{home}/one"]) == 0
    assert (load(f"{home}/one/b [1].png") == load(f"{home}/out/b [1].png")).all()

    for number in (4, 2):
        options = ["--output", f"{home}/records", "--split", "val", "--num-shards", str(number), "--overwrite"]
        assert build_imagenet.main(["--input", f"{home}/in", *options]) == 0
        assert load_manifest(f"{home}/records", "image").counts == {"inputs": 3, "records": 3, "rejects": 0}
        options = ["--output", f"{home}/masks", "--count", "12", "--size", "32", "--split", "val", "--overwrite"]
        assert build_masks.main([*options, "--num-shards", str(number)]) == 0
        assert len(shards(f"{home}/records")) == len(shards(f"{home}/masks")) == number
    files = ["--generator", "files", "--mask-files", f"{home}/holes", "--hole", "black", "--count", "6", "--size", "32"]
    assert build_masks.main([*files, "--output", f"{home}/drawn"]) == 0
    assert load_manifest(f"{home}/drawn", "mask").counts == {"inputs": 6, "records": 6, "rejects": 0}

    for images in (f"{home}/records", f"{home}/in/*.png", f"{home}/in/b [1].png"):
        options = ["--images", images, "--masks", f"{home}/masks", "--run", run, "--baseline", "", "--per-cell", "all"]
        assert evaluate.main([*options, "--output", f"{home}/report", "--overwrite"]) == 0
        scored = {row["image"] for row in lines(f"{home}/report/pairs.jsonl")}
        files = {f"{home}/in/b [1].png": {"b [1].png"}, f"{home}/in/*.png": {"a.png", "b [1].png"}}
        expected = files.get(images, {"val/a.png", "val/b [1].png", "val/sub*/c.png"})
        assert scored <= expected and len(scored) == min(2, len(expected))  # two rounds of six masks


def test_runs_in_a_folder_whose_name_has_wildcards(place):
    home, config = f"{place}/{ODD}", small_config(32)
    for folder in (f"{place}/x v 50%off, whom/run", f"{home}/run"):
        write_run(folder, config)
    network = build_unet(config.unet, seed=3)
    save_network(f"{home}/run", network, 3)
    variables = {"model": checkpoints.read_variables(network.variables), "optimizer": {}}
    checkpoints.save_checkpoint(f"{home}/run", variables, {"step": 4, "phase": "initial", "examples": 4}, keep=1)
    # The best one and the newest are left; those of the other run all are.
    assert [name[:13] for name in storage.folders(f"{home}/run/checkpoints")] == ["step-00000001", "step-00000004"]
    assert len(storage.folders(f"{place}/x v 50%off, whom/run/checkpoints")) == 2
    assert not export.main(["--run", f"{home}/run", "--format", "keras", "--output", f"{home}/exported"])
    assert storage.exists(f"{home}/exported/model.keras")
    make(home, ["a.png", "b.png"])
    assert fill(home, f"{home}/run") == 0
    with pytest.raises(UserError, match=r"ru\[n\] has no config.json"):
        fill(home, f"{home}/ru[n]", output=f"{home}/none")


@pytest.mark.parametrize(
    "name", ["r@1", *(pytest.param(name, marks=pytest.mark.soak) for name in ("me@work", "a@best", "lr=0.1"))]
)
def test_runs_whose_addresses_have_signs_of_the_option(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(str(tmp_path / name), small_config(32))
    make(str(tmp_path), ["a.png"])
    build_masks.main(["--output", f"{tmp_path}/masks", "--size", "32", "--count", "6", "--split", "val"])

    def score(*runs: str) -> list[str]:
        """The methods of the report, and their checkpoints."""
        options = [
            "--images",
            f"{tmp_path}/in/*",
            "--masks",
            f"{tmp_path}/masks",
            "--baseline",
            "",
            "--per-cell",
            "all",
        ]
        options += [part for one in runs for part in ("--run", one)]
        assert evaluate.main([*options, "--output", f"{tmp_path}/report", "--overwrite"]) == 0
        found = json.loads(storage.read(f"{tmp_path}/report/metrics.json"))["methods"]
        return [f"{one['name']}: {one['address'].rpartition('/')[2][:13]}" for one in found]

    newest, first = "step-00000002", "step-00000001"
    assert score(name, f"{name}@1") == [f"{name}: {newest}", f"{name}@1: {first}"]
    assert score(f"{tmp_path}/{name}@best", f"b={name}") == [f"{name}@best: {first}", f"b: {newest}"]
    assert score(f"b={tmp_path}/{name}@1") == [f"b: {first}"]
    with pytest.raises(UserError, match="model.keras alone: an export has no checkpoints. Received @1"):
        score(f"{name}/exports/step-00000001/model.keras@1")
    assert score(f"{name}/exports/step-00000001/model.keras") == ["network: model.keras"]


def test_a_run_that_does_not_exist_is_called_by_its_whole_name(tmp_path):
    make(str(tmp_path), ["a.png"])
    build_masks.main(["--output", f"{tmp_path}/masks", "--size", "32", "--count", "6", "--split", "val"])
    options = ["--images", f"{tmp_path}/in/*", "--masks", f"{tmp_path}/masks", "--output", f"{tmp_path}/report"]
    with pytest.raises(UserError, match=f"run {tmp_path}/me@work/run does not exist"):
        evaluate.main([*options, "--run", f"{tmp_path}/me@work/run"])


# Objects that no file can be called


@pytest.mark.parametrize("is_remote", [True, False])
def test_objects_with_empty_parts_and_dots_in_their_names(is_remote, bucket, tmp_path, run):
    make(bucket, ["a/b.png", "a//b.png", "//c.png", "a/../d.png", "e.png", "./e.png"])
    output = f"{bucket}/out" if is_remote else f"{tmp_path}/out"
    assert fill(bucket, run, output=output) == 3
    items = lines(f"{output}/items.jsonl")
    # An image or a mask is told for each of the names that go up and down.
    kinds = {one["image"].removeprefix(bucket): one["status"] for one in items}
    lost = {f"/{kind}/{name}" for kind in ("in", "holes") for name in ("a/../d.png", "./e.png")}
    if not is_remote:
        lost |= {"/in/a/b.png", "/in/a//b.png"}
    assert {name for name, status in kinds.items() if status == "rejected"} == lost
    done = {"/in/e.png", "/in///c.png"} | ({"/in/a/b.png", "/in/a//b.png"} if is_remote else set())
    assert {name for name, status in kinds.items() if status == "done"} == done
    assert tally(output) == [len(items), len(done), len(lost), 0]
    for one in items:
        if one["status"] == "done":
            assert (load(f"{output}/{one['output']}") == load(one["image"]))[20:].all()
    assert fill(bucket, run, output=output) == 3 and counts(output)["finished_before"] == len(done)


def test_records_of_objects_with_empty_parts_in_their_names(bucket, tmp_path):
    make(f"{bucket}/tree/train", [])
    for number, name in enumerate(["n1/a.png", "n1//a.png", "x.png", "/x.png", "//y.png", "n2/b.png"]):
        save(f"{bucket}/tree/train/{name}", noise(30, 40, 3, number))
        save_mask(f"{bucket}/holes/{name}", block(30, 40))
    assert build_imagenet.main(["--input", f"{bucket}/tree", "--output", f"{tmp_path}/records"]) == 0
    assert load_manifest(f"{tmp_path}/records", "image").counts == {"inputs": 6, "records": 6, "rejects": 0}
    files = ["--generator", "files", "--mask-files", f"{bucket}/holes", "--hole", "black", "--count", "12"]
    assert build_masks.main([*files, "--size", "32", "--output", f"{tmp_path}/masks"]) == 0


# Long names


def test_names_as_long_as_a_folder_takes(tmp_path, run):
    names = [letter * ((length - 4) // len(letter.encode())) for letter in "aé" for length in range(237, 256, 3)]
    make(str(tmp_path), [f"{name}.png" for name in names])
    for option, before in (((), 0), ((), len(names)), (("--overwrite",), 0)):
        assert fill(str(tmp_path), run, *option) == 0
        assert tally(f"{tmp_path}/out") == [len(names), len(names), 0, before]
    assert sorted(os.listdir(tmp_path / "out" / ".items")) != [] and not os.path.exists(tmp_path / "out" / ".claims")
    for name in names:
        assert (load(f"{tmp_path}/out/{name}.png") == load(f"{tmp_path}/in/{name}.png"))[20:].all()


def test_an_output_whose_name_would_be_too_long_is_a_reject_that_says_so(tmp_path, run):
    make(str(tmp_path), ["a" * 253 + ".p"[:2], "b.png"])
    assert fill(str(tmp_path), run) == 3
    assert tally(f"{tmp_path}/out") == [2, 1, 1, 0]
    (lost,) = lines(f"{tmp_path}/out/rejects.jsonl")
    assert "expected a name of at most 255 bytes. Received 257" in lost["error"]


# What systems leave in folders


def test_what_systems_leave_in_folders_is_no_input(tmp_path, run):
    names = ["a.png", "sub/b.png"]
    make(str(tmp_path), names)
    left = [
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
        "._a.png",
        "__MACOSX/._a.png",
        "sub/Thumbs.db",
        "@eaDir/a.png/x.jpg",
    ]
    for kind in ("in", "holes"):
        for name in left:
            storage.create(f"{tmp_path}/{kind}/{name}", b"not an image")
    assert fill(str(tmp_path), run) == 0
    assert tally(f"{tmp_path}/out") == [2, 2, 0, 0]
    assert build_imagenet.main(["--input", f"{tmp_path}/in", "--output", f"{tmp_path}/records"]) == 0
    assert load_manifest(f"{tmp_path}/records", "image").counts == {"inputs": 2, "records": 2, "rejects": 0}
    for option in (["--generator", "files", "--mask-files", f"{tmp_path}/holes", "--hole", "black"],):
        assert build_masks.main([*option, "--count", "4", "--size", "32", "--output", f"{tmp_path}/masks"]) == 0


# Folders that may not be listed


def test_folders_that_may_not_be_listed_are_rejects(tmp_path, run, monkeypatch):
    make(str(tmp_path), ["a.png", "closed/b.png", "sub/c.png"])
    for number, name in enumerate(["train/n1/a.png", "train/n2/b.png", "train/n3/shut/c.png", "train/n3/d.png"]):
        save(f"{tmp_path}/tree/{name}", noise(30, 40, 3, number))
    bar_listing(monkeypatch, "closed", "shut", "n2")
    assert fill(str(tmp_path), run) == 3
    assert tally(f"{tmp_path}/out") == [4, 2, 2, 0]
    found = {one["source"]: one["error"] for one in lines(f"{tmp_path}/out/rejects.jsonl")}
    folders = [f"{tmp_path}/{kind}/closed" for kind in ("in", "holes")]
    assert found == {name: f"Denied: {name} cannot be listed: Permission denied" for name in folders}

    assert build_imagenet.main(["--input", f"{tmp_path}/tree", "--output", f"{tmp_path}/records"]) == 3
    assert load_manifest(f"{tmp_path}/records", "image").counts == {"inputs": 4, "records": 2, "rejects": 2}
    found = {one["source"] for one in lines(f"{tmp_path}/records/rejects/train.jsonl")}
    assert found == {f"{tmp_path}/tree/train/n2", f"{tmp_path}/tree/train/n3/shut"}

    files = ["--generator", "files", "--mask-files", f"{tmp_path}/holes", "--hole", "black", "--count", "6"]
    assert build_masks.main([*files, "--size", "32", "--output", f"{tmp_path}/masks"]) == 3
    assert load_manifest(f"{tmp_path}/masks", "mask").counts == {"inputs": 7, "records": 6, "rejects": 1}

    # Nothing but that folder: the cause is told at once.
    with pytest.raises(UserError, match="in/closed cannot be listed: Permission denied"):
        options = ["--images", f"{tmp_path}/in/closed", "--holes", "alpha", "--run", run]
        inpaint.main([*options, "--output", f"{tmp_path}/none"])
    with pytest.raises(UserError, match="in/closed cannot be listed: Permission denied"):
        evaluate.main(
            ["--images", f"{tmp_path}/in/**", "--masks", f"{tmp_path}/masks", "--mask-split", "train", "--run", run]
            + ["--output", f"{tmp_path}/report"]
        )


# Names that are not UTF-8


def test_files_of_others_in_the_output_folder_may_have_any_name(tmp_path, run):
    make(str(tmp_path), ["a.png"])
    for folder in ("out", "out/.items", "records", "masks", "report"):
        os.makedirs(tmp_path / folder, exist_ok=True)
        (tmp_path / folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"theirs")
    assert fill(str(tmp_path), run) == fill(str(tmp_path), run) == fill(str(tmp_path), run, "--overwrite") == 0
    for options in ([], ["--overwrite"]):
        assert build_imagenet.main(["--input", f"{tmp_path}/in", "--output", f"{tmp_path}/records", *options]) == 0
        where = ["--output", f"{tmp_path}/masks", "--size", "32", "--count", "6", "--split", "val"]
        assert build_masks.main([*where, *options]) == 0
    options = ["--images", f"{tmp_path}/in/*", "--masks", f"{tmp_path}/masks", "--run", run, "--baseline", ""]
    assert evaluate.main([*options, "--output", f"{tmp_path}/report", "--per-cell", "all"]) == 0
    for folder in ("out", "records", "masks", "report"):
        assert (tmp_path / folder / os.fsdecode(b"caf\xe9.png")).read_bytes() == b"theirs"


def test_class_folders_may_have_any_name(tmp_path):
    for number, name in enumerate([b"n1/a.png", b"n\xe9/b.png", b"n1/\xe9.png"]):
        save(f"{tmp_path}/tree/train/{os.fsdecode(name)}", noise(30, 40, 3, number))
    assert build_imagenet.main(["--input", f"{tmp_path}/tree", "--output", f"{tmp_path}/records"]) in (0, 3)
    found = load_manifest(f"{tmp_path}/records", "image").counts
    assert found["inputs"] == 3 == found["records"] + found["rejects"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (build_masks, "--output {odd} --count 6"),
        (build_masks, "--output {out} --count 6 --generator files --hole black --mask-files {odd}"),
        (build_masks, "--output {out} --count 6 --generator occlusion --frames {odd}"),
        (build_imagenet, "--input {odd} --output {out}"),
        (build_imagenet, "--input {out} --output {odd}"),
        (inpaint, "--images {odd} --holes alpha --run {out} --output {out}"),
        (inpaint, "--images {odd}/* --holes alpha --run {out} --output {out}"),
        (inpaint, "--pairs {odd} --hole black --run {out} --output {out}"),
        (evaluate, "--images {odd} --masks {out} --run {out} --output {out}"),
        (train, "--preset demo --images {odd} --masks {out} --run {out}"),
        (train, "--preset demo --images {out} --masks {out} --run {odd}"),
        (export, "--run {odd}"),
    ],
)
def test_addresses_that_are_not_utf8_are_refused_in_one_line(command, options, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(odd)
    arguments = [part.format(odd=odd, out=tmp_path / "out") for part in options.split()]
    with pytest.raises(UserError, match=r"expected an address in UTF-8. Received .*/caf\\xe9"):
        command.main(arguments)
    assert not os.path.exists(tmp_path / "out") and os.listdir(odd) == []
