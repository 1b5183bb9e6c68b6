"""300 files of all kinds, 40 of them bad, through the inpainting job: on every runner, from buckets, and killed."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mixed_files import BAD, BGR, GOOD, write_files
from PIL import Image, ImageOps

from pipelines.inpaint import main
from trainer import storage

TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
PORTABLE = ["--runner", "PortableRunner", "--job_endpoint", "embed", "--environment_type", "LOOPBACK"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with the files; see `mixed_files.write_files`."""
    folder = str(tmp_path_factory.mktemp("mixed"))
    return folder, *write_files(folder)


def options(folder: str, output: str, *more: str) -> list[str]:
    where = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--hole", "black", "--run", f"{folder}/run"]
    return [*where, "--output", output, *more]


def pictures_of(folder: str) -> dict[str, bytes]:
    return {storage.relative(a, folder): storage.read(a) for a in storage.find(folder) if a.endswith(".png")}


def rejects_of(folder: str) -> dict[str, str]:
    lines = [json.loads(line) for line in storage.read(f"{folder}/rejects.jsonl").splitlines()]
    found = {line["source"].rpartition("/")[2]: line["error"] for line in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("done") / "out")
    assert main(options(files[0], output)) == 3
    return output


def output_of(name: str, names) -> str:
    stem = name.rpartition(".")[0]
    return f"{name}.png" if sum(other.rpartition(".")[0] == stem for other in names) > 1 else f"{stem}.png"


def test_every_input_is_an_output_or_a_reject(files, done):
    reasons = files[2]
    rejects, outputs = rejects_of(done), pictures_of(done)
    good, holeless = files[1], 0
    for name, made in good.items():
        holeless += made.mask.all() and name.rpartition("/")[2] not in rejects
    expected = {"inputs": 300, "outputs": len(outputs), "rejects": len(rejects), "finished_before": 0}
    expected["without_holes"] = holeless
    assert json.loads(storage.read(f"{done}/manifest.json"))["counts"] == expected
    assert len(outputs) + len(rejects) == GOOD + BAD == 300
    for name, reason in reasons.items():
        start, _, end = reason.partition("(.*")
        assert start in rejects[name] and rejects[name].endswith(end), (name, rejects[name])
    lost = [rejects[name] for name in rejects.keys() - reasons.keys()]  # a mask of the size of its namesake
    assert len(lost) <= 2 and all("expected a mask of the image's size" in error for error in lost)
    lines = [json.loads(line) for line in storage.read(f"{done}/items.jsonl").splitlines()]
    assert len({line["image"] for line in lines}) == len(lines) == 300
    (large,) = (line for line in lines if line["image"].endswith("/000.jpg"))
    # 200 x 180 and 10 x 900 pixels of 5000 x 3000 in windows of 64, of which 40 are steps: some 25 and 23.
    assert 25 + 23 <= large["windows"] < 150


def test_valid_pixels_profiles_and_orientations_are_kept(files, done):
    good = files[1]
    outputs, lost = pictures_of(done), rejects_of(done)
    every = [*good, *(f"bad{n}" for n in range(BAD))]
    seen = changed = 0
    for name, made in good.items():
        if name.rpartition("/")[2] in lost:
            continue
        data = outputs.pop(output_of(name, every))
        seen += 1
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG" and image.getexif().get(0x0112, 1) == made.orientation, name
            assert image.info.get("icc_profile") == made.icc, name
            viewed = np.asarray(ImageOps.exif_transpose(image))
        if made.viewed.dtype == np.uint16:
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            found = found[..., None] if found.ndim == 2 else found
            viewed = found[..., BGR[found.shape[2]]]
        viewed = viewed[..., None] if viewed.ndim == 2 else viewed
        assert viewed.dtype == made.viewed.dtype and viewed.shape == made.viewed.shape, name
        assert np.array_equal(viewed[made.mask == 1], made.viewed[made.mask == 1]), name
        if made.viewed.shape[2] in (2, 4):
            assert np.array_equal(viewed[..., -1], made.viewed[..., -1]), name
        changed += bool(np.any(viewed[made.mask == 0] != made.viewed[made.mask == 0]))
    assert not outputs and seen >= GOOD - 2
    assert changed >= 0.95 * sum(not made.mask.all() for made in good.values())


def run(folder: str, *command: str) -> tuple[int, str]:
    """Exit code and all that was said by a Python in ``folder``."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "runner",
    [pytest.param(TWO_PROCESSES, marks=pytest.mark.soak, id="two-processes"), pytest.param(PORTABLE, id="portable")],
)
def test_the_same_bytes_on_every_runner(files, done, runner, tmp_path):
    code, said = run(files[0], "-m", "pipelines.inpaint", *options(files[0], str(tmp_path / "out"), *runner))
    assert code == 3, said
    assert pictures_of(str(tmp_path / "out")) == pictures_of(done)
    assert storage.read(f"{tmp_path}/out/rejects.jsonl") == storage.read(f"{done}/rejects.jsonl")


@pytest.mark.slow
def test_from_bucket_to_bucket(files, done, bucket):
    for address in storage.find(files[0]):
        storage.create(f"{bucket}/{storage.relative(address, files[0])}", storage.read(address))
    assert main(options(bucket, f"{bucket}/out")) == 3
    assert pictures_of(f"{bucket}/out") == pictures_of(done)
    assert rejects_of(f"{bucket}/out").keys() == rejects_of(done).keys()


# Dies when it has written the last of so many records of outputs.
KILLER = """
import os, signal, sys
from trainer import storage
store, records, last = storage.store_of("/"), set(), int(sys.argv[1])
def or_die(write):
    def write_or_die(address, *arguments):
        write(address, *arguments)
        if "/.items/part-" in address:
            records.update(line for line in arguments[0].splitlines() if b'"output"' in line)
        if len(records) >= last:
            os.kill(os.getpid(), signal.SIGKILL)
    return write_or_die
for name in ("create", "replace", "overwrite"):
    setattr(store, name, or_die(getattr(store, name)))
from pipelines.inpaint import main
from pipelines.inpainting import books
books.MOST_LINES = 20
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_killed_halfway_and_run_again_it_makes_what_is_missing_alone(files, done, tmp_path, capsys):
    folder, output = files[0], str(tmp_path / "out")
    code, said = run(folder, "-c", KILLER, "60", *options(folder, output))
    assert code == -signal.SIGKILL, said
    parts = Path(output, ".items").glob("part-*")
    lines = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    finished = {line["output"] for line in lines if "output" in line}
    stamps = {name: Path(output, name).stat() for name in finished}
    assert 60 <= len(finished) < GOOD and not Path(output, "manifest.json").exists()
    assert main(options(folder, output)) == 3
    assert pictures_of(output) == pictures_of(done)
    for name, before in stamps.items():
        now = Path(output, name).stat()
        assert (now.st_mtime_ns, now.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert f'"finished_before": {len(finished)},' in Path(output, "manifest.json").read_text()
    assert f"{len(finished)} of them from an earlier run" in capsys.readouterr().out
