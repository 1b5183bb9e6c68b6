"""The jobs through faults of the storage and a full disk: the same bytes, or a job that fails, never a reject."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import uuid

import numpy as np
import pytest
from faults import ANY, DOWNLOAD, UPLOAD, Fault, proxied

from masks.codec import encode_mask
from masks.sampling import MaskSpec, sample_mask
from networks import small_config, write_run
from pipelines import build_imagenet, build_masks, evaluate, inpaint
from pipelines.image_dataset import parts
from trainer import storage
from trainer.errors import Outage
from trainer.images import rgb
from trainer.storage import attempts, gcs

SIZE = 32
JOBS = {"masks": build_masks, "folder": build_imagenet, "tar": build_imagenet, "inpaint": inpaint, "evaluate": evaluate}


def photo(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: smooth, so that the networks' output is far from clipped."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.uint8(np.stack([x, 0.7 * y + 0.05 * number, 0.3 + 0.5 * x * y], -1) * 200)


def fill(root: str) -> None:
    """Files, datasets and a run that the jobs below start from; of the photographs one cannot be used."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(6):
            data = rgb.encode_png(photo(number, 40, 40 + 3 * number))  # its chunks have checksums
            storage.create(f"{root}/photos/{number}.png", data)
            storage.create(f"{root}/in/{number}.png", data)
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    storage.create(f"{root}/photos/broken.png", b"no image")
    storage.create(f"{root}/tar/ILSVRC2012_img_test.tar", archive.getvalue())
    for number in range(6):
        spec = MaskSpec(generator="shapes", height=40, width=40 + 3 * number, hole_ratio=(0.1, 0.3))
        storage.create(f"{root}/holes/{number}.png", encode_mask(sample_mask(spec, number)))
    storage.create(f"{root}/holes/manifest.json", b'{"hole": "black"}')
    write_run(f"{root}/run", small_config(SIZE))
    run("folder", root, f"{root}/images", "--split", "val")
    run("masks", root, f"{root}/masks", "--split", "val")


def arguments(job: str, root: str, output: str) -> list[str]:
    masks = ["--generator", "files", "--mask-files", f"{root}/holes/*.png", "--hole", "black"]
    return {
        "masks": [*masks, "--count", "24", "--size", str(SIZE), "--num-shards", "2"],
        "folder": ["--input", f"{root}/photos", "--num-shards", "2"],
        "tar": ["--input", f"{root}/tar", "--num-shards", "2"],
        "inpaint": ["--images", f"{root}/in", "--masks", f"{root}/holes/*.png", "--hole", "black"]
        + ["--run", f"{root}/run"],
        "evaluate": ["--images", f"{root}/images", "--masks", f"{root}/masks", "--run", f"{root}/run"]
        + ["--baseline", "telea"],
    }[job] + ["--output", output]


def run(job: str, root: str, output: str, *more: str) -> int:
    return JOBS[job].main([*arguments(job, root, output), *more])


def contents(folder: str) -> dict[str, bytes]:
    """Bytes of all files by name, without the seconds that something took."""
    found = {storage.relative(address, folder): storage.read(address) for address in storage.find(folder)}
    if "items.jsonl" in found:
        items = [json.loads(line) for line in found["items.jsonl"].splitlines()]
        found["items.jsonl"] = b"".join(b"%r\n" % sorted({**item, "seconds": 0}.items()) for item in items)
    return found


@pytest.fixture(scope="module")
def root(gcs_server):
    """Address of a bucket with inputs, and what each job makes of them without any fault: exit code and files."""
    before = os.environ.get("STORAGE_EMULATOR_HOST")
    os.environ["STORAGE_EMULATOR_HOST"] = gcs_server
    gcs.client.cache_clear()
    bucket = f"pconv-{uuid.uuid4().hex[:12]}"
    gcs.client().create_bucket(bucket)
    fill(f"gs://{bucket}")
    yield f"gs://{bucket}"
    gcs.client().close()
    gcs.client.cache_clear()
    if before is None:
        del os.environ["STORAGE_EMULATOR_HOST"]
    else:
        os.environ["STORAGE_EMULATOR_HOST"] = before


@pytest.fixture(scope="module")
def expected(root):
    """By job its exit code and files."""
    return {job: (run(job, root, f"{root}/expected/{job}"), contents(f"{root}/expected/{job}")) for job in JOBS}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "_PAUSE", 0.004)


# Every fault with every job takes eight minutes, which make soak has; make test has each kind of fault once or twice.
IN_MAKE_TEST = {
    *(("answers", job) for job in ("folder", "inpaint")),
    ("refusals", "tar"),
    *(("inputs", job, kind) for job, kind in (("masks", "cut"), ("evaluate", 403))),
    *(("output", job) for job in ("tar", "inpaint")),
    ("disk", "inpaint"),
}


def choose(soak: bool, *case) -> None:
    if not soak and case not in IN_MAKE_TEST:
        pytest.skip("make soak runs it")


def nth(start: int):
    return lambda number: number % 7 == start


def healing(faults: str, job: str) -> list[Fault]:
    """New faults, each done to every seventh request that it is about: whoever asks again gets an answer."""
    if faults == "answers":
        # A part of an object has no checksum: flipped bits of one that is decoded cannot be told.
        flipped = [] if job == "tar" else [Fault("flip", DOWNLOAD + "$", nth(1))]
        return flipped + [Fault(kind, ANY, nth(n)) for n, kind in enumerate(["cut", "short", "empty"], 2)]
    refused = [Fault(kind, ANY, nth(2 * n)) for n, kind in enumerate([401, 403, 404])]
    return [Fault("lost", UPLOAD, nth(0)), Fault(412, UPLOAD, nth(3)), *refused, Fault("closed", ANY, nth(5))]


@pytest.mark.slow
@pytest.mark.parametrize("faults", ["answers", "refusals"])
@pytest.mark.parametrize("job", JOBS)
def test_faults_that_heal_change_nothing(root, expected, gcs_server, job, faults, soak):
    choose(soak, faults, job)
    output, done = f"{root}/{job}-{faults}", healing(faults, job)
    with proxied(gcs_server, *done):
        code = run(job, root, output)
    assert all(fault.count for fault in done)
    assert (code, contents(output)) == expected[job]


@pytest.mark.parametrize("moment", range(3))
def test_a_tar_whose_headers_arrive_damaged_is_indexed_again(root, gcs_server, moment):
    address = f"{root}/tar/ILSVRC2012_img_test.tar"
    expected = list(parts.list_members(address))
    with proxied(gcs_server, Fault("flip", DOWNLOAD, lambda number: number == moment)):
        assert list(parts.list_twice(address, 0, storage.entry(address).size)) == expected


INPUTS = {"masks": "holes", "folder": "photos", "tar": "ILSVRC", "inpaint": "in%2F", "evaluate": "tfrecord"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", 403])
@pytest.mark.parametrize("job", JOBS)
def test_an_outage_of_the_inputs_fails_the_job(root, expected, gcs_server, job, kind, monkeypatch, soak):
    choose(soak, "inputs", job, kind)
    for name in ("_OUTAGE", "_LOST", "_DOUBT"):
        monkeypatch.setattr(attempts, name, 0.05)
    output = f"{root}/{job}-{kind}-stays"
    at_launch = 1 if job == "tar" else 0  # the first header: what is refused by then is wrong use
    fault = Fault(kind, rf"/o/[^?]*{INPUTS[job]}.*alt=media", lambda number: number >= at_launch)
    with proxied(gcs_server, fault), pytest.raises(Outage) as caught:
        run(job, root, output)
    assert "\n" not in str(caught.value) and root in str(caught.value)
    assert not [name for name in contents(output) if name in ("manifest.json", "metrics.json")]
    assert (run(job, root, output), contents(output)) == expected[job]  # the same command later


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_an_outage_of_the_output_fails_the_job(root, expected, gcs_server, job, monkeypatch, soak):
    choose(soak, "output", job)
    monkeypatch.setattr(attempts, "_OUTAGE", 0.05)
    output = f"{root}/{job}-unwritable"
    with proxied(gcs_server, Fault(503, UPLOAD, lambda number: number > 0)), pytest.raises(Outage):
        run(job, root, output)
    assert not [name for name in contents(output) if name in ("manifest.json", "metrics.json")]
    assert (run(job, root, output), contents(output)) == expected[job]


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a disk of so many kB at one place, or changes its size; returns the place."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def resize(kilobytes: int) -> str:
        options = f"{'remount,' if mounted else ''}size={kilobytes}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "pconv", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no disk of its own could be mounted here: {done.stderr}")
        mounted.append(kilobytes)
        return str(place)

    yield resize
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(job, small_disk, tmp_path, soak):
    choose(soak, "disk", job)
    local = str(tmp_path / "local")
    fill(local)
    code, files = run(job, local, str(tmp_path / "expected")), contents(str(tmp_path / "expected"))
    output = small_disk(8) + "/out"  # two pages
    command = [sys.executable, "-m", JOBS[job].__name__, *arguments(job, local, output)]
    full = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert full.returncode == 1
    errors = [line for line in full.stderr.splitlines() if not line.startswith("  ")]  # progress is indented
    assert len(errors) == 1 and errors[0].startswith("error: "), full.stderr
    assert "No space left on device" in errors[0] and output in errors[0]
    assert not [name for name in contents(output) if name in ("manifest.json", "metrics.json")]
    small_disk(50_000)
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (again.returncode, contents(output)) == (code, files), again.stderr
