"""300 files of all kinds, 40 of them bad, through the inpainting job: on every runner, from buckets, and killed."""

from __future__ import annotations

import io
import json
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from pipelines.inpaint import main
from trainer import checkpoints, presets, storage
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.model.unet import build_unet

CONFIG = TrainConfig(unet=UNetConfig(image_size=32, filters=(4, 6, 8), kernels=(5, 3, 3)), initial=PhaseConfig(steps=1))
TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
PORTABLE = ["--runner", "PortableRunner", "--job_endpoint", "embed", "--environment_type", "LOOPBACK"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GOOD, BAD = 260, 40
BGR = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}  # OpenCV's order of channels


class Made(NamedTuple):
    """A file: its bytes, how it is to be viewed (None for a bad one), and its mask as viewed."""

    data: bytes
    viewed: np.ndarray | None
    mask: np.ndarray
    orientation: int = 1
    icc: bytes | None = None


def texture(rng, height, width, channels, dtype):
    y, x = np.mgrid[:height, :width]
    waves = 0.5 + 0.3 * np.sin(y / 9 + rng.random())[..., None] * np.cos(x / 7)[..., None]
    noise = rng.random((height, width, channels)) * 0.2
    return np.rint((waves + noise) * np.iinfo(dtype).max).clip(0, np.iinfo(dtype).max).astype(dtype)


def holes(rng, height, width):
    mask = np.ones((height, width), np.uint8)
    top, left = rng.integers(0, max(1, height // 2)), rng.integers(0, max(1, width // 2))
    mask[top : top + max(1, height // 3), left : left + max(1, width // 3)] = 0
    return mask


def by_pillow(pixels, kind, mode=None, **options) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def by_opencv(pixels, extension) -> bytes:
    return cv2.imencode(extension, np.ascontiguousarray(pixels[..., BGR[pixels.shape[2]]]))[1].tobytes()


def pillow_view(data: bytes) -> np.ndarray:
    viewed = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    return viewed[..., None] if viewed.ndim == 2 else viewed


# Kind, extension, channels, bits (16: OpenCV writes it).
KINDS = [
    line.split()
    for line in """
JPEG .jpg 3 8,JPEG .jpeg 1 8,PNG .png 3 8,PNG .png 4 8,PNG .PNG 1 8,PNG .png 2 8,PNG .png 3 16,PNG .png 4 16
PNG .png 1 16,WEBP .webp 3 8,WEBP .webp 4 8,TIFF .tif 3 8,TIFF .tiff 3 16""".replace("\n", ",").split(",")[1:]
]
OPTIONS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True, "exact": True}}
OPTIONS["TIFF"] = {"compression": "tiff_lzw"}


def make_good(number: int) -> tuple[str, Made]:
    rng = np.random.default_rng(number)
    kind, extension, channels, bits = KINDS[number % len(KINDS)]
    channels, dtype = int(channels), np.uint8 if bits == "8" else np.uint16
    height, width = rng.integers(3, 90, 2) if number else (300, 500)
    if number in (1, 2):
        height = width = 1
    if number in (14, 15):
        height, width = (1, 200) if number == 14 else (300, 200)
    pixels = texture(rng, height, width, channels, dtype)
    pixels = np.tile(pixels, (10, 10, 1)) if number == 0 else pixels
    orientation, icc = 1, None
    if dtype == np.uint16:
        data, viewed = by_opencv(pixels, extension), pixels
    else:
        extra = {}
        if number % 3 == 0 and channels >= 3:
            extra["icc_profile"] = icc = SRGB
        if number % 4 == 0 and kind != "TIFF":
            block = Image.Exif()
            block[0x0112] = orientation = 1 + number // 4 % 8
            extra["exif"] = block
        data = by_pillow(pixels, kind, **OPTIONS[kind], **extra)
        viewed = pillow_view(data)
    mask = np.ones(viewed.shape[:2], np.uint8)
    if number == 0:
        mask[700:900, 1000:1180] = mask[2500:2510, 4000:4900] = 0
    elif min(viewed.shape[:2]) > 1 and number % 9:  # others have no hole
        mask = holes(rng, *viewed.shape[:2])
    place = number - 1 if number in (51, 53) else number  # of two files the extension differs alone
    folder = ("", "a/", "a/b/", "v1.2/")[place % 4]
    return f"{folder}{place:03d}{extension}", Made(data, viewed, mask, orientation, icc)


def bomb() -> bytes:
    data = bytearray(by_pillow(np.zeros((1, 1, 3), np.uint8), "PNG"))
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def make_bad(number: int) -> tuple[str, Made, bytes | None, str]:
    """Name, the file, its mask file, and what the reason must hold."""
    rng = np.random.default_rng(1000 + number)
    pixels = texture(rng, 40, 30, 3, np.uint8)
    mask = holes(rng, 40, 30)
    png, jpeg, wide = (
        by_pillow(pixels, "PNG"),
        by_pillow(pixels, "JPEG"),
        by_opencv(pixels.astype(np.uint16) * 257, ".png"),
    )
    mask_file = by_pillow(mask[..., None] * 255, "PNG")
    cases = [
        ("truncated.png", png[: len(png) * 2 // 3], mask_file, "truncated"),
        ("truncated.jpg", jpeg[:-200], mask_file, "truncated"),
        ("truncated16.png", wide[: len(wide) // 2], mask_file, "cannot be decoded"),
        ("size.png", png, by_pillow(mask[:, 1:, None] * 255, "PNG"), "30 x 40 as viewed. Received 29 x 40"),
        ("turned.png", png, by_pillow(mask.T[..., None] * 255, "PNG"), "30 x 40 as viewed. Received 40 x 30"),
        ("alone.png", png, None, "expected a mask file"),
        ("empty.jpg", b"", mask_file, "the file is empty"),
        ("bomb.png", bomb(), mask_file, "expected at most 100000000 pixels"),
        ("all-hole.png", png, by_pillow(mask[..., None] * 0, "PNG"), "all hole"),
        ("text.webp", b"RIFF, but no image", mask_file, "not an image"),
        ("mask.png", png, mask_file[: len(mask_file) - 30], "(.*mask.png)"),
        ("mask-empty.png", png, b"", "the file is empty (.*mask-empty.png)"),
        ("float.tif", by_pillow(pixels[..., :1].astype(np.float32), "TIFF"), mask_file, "32-bit floating point"),
    ]
    name, data, mask_data, reason = cases[number % len(cases)]
    return f"bad-{number:02d}-{name}", Made(data, None, mask), mask_data, reason


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with images in ``in``, masks in ``holes`` and a run in ``run``; the good ones and the reasons by name."""
    folder = str(tmp_path_factory.mktemp("mixed"))
    good = dict(make_good(number) for number in range(GOOD))
    for name, made in good.items():
        storage.create(f"{folder}/in/{name}", made.data)
        mask = f"{folder}/holes/{name.rpartition('.')[0]}.png"
        if not storage.exists(mask):
            storage.create(mask, by_pillow(made.mask[..., None] * 255, "PNG"))
    reasons = {}
    for name, made, mask_data, reason in map(make_bad, range(BAD)):
        storage.create(f"{folder}/in/{name}", made.data)
        reasons[name] = reason
        if mask_data is not None:
            storage.create(f"{folder}/holes/{name.rpartition('.')[0]}.png", mask_data)
    unet, rng = build_unet(CONFIG.unet), np.random.default_rng(0)
    for variable in unet.variables:
        if not variable.path.endswith("kernel"):
            variable.assign(rng.uniform(0.2, 1.2, variable.shape))
    arrays = checkpoints.read_variables(unet.variables)
    state = {"step": 1, "phase": "initial", "examples": 6}
    checkpoints.save_checkpoint(f"{folder}/run", {"model": arrays, "optimizer": {}}, state, keep=1)
    storage.create(f"{folder}/run/config.json", presets.to_json(CONFIG))
    return folder, good, reasons


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
