"""The inpainting job with one model or another, run again, and on damaged files."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from networks import small_config, write_run
from picture_files import block, counts, errors, load, model_of, noise, save, save_mask
from pipelines.inpaint import main
from trainer import storage
from trainer.errors import UserError
from trainer.images.pictures import Metadata, Picture, encode
from trainer.inference import predict
from trainer.storage import local

WRITTEN = Path(__file__).parent / "written_by_75d02cb"
OLD_RUN = str(Path(__file__).parent / "written_by_383277e" / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(str(tmp_path_factory.mktemp("run")), small_config(32))


# Models and second runs


@pytest.fixture
def small(tmp_path):
    folder = str(tmp_path)
    for name in ("a", "b"):
        save(f"{folder}/in/{name}.png", noise(30, 40, 3, ord(name)))
        save_mask(f"{folder}/holes/{name}.png", block(30, 40))
    return folder


def inpaint(folder: str, *options: str, output: str = "out") -> int:
    where = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--hole", "black"]
    return main([*where, "--output", f"{folder}/{output}", *options])


def test_which_model(run, small):
    choices = {
        "default": ["--run", run],
        "best": ["--run", run, "--checkpoint", "best"],
        "first": ["--run", run, "--checkpoint", "1"],
        "latest": ["--run", run, "--checkpoint", "latest"],
        "exported": ["--model", f"{run}/exports/step-00000001"],
        "file": ["--model", f"{run}/exports/step-00000001/model.keras"],
    }
    found = {}
    for name, options in choices.items():
        assert inpaint(small, *options, output=name) == 0
        found[name] = storage.read(f"{small}/{name}/a.png")
        pin = json.loads(storage.read(f"{small}/{name}/manifest.json"))["model"]
        step = "2" if name == "latest" else "1"
        assert f"/step-0000000{step}" in pin["address"] and len(pin["crc32c"]) == 8
    assert len(set(found.values())) == 2
    assert {name for name, data in found.items() if data != found["default"]} == {"latest"}
    image = load(f"{small}/in/a.png")
    expected = predict.inpaint(image, block(30, 40), model_of(run, "latest"))
    np.testing.assert_array_equal(load(f"{small}/latest/a.png"), expected)


def test_precision_and_device(run, small):
    assert inpaint(small, "--run", run, "--device", "cpu") == 0
    assert inpaint(small, "--run", run, "--precision", "mixed_bfloat16", output="rough") == 0
    exact, rough = load(f"{small}/out/a.png").astype(int), load(f"{small}/rough/a.png")
    assert 0 < np.abs(exact - rough).max() < 60


def test_a_second_run_makes_what_is_missing_alone(run, small, capsys):
    assert inpaint(small, "--run", run) == 0
    first = storage.read(f"{small}/out/a.png")
    storage.delete(f"{small}/out/b.png")
    save(f"{small}/in/c.png", noise(30, 40, 3, 9))
    assert inpaint(small, "--run", run) == 3  # c has no mask
    assert counts(f"{small}/out") == {"inputs": 3, "outputs": 2, "rejects": 1, "finished_before": 1, "without_holes": 0}
    save_mask(f"{small}/holes/c.png", block(30, 40))
    assert inpaint(small, "--run", run) == 0
    assert counts(f"{small}/out") == {"inputs": 3, "outputs": 3, "rejects": 0, "finished_before": 2, "without_holes": 0}
    assert storage.read(f"{small}/out/a.png") == first
    lines = [json.loads(line) for line in storage.read(f"{small}/out/items.jsonl").splitlines()]
    assert [line["status"] for line in lines] == ["finished before", "finished before", "done"]
    assert all(line["hole_ratio"] == 7 * 12 / 1200 and line["windows"] == 1 for line in lines)
    assert inpaint(small, "--run", run, "--overwrite") == 0
    assert storage.read(f"{small}/out/a.png") == first
    assert counts(f"{small}/out")["finished_before"] == 0


def test_outputs_of_other_jobs_are_not_mixed(run, small):
    assert inpaint(small, "--run", run) == 0
    before = storage.read(f"{small}/out/a.png")
    with pytest.raises(UserError, match="holds outputs of another job, model is .*: --overwrite, or choose another"):
        inpaint(small, "--run", run, "--checkpoint", "latest")
    with pytest.raises(UserError, match='holds outputs of another job, precision is "mixed_bfloat16" and was "float32'):
        inpaint(small, "--run", run, "--precision", "mixed_bfloat16")
    assert storage.read(f"{small}/out/a.png") == before
    assert inpaint(small, "--run", run, "--checkpoint", "latest", "--overwrite") == 0
    assert storage.read(f"{small}/out/a.png") != before
    # The same names from another folder are other images.
    save(f"{small}/other/a.png", noise(30, 40, 3, 77))
    arguments = ["--images", f"{small}/other", "--masks", f"{small}/holes/a.png", "--hole", "black", "--run", run]
    assert main([*arguments, "--checkpoint", "latest", "--output", f"{small}/out"]) == 3
    assert len(errors(f"{small}/out")) == 1
    assert f"{small}/out/a.png is of {small}/in/a.png and {small}/holes/a.png" in errors(f"{small}/out")[0]


def test_files_of_others_in_the_output_folder_are_not_replaced(run, small):
    storage.create(f"{small}/out/a.png", b"not ours")
    assert inpaint(small, "--run", run) == 3
    assert storage.read(f"{small}/out/a.png") == b"not ours"
    assert "exists with other contents" in errors(f"{small}/out")[0]
    assert counts(f"{small}/out") == {"inputs": 2, "outputs": 1, "rejects": 1, "finished_before": 0, "without_holes": 0}
    assert inpaint(small, "--run", run, "--overwrite") == 0
    assert storage.read(f"{small}/out/a.png") != b"not ours"


# What changes between two runs


@pytest.fixture
def later(monkeypatch):
    """Files count as so old that nobody can be writing to them any more."""
    monkeypatch.setattr(local, "_TICK_S", -60.0)


def replace_quietly(path: str, data: bytes) -> None:
    """Other contents in the same file, of the same size if they can be, with the time of the last write set back."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def of_size(data: bytes, other: bytes) -> bytes:
    """PNG ``data`` made as long as ``other`` by zeros behind its end, which decoders do not look at."""
    assert len(data) <= len(other)
    return data + bytes(len(other) - len(data))


def names_of(folder: str, status: str) -> list[str]:
    lines = [json.loads(line) for line in storage.read(f"{folder}/items.jsonl").splitlines()]
    return [line["output"] for line in lines if line["status"] == status]


def expected_of(run: str, image: str, mask: np.ndarray) -> np.ndarray:
    return predict.inpaint(load(image), mask, model_of(run, "best"))


@pytest.mark.parametrize("place", ["folder", pytest.param("bucket", marks=pytest.mark.soak)])
def test_edited_images_and_masks_are_inpainted_again(place, run, tmp_path, request, later):
    root = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")
    images = {name: encode(Picture(noise(30, 40, 3, number), Metadata())) for number, name in enumerate("abcd")}
    for name, data in images.items():
        storage.create(f"{root}/in/{name}.png", data + bytes(100))
        storage.create(
            f"{root}/holes/{name}.png", encode(Picture(block(30, 40)[..., None] * np.uint8(255))) + bytes(100)
        )
    assert inpaint(root, "--run", run) == 0
    before = {name: storage.read(f"{root}/out/{name}.png") for name in images}
    assert inpaint(root, "--run", run) == 0 and counts(f"{root}/out")["finished_before"] == 4
    other = noise(30, 40, 3, 99)
    hole = np.rot90(block(40, 30)).copy()
    change = replace_quietly if place == "folder" else storage.overwrite
    new_image, new_mask = encode(Picture(other, Metadata())), encode(Picture(hole[..., None] * np.uint8(255)))
    change(f"{root}/in/a.png", of_size(new_image, images["a"] + bytes(100)))
    change(f"{root}/holes/b.png", of_size(new_mask, storage.read(f"{root}/holes/b.png")))
    if place == "folder":
        os.utime(f"{root}/in/c.png")  # touched: its contents are the same
    assert inpaint(root, "--run", run) == 0
    assert names_of(f"{root}/out", "done") == ["a.png", "b.png"]
    assert names_of(f"{root}/out", "finished before") == ["c.png", "d.png"]
    after = {name: storage.read(f"{root}/out/{name}.png") for name in images}
    assert {name for name in images if before[name] != after[name]} == {"a", "b"}
    for name, image, mask in (("a", other, block(30, 40)), ("b", noise(30, 40, 3, 1), hole)):
        expected = predict.inpaint(image, mask, model_of(run, "best"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(after[name]))), expected)
    assert inpaint(root, "--run", run) == 0 and counts(f"{root}/out")["finished_before"] == 4


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="last byte"),
        pytest.param(lambda data: bytes(len(data)), id="zeros"),
        pytest.param(lambda data: data[: len(data) // 2], id="half", marks=pytest.mark.soak),
        pytest.param(lambda data: b"", id="empty", marks=pytest.mark.soak),
    ],
)
def test_damaged_outputs_are_made_again(damage, run, small):
    assert inpaint(small, "--run", run) == 0
    whole = storage.read(f"{small}/out/a.png")
    replace_quietly(f"{small}/out/a.png", damage(whole))
    assert inpaint(small, "--run", run) == 0
    assert storage.read(f"{small}/out/a.png") == whole
    assert names_of(f"{small}/out", "done") == ["a.png"]


def test_a_damaged_output_of_an_edited_image_is_made_again(run, small):
    assert inpaint(small, "--run", run) == 0
    storage.delete(f"{small}/in/a.png")
    save(f"{small}/in/a.png", noise(30, 40, 3, 50))
    whole = storage.read(f"{small}/out/a.png")
    replace_quietly(f"{small}/out/a.png", whole[: len(whole) // 2])
    assert inpaint(small, "--run", run) == 0
    np.testing.assert_array_equal(load(f"{small}/out/a.png"), expected_of(run, f"{small}/in/a.png", block(30, 40)))


def test_an_output_that_somebody_has_edited_is_theirs(run, small):
    """It is not what the record says, so it is not finished; nor is it damaged, so nothing is lost."""
    assert inpaint(small, "--run", run) == 0
    retouched = encode(Picture(noise(30, 40, 3, 7), Metadata()))
    storage.overwrite(f"{small}/out/a.png", retouched)
    assert inpaint(small, "--run", run) == 3
    assert storage.read(f"{small}/out/a.png") == retouched
    assert "out/a.png exists with other contents: --overwrite, or choose another folder" in errors(f"{small}/out")[0]


def test_finished_items_are_not_read(run, small, later, monkeypatch):
    """A million of them cost a thousand files of records, not a million images."""
    assert inpaint(small, "--run", run) == 0
    read = []

    def watch(name):
        method = getattr(local.LocalStore, name)

        def watched(self, address, *arguments):
            read.append(address)
            return method(self, address, *arguments)

        monkeypatch.setattr(local.LocalStore, name, watched)

    for name in ("checksum", "read_versioned", "read_range"):
        watch(name)
    assert inpaint(small, "--run", run) == 0
    assert counts(f"{small}/out")["finished_before"] == 2
    assert not [address for address in read if address.endswith(".png")]
    lines = [path for path in read if "/.items/part-" in path]
    assert len(set(lines)) == len(list(Path(small, "out", ".items").glob("part-*"))) == len(lines) / 2


def change_books(small: str, change) -> None:
    """Writes the lines of the books anew: ``change`` gets each, parsed, and returns its bytes or None."""
    for path in Path(small, "out", ".items").glob("part-*"):
        lines = [change(json.loads(line)) for line in path.read_bytes().splitlines()]
        path.write_bytes(b"".join(line + b"\n" for line in lines if line is not None))


@pytest.mark.parametrize(
    "record",
    [
        b'{"share": "',
        None,
        *(
            pytest.param(line, marks=pytest.mark.soak)
            for line in (b"", b"[]", b'{"share": "0000", "image": "a"}', b"\xff")
        ),
    ],
)
def test_an_output_with_a_damaged_record_is_made_again(record, run, small):
    assert inpaint(small, "--run", run) == 0
    whole = storage.read(f"{small}/out/a.png")
    change_books(small, lambda line: record if line["output"] == "a.png" else json.dumps(line).encode())
    assert inpaint(small, "--run", run) == 0
    assert names_of(f"{small}/out", "done") == ["a.png"] and storage.read(f"{small}/out/a.png") == whole


@pytest.fixture
def earlier(tmp_path):
    """An output folder that commit 75d02cb wrote, a record for each output in a file of its own, and its inputs."""
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*.json*"):
        path.write_text(path.read_text().replace("ROOT/", f"{tmp_path}/").replace("RUN/", f"{OLD_RUN}/"))
    return str(tmp_path)


def test_output_folders_of_earlier_versions_are_resumed(earlier):
    """Their records are taken into the books, and are not asked for again."""
    outputs = {name: storage.read(f"{earlier}/out/{name}.png") for name in ("a", "b", "sub/c")}
    storage.delete(f"{earlier}/out/b.png")
    replace_quietly(f"{earlier}/out/sub/c.png", outputs["sub/c"][:-9])
    assert inpaint(earlier, "--run", OLD_RUN) == 3
    assert names_of(f"{earlier}/out", "finished before") == ["a.png"]
    assert names_of(f"{earlier}/out", "done") == ["b.png", "sub/c.png"]
    assert {name: storage.read(f"{earlier}/out/{name}.png") for name in outputs} == outputs
    for path in Path(earlier, "out", ".items").rglob("*.png.json"):
        path.unlink()
    assert inpaint(earlier, "--run", OLD_RUN) == 3
    assert counts(f"{earlier}/out") == {
        "inputs": 4,
        "outputs": 3,
        "rejects": 1,
        "finished_before": 3,
        "without_holes": 0,
    }


def test_output_folders_of_the_first_versions_are_resumed(earlier):
    """Their records knew nothing of inputs, and their jobs had fewer options."""
    for path in Path(earlier, "out", ".items").rglob("*.png.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: v for key, v in record.items() if key not in ("stamp", "made_of")}))
    job = json.loads(storage.read(f"{earlier}/out/.items/job.json"))
    for name in ("grow", "hole_label", "threshold"):
        del job[name]
    storage.overwrite(f"{earlier}/out/.items/job.json", json.dumps(job).encode())
    whole = storage.read(f"{earlier}/out/b.png")
    assert inpaint(earlier, "--run", OLD_RUN) == 3 and counts(f"{earlier}/out")["finished_before"] == 3
    replace_quietly(f"{earlier}/out/b.png", whole[:-9])
    assert inpaint(earlier, "--run", OLD_RUN) == 3
    assert names_of(f"{earlier}/out", "done") == ["b.png"] and storage.read(f"{earlier}/out/b.png") == whole


# Damaged files


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bits turned, the end cut off, a piece taken out or put in."""
    broken, how = bytearray(data), rng.randrange(4)
    start = rng.randrange(len(data))
    if how == 0:
        for _ in range(rng.randint(1, 6)):
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == 1:
        del broken[start:]
    elif how == 2:
        del broken[start : start + rng.randint(1, 60)]
    else:
        broken[start:start] = rng.randbytes(rng.randint(1, 60))
    return bytes(broken)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
def test_mutated_images_and_masks_are_outputs_or_rejects(run, tmp_path, soak):
    rng, folder, count = random.Random(3), str(tmp_path), 1000 if soak else 80
    kinds = [("png", 1, np.uint8), ("png", 2, np.uint16), ("png", 3, np.uint16), ("png", 4, np.uint8)]
    kinds += [("jpeg", 3, np.uint8), ("jpeg", 1, np.uint8), ("webp", 4, np.uint8), ("webp", 3, np.uint8)]
    for number in range(count):
        kind, channels, dtype = kinds[number % len(kinds)]
        image = encode(Picture(noise(24, 30, channels, number, dtype), Metadata(icc=b"profile" * 9)), kind)
        mask = encode(Picture(block(24, 30)[..., None] * np.uint8(255)))
        broken = rng.randrange(3)  # the image, the mask, or both
        storage.create(f"{folder}/in/{number:04d}", mutate(image, rng) if broken != 1 else image)
        storage.create(f"{folder}/holes/{number:04d}", mutate(mask, rng) if broken != 0 else mask)
    arguments = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--hole", "black", "--run", run]
    assert main([*arguments, "--output", f"{folder}/out", "--max-pixels", "1000000"]) == 3
    rejects = [json.loads(line)["source"] for line in storage.read(f"{folder}/out/rejects.jsonl").splitlines()]
    outputs = [address.removesuffix(".png") for address in storage.select(f"{folder}/out/*.png").find()]
    names = [address.rpartition("/")[2] for address in (*rejects, *outputs)]
    assert sorted(names) == [f"{number:04d}" for number in range(count)]
    assert 0.2 * count < len(rejects) < 0.95 * count
    for address in storage.select(f"{folder}/out/*.png").find():
        Image.open(io.BytesIO(storage.read(address))).load()
