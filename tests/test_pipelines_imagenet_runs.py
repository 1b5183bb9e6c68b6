"""The image job however it runs: on other runners, killed and run again, on a part, on damaged archives."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from running import KILLED_IMAGENET

from pipelines.build_imagenet import main
from pipelines.image_dataset.convert import choose_num_shards
from trainer.data.manifest import load_manifest
from trainer.errors import UserError

PHOTOS = sorted((Path(__file__).resolve().parents[1] / "pipelines" / "photos").rglob("*.jpg"))
CLASSES = [f"n{number:08d}" for number in range(10, 20)]


def make_tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture(scope="module")
def classes():
    """name -> bytes of each class; in each an image that must be encoded anew and one that cannot be used."""
    rng, found = random.Random(0), {}
    for synset in CLASSES:
        found[synset] = {f"{synset}_gray.JPEG": b"", f"{synset}_text.JPEG": b"A text.\n"}
        for number in range(6):
            file = io.BytesIO()
            with Image.open(rng.choice(PHOTOS)) as photo:
                photo = photo.convert("L" if number == 0 else "RGB").resize((rng.randint(64, 96), 72))
                photo.save(file, "JPEG", quality=rng.randint(80, 95))
            found[synset][f"{synset}_{'gray' if number == 0 else number}.JPEG"] = file.getvalue()
    return found


@pytest.fixture(scope="module")
def tar(classes, tmp_path_factory):
    path = tmp_path_factory.mktemp("in") / "ILSVRC2012_img_train.tar"
    path.write_bytes(make_tar({f"{synset}.tar": make_tar(files) for synset, files in classes.items()}))
    return path


def build(source, output, *options, num_shards=6) -> Path:
    shards = ["--num-shards", str(num_shards)] if num_shards else []
    code = main(["--input", str(source), "--output", str(output), *shards, *options])
    assert code == (3 if json.loads(Path(output, "manifest.json").read_bytes())["counts"]["rejects"] else 0)
    return Path(output)


def contents(folder) -> dict[str, bytes]:
    """All files but what a killed process left half written, and its records of shards."""
    found = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if "/." not in f"/{name}"}


def rejects(folder) -> list[dict]:
    return [json.loads(x) for path in sorted(Path(folder).glob("rejects/*")) for x in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tar, tmp_path_factory):
    return build(tar, tmp_path_factory.mktemp("written") / "set")


RUNNERS = {
    "two processes": ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"],
    "portable": ["--runner", "PortableRunner", "--job_endpoint", "embed", "--environment_type", "LOOPBACK"],
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_writes_the_same_bytes(runner, tar, written, tmp_path):
    command = [sys.executable, "-m", "pipelines.build_imagenet", "--input", tar, "--output", tmp_path / "set"]
    done = subprocess.run([*command, "--num-shards", "6", *RUNNERS[runner]], timeout=600, capture_output=True)
    assert done.returncode == 3, done.stderr  # of the images that are none
    assert contents(tmp_path / "set") == contents(written)


@pytest.mark.parametrize("files", [0, 3, 7])  # none, half the shards, all but the manifest (6 shards, 1 of rejects)
def test_killed_and_run_again_it_keeps_what_was_finished(files, tar, written, tmp_path):
    output = tmp_path / "set"
    options = ["--input", str(tar), "--output", str(output), "--num-shards", "6"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IMAGENET, str(files), *options], timeout=600, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    before = {output / name: (output / name).stat().st_mtime_ns for name in contents(output)}
    assert len(before) == files and output / "manifest.json" not in before
    assert main(options) == 3
    assert contents(output) == contents(written)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in written.iterdir())


def test_a_finished_shard_with_other_bytes_is_not_taken(tar, written, tmp_path):
    (tmp_path / "train-00002-of-00006.tfrecord").write_bytes(b"other")
    with pytest.raises(UserError, match="00002-of-00006.tfrecord exists with other contents: --overwrite"):
        build(tar, tmp_path)
    build(tar, tmp_path, "--overwrite")
    assert contents(tmp_path) == contents(written)


def test_limit_takes_the_same_images_of_a_tar_and_of_a_folder(classes, tar, tmp_path):
    for synset, files in classes.items():
        (tmp_path / "tree" / "train" / synset).mkdir(parents=True)
        for name, data in files.items():
            (tmp_path / "tree" / "train" / synset / name).write_bytes(data)
    outputs = [build(source, tmp_path / f"{source.name}-set", "--limit", "20") for source in (tar, tmp_path / "tree")]
    ours, theirs = (contents(output) for output in outputs)
    assert all(ours[name] == theirs[name] for name in ours if name.endswith("tfrecord"))
    manifest = load_manifest(str(outputs[0]), "image")
    assert manifest.counts["inputs"] == 20 and manifest.synsets == tuple(CLASSES)
    # Drawn by the hash of their keys, so about as many of what cannot be used as there are.
    keys = [f"train/{synset}/{name}" for synset, files in classes.items() for name in files]
    drawn = sorted(keys, key=lambda key: hashlib.blake2b(key.encode(), digest_size=8).digest())[:20]
    assert manifest.counts["rejects"] == sum("text" in key for key in drawn)


def test_an_image_that_cannot_be_reached_is_one_reject(classes, tmp_path):
    source = tmp_path / "in" / "train" / CLASSES[0]
    source.mkdir(parents=True)
    (source / "a.JPEG").write_bytes(classes[CLASSES[0]][f"{CLASSES[0]}_1.JPEG"])
    (source / "gone.JPEG").symlink_to(tmp_path / "nowhere")
    (line,) = rejects(build(tmp_path / "in", tmp_path / "set"))
    assert (line["stage"], line["error"]) == ("read", f"NotFound: {source}/gone.JPEG does not exist")


VICTIM = CLASSES[4]


def header_of(data: bytes, number: int) -> int:
    return data.index(f"{VICTIM}_{number}.JPEG".encode())


@pytest.mark.parametrize(
    ("change", "whole", "reason"),
    [
        (lambda data: data[:600], 0, f"{VICTIM}_gray.JPEG.*: the archive ends within it"),
        (lambda data: b"", 0, "the archive is damaged or no uncompressed tar, after 0 of 0 bytes"),
        (lambda data: b"<html>" * 500, 0, "the archive is damaged or no uncompressed tar, after 0 of 3000 bytes"),
        (lambda data: data[: header_of(data, 3)], 3, "the archive ends after .* without its end mark"),
        (lambda data: data[: header_of(data, 3)] + b"?" * 9_000, 3, "expected a header at byte"),
        (lambda data: data[: header_of(data, 3)] + bytes(512) + data[header_of(data, 4) :], 3, "expected the end mark"),
    ],
)
def test_a_damaged_archive_of_a_class_is_one_reject(change, whole, reason, classes, tmp_path):
    inner = {f"{synset}.tar": make_tar(files) for synset, files in classes.items()}
    inner[f"{VICTIM}.tar"] = change(inner[f"{VICTIM}.tar"])
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(make_tar(inner))
    output = build(tmp_path, tmp_path / "set")
    manifest = load_manifest(str(output), "image")
    (line,) = (line for line in rejects(output) if line["stage"] == "index")
    assert line["member"].startswith(f"{VICTIM}.tar") and re.search(reason, f"{line['member']}: {line['error']}")
    # Of 9 classes 6 images each, and of this one those before the damage: gray, 1 and 2.
    assert manifest.synsets == tuple(CLASSES) and manifest.counts["records"] == 54 + whole


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_a_truncated_archive_of_archives_is_refused_at_launch(share, tar, tmp_path):
    (tmp_path / tar.name).write_bytes(tar.read_bytes()[: int(tar.stat().st_size * share)])
    with pytest.raises(UserError, match=f"{tmp_path}/{tar.name}: n.*.tar: the archive ends within it"):
        build(tmp_path, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_short_side(classes, tar, tmp_path):
    small = build(tar, tmp_path / "small", "--short-side", "32", num_shards=None)
    manifest = json.loads((small / "manifest.json").read_text())
    assert manifest["parameters"]["short_side"] == 32 and manifest["parameters"]["num_shards"] == {"train": 1}
    sizes = Path(small / "train-00000-of-00001.tfrecord").read_bytes()
    assert sizes.count(b"\xff\xc0\x00\x11\x08\x00\x20") > 20  # frame headers of 32 rows


@pytest.mark.parametrize(
    ("size", "num_shards"),
    [(0, 1), (200_000_000, 1), (200_000_001, 2), (6_700_000_000, 64), (147_900_000_000, 1024)],
)
def test_shards_have_100_to_200_megabytes(size, num_shards):
    assert choose_num_shards(size) == num_shards
    assert num_shards == 1 or 100_000_000 <= size / num_shards <= 200_000_000
