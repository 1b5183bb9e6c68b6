"""pipelines.mask_dataset.sources: real video files, images and masks; each gives sources or one reject."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

import pipelines
from masks.sources import Source
from pipelines.mask_dataset import sources as mask_sources
from pipelines.mask_dataset import videos
from pipelines.mask_dataset.sources import (
    SourceFile,
    SourceOptions,
    decode_source,
    encode_source,
    list_sources,
    read_sources,
)
from pipelines.transforms.rejects import Reject
from trainer import storage
from trainer.errors import UserError


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3]: the sum of random squares of three sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), int)
    for size in (4, 9, 19):
        cells = rng.integers(0, 85, (height // size + 1, width // size + 1))
        total += np.kron(cells, np.ones((size, size), int))[:height, :width]
    return np.repeat(total[..., None], 3, axis=2).astype(np.uint8)


def frame(number: int, height: int = 192, width: int = 256, step: int = 3) -> np.ndarray:
    """Frame ``number`` of a film: a square moves to the right by ``step`` pixels a frame over a still background.

    The lower left corner is as bright as ``number`` times 4.
    """
    pixels = texture(height, width, 0)
    left = number * step % (width - 90)
    pixels[40:120, left : left + 80] = texture(80, 80, 1)
    pixels[-32:, :32] = number * 4 % 256
    return pixels


def write_video(path: pathlib.Path, count: int, step: int = 3) -> str:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (256, 192))
    assert writer.isOpened()
    for number in range(count):
        writer.write(frame(number, step=step))
    writer.release()
    return str(path)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


def read_all(file: SourceFile, **options) -> tuple[list[tuple[str, Source]], list[Reject]]:
    found = list(read_sources(file, SourceOptions(**options)))
    rejects = [item for item in found if isinstance(item, Reject)]
    return [item for item in found if not isinstance(item, Reject)], rejects


def one(kind: str, *addresses: object) -> SourceFile:
    return SourceFile(kind=kind, key="key", addresses=tuple(map(str, addresses)))


def assert_rejected(file: SourceFile, stage: str, text: str, **options) -> None:
    sources, rejects = read_all(file, **options)
    assert not sources and len(rejects) == 1
    assert rejects[0].source == "+".join(file.addresses) and rejects[0].stage == stage and text in rejects[0].error


# Videos


def numbers_in(sources: list[tuple[str, Source]]) -> list[tuple[str, list[int]]]:
    """Key of each pair, and the numbers of its frames as their lower left corners tell them."""
    corners = [[round(pixels[-16:, :16].mean() / 4) for pixels in source.pixels] for _, source in sources]
    return list(zip((key for key, _ in sources), corners, strict=True))


def test_a_video_gives_pairs_of_frames_at_intervals(tmp_path):
    file = one("video", write_video(tmp_path / "clip.avi", 60))
    sources, rejects = read_all(file, gap=3, interval=10)
    assert not rejects
    expected = [(f"key#{first}", [first, first + 3]) for first in (0, 10, 20, 30, 40, 50)]
    assert numbers_in(sources) == expected
    assert all(s.kind == "frames" and s.pixels[0].shape == (256, 341, 3) for _, s in sources)
    again, _ = read_all(file, gap=3, interval=10)
    assert again == sources


def test_a_long_video_gives_pairs_spread_over_it(tmp_path):
    file = one("video", write_video(tmp_path / "clip.avi", 60))
    sources, _ = read_all(file, gap=2, interval=5, max_pairs=4)
    # 5, 10, then 20 apart: three of at most four.
    assert numbers_in(sources) == [("key#0", [0, 2]), ("key#20", [20, 22]), ("key#40", [40, 42])]
    assert [key for key, _ in read_all(file, gap=2, interval=5, max_pairs=1)[0]] == ["key#0"]


def test_frames_keep_their_colors(tmp_path):
    """RGB, not OpenCV's BGR."""
    pixels = frame(0)
    pixels[:] = pixels // 2
    pixels[..., 0] += 100  # red
    (tmp_path / "red.png").write_bytes(png(pixels))
    (_, source), *_ = read_all(one("still", tmp_path / "red.png"))[0]
    assert source.pixels[0][..., 0].mean() > source.pixels[0][..., 2].mean() + 90
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (256, 192))
    for number in range(6):
        moved = frame(number) // 2
        moved[..., 0] += 100
        writer.write(np.ascontiguousarray(moved[..., ::-1]))
    writer.release()
    (_, source), *_ = read_all(one("video", tmp_path / "red.avi"))[0]
    assert source.pixels[0][..., 0].mean() > source.pixels[0][..., 2].mean() + 80


def test_videos_that_cannot_be_used_are_rejected(tmp_path):
    whole = write_video(tmp_path / "whole.avi", 30)
    broken = tmp_path / "broken.avi"
    broken.write_bytes(pathlib.Path(whole).read_bytes()[:2000])
    noise, empty = tmp_path / "noise.mp4", tmp_path / "empty.mkv"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    empty.write_bytes(b"")
    for path in (noise, empty):
        assert_rejected(one("video", path), "decode", "VideoError: the file is not a video that FFmpeg can read")
    assert_rejected(one("video", broken), "decode", "VideoError: ")
    short = write_video(tmp_path / "short.avi", 5)
    assert_rejected(one("video", short), "decode", "expected 6 frames or more. Received 5.", gap=5)
    assert_rejected(one("video", tmp_path / "missing.avi"), "read", "missing.avi does not exist")
    assert_rejected(one("video", write_video(tmp_path / "still.avi", 30, step=0)), "flow", "no motion")


def test_broken_videos_are_read_in_silence(tmp_path):
    """In a process of its own: FFmpeg's log level is fixed when the process first uses it, here to write videos."""
    broken, noise, empty = tmp_path / "broken.avi", tmp_path / "noise.mp4", tmp_path / "empty.mkv"
    broken.write_bytes(pathlib.Path(write_video(tmp_path / "whole.avi", 30)).read_bytes()[:2000])
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    empty.write_bytes(b"")
    code = (
        "import sys; from pipelines.mask_dataset.sources import SourceFile, SourceOptions, read_sources;"
        "files = [SourceFile(kind='video', key=name, addresses=(name,)) for name in sys.argv[1:]];"
        "print([reject.stage for file in files for reject in read_sources(file, SourceOptions())])"
    )
    command = [sys.executable, "-c", code, str(broken), str(noise), str(empty)]
    root = pathlib.Path(pipelines.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("['decode', 'decode', 'decode']\n", "")


def test_what_is_beyond_the_limit_is_rejected(tmp_path):
    path, limit = write_video(tmp_path / "clip.avi", 10), {"max_pixels": 256 * 192 - 1}
    message = "expected frames of at most 49151 pixels. Received 256 x 192."
    assert_rejected(one("video", path), "decode", message, **limit)
    picture = tmp_path / "a.png"
    picture.write_bytes(png(frame(0)))
    for file in (one("mask", picture), one("still", picture), one("pair", picture, picture)):
        assert_rejected(file, "decode", "expected at most 49151 pixels. Received 256 x 192.", hole="black", **limit)
    assert read_all(one("still", picture), max_pixels=256 * 192)[0]


def test_a_video_that_ends_early_gives_what_it_has(tmp_path):
    data = pathlib.Path(write_video(tmp_path / "whole.avi", 60)).read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    sources, rejects = read_all(one("video", tmp_path / "cut.avi"), gap=3, interval=10)
    assert not rejects and [key for key, _ in sources] in (["key#0", "key#10"], ["key#0", "key#10", "key#20"])


def test_a_bucket_s_video_is_fetched_in_parts_and_cleaned_up(tmp_path, bucket, monkeypatch):
    path = write_video(tmp_path / "clip.avi", 30)
    storage.create(f"{bucket}/films/clip.avi", pathlib.Path(path).read_bytes())
    monkeypatch.setattr(videos, "PART", 10_000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(videos.tempfile, "tempdir", str(scratch))
    (file,), rejects = list_sources(frames=f"{bucket}/films/*.avi")
    assert not rejects and (file.kind, file.key) == ("video", "clip.avi")
    sources, _ = read_all(file, gap=3, interval=10)
    assert [source for _, source in sources] == [
        source for _, source in read_all(one("video", path), gap=3, interval=10)[0]
    ]
    assert [key for key, _ in sources] == ["clip.avi#0", "clip.avi#10", "clip.avi#20"]
    assert not list(scratch.iterdir())
    assert_rejected(one("video", f"{bucket}/films/none.avi"), "read", "does not exist")


# Frame images


def test_listing_pairs_frames_in_name_order_and_stereo_by_name(tmp_path):
    for name in ("a/f1.png", "a/f2.png", "a/f10.png", "b/only.png", "clip.AVI", "s/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("s/left/1.png", "s/left/2.png", "s/right/2.png", "s/right/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found, rejects = list_sources(frames=str(tmp_path))
    assert [(file.kind, file.key) for file in found] == [
        ("pair", "a/f1.png+a/f2.png"),
        ("pair", "a/f2.png+a/f10.png"),
        ("pair", "s/left/2.png+s/right/2.png"),
        ("video", "clip.AVI"),
    ]
    assert found[2].addresses == (f"{tmp_path}/s/left/2.png", f"{tmp_path}/s/right/2.png")
    reasons = {reject.source.removeprefix(f"{tmp_path}/"): (reject.stage, reject.error) for reject in rejects}
    assert set(reasons) == {"b/only.png", "s/notes.txt", "s/left/1.png", "s/right/3.jpg"}
    assert all(stage == "match" for stage, _ in reasons.values())
    assert "another frame in the same folder" in reasons["b/only.png"][1]
    assert f"the same name in {tmp_path}/s/right" in reasons["s/left/1.png"][1]
    assert f"the same name in {tmp_path}/s/left" in reasons["s/right/3.jpg"][1]


def test_listing_is_sorted_and_needs_files(tmp_path):
    for name in ("b.png", "a.png", "c/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found, rejects = list_sources(mask_files=f"{tmp_path}/**.png", stills=f"{tmp_path}/*.png")
    assert not rejects
    assert [(f.kind, f.key) for f in found] == [
        ("mask", "a.png"), ("mask", "b.png"), ("mask", "c/a.png"), ("still", "a.png"), ("still", "b.png"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"none\.png matches no file"):
        list_sources(stills=f"{tmp_path}/none.png")


def test_pairs_of_images_are_shrunk_to_where_flow_is_computed(tmp_path):
    for number in (0, 4):
        (tmp_path / f"{number}.png").write_bytes(png(frame(number, 600, 900, step=10)))
    ((key, source),), rejects = read_all(one("pair", tmp_path / "0.png", tmp_path / "4.png"))
    assert not rejects and key == "key" and source.kind == "frames"
    assert [pixels.shape for pixels in source.pixels] == [(256, 384, 3)] * 2
    assert not np.array_equal(*source.pixels)


def test_pairs_that_cannot_be_used_are_rejected(tmp_path):
    whole, other, still = tmp_path / "0.png", tmp_path / "4.png", tmp_path / "still.png"
    whole.write_bytes(png(frame(0)))
    still.write_bytes(png(frame(0)))
    other.write_bytes(png(frame(4, 200)))
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:9000])
    sizes = "expected two frames of one size. Received 256 x 192 and 256 x 200."
    assert_rejected(one("pair", whole, other), "decode", sizes)
    assert_rejected(one("pair", whole, broken), "decode", "ImageError: the pixels cannot be decoded")
    assert_rejected(one("pair", whole, tmp_path / "none.png"), "read", "none.png does not exist")
    assert_rejected(one("pair", whole, still), "flow", "no motion")


# Photographs and masks


def test_stills_are_photographs(tmp_path, bucket):
    storage.create(f"{bucket}/photos/a.png", png(texture(300, 700, 2)))
    storage.create(f"{bucket}/photos/b.png", b"no photograph")
    good, bad = list_sources(stills=f"{bucket}/photos/*")[0]
    ((key, source),), _ = read_all(good)
    assert (key, source.kind, source.pixels[0].shape) == ("a.png", "still", (256, 512, 3))  # cut to twice as wide
    assert_rejected(bad, "decode", "ImageError: the file is not an image")


def test_masks_are_turned_thresholded_and_shrunk(tmp_path):
    gray = np.full((400, 600), 255, np.uint8)
    gray[100:300, 50:250] = 140  # 0.55 of the range: white by half, black by 0.6
    (tmp_path / "mask.png").write_bytes(png(gray))
    file = one("mask", tmp_path / "mask.png")
    ((_, source),), _ = read_all(file, hole="black", side=512)
    assert np.array_equal(source.pixels[0], (gray == 255).astype(np.uint8))  # 400 is less than 1.25 * 512
    ((_, source),), _ = read_all(file, hole="white", side=512)
    assert np.array_equal(source.pixels[0], (gray == 140).astype(np.uint8))
    noise = np.random.default_rng(0).integers(0, 2, (600, 900), np.uint8) * 255
    (tmp_path / "noise.png").write_bytes(png(noise))
    ((_, source),), _ = read_all(one("mask", tmp_path / "noise.png"), hole="black", side=160)  # to 1.25 * 160 = 600 / 3
    assert np.array_equal(source.pixels[0], noise[1::3, 1::3] // 255)
    assert_rejected(file, "decode", "Received no holes", hole="black", threshold=0.5)
    assert_rejected(file, "decode", "Received only holes", hole="white", threshold=0.5)


def test_masks_are_read_by_what_they_hold(tmp_path):
    """As the inpainting job reads them: labels, of which one may be chosen, and colors."""
    mask = np.zeros((90, 120), np.uint8)
    mask[20:50, 30:60] = 1
    painted = np.dstack([mask * 255, mask * 0, mask * 0])
    for name, pixels in (("labels", mask), ("wide", mask.astype(np.uint16) * 255), ("painted", painted)):
        (tmp_path / f"{name}.png").write_bytes(png(pixels))
        ((_, source),), _ = read_all(one("mask", tmp_path / f"{name}.png"), hole="white")
        np.testing.assert_array_equal(source.pixels[0], 1 - mask)
    mask[60:80, 70:110] = 5
    (tmp_path / "two.png").write_bytes(png(mask))
    file = one("mask", tmp_path / "two.png")
    for options, holes in ((dict(hole="white"), mask > 0), (dict(hole_label="5"), mask == 5)):
        ((_, source),), _ = read_all(file, **options)
        np.testing.assert_array_equal(source.pixels[0], (~holes).astype(np.uint8))
    (tmp_path / "three.png").write_bytes(png(mask * np.uint8(51)))
    assert_rejected(one("mask", tmp_path / "three.png"), "decode", "--hole-label 51,255", hole="white")


def test_masks_that_cannot_be_used_are_rejected(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80), np.uint8)
    (tmp_path / "cut.png").write_bytes(png(noise)[:3000])
    assert_rejected(one("mask", tmp_path / "cut.png"), "decode", "ImageError", hole="black")
    (tmp_path / "text.png").write_text("white")
    assert_rejected(one("mask", tmp_path / "text.png"), "decode", "not an image", hole="black")
    assert_rejected(one("mask", tmp_path / "none.png"), "read", "does not exist", hole="black")
    bomb = png(np.zeros((11_000, 11_000), np.uint8))  # 121 million pixels
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert_rejected(one("mask", tmp_path / "bomb.png"), "decode", "expected at most 100000000 pixels", hole="black")


# Between workers


def test_sources_pass_between_workers_without_loss():
    rng = np.random.default_rng(0)
    photo, next_photo = rng.integers(0, 256, (2, 37, 53, 3), np.uint8)
    mask = rng.integers(0, 2, (37, 53), np.uint8)
    for source in (Source("mask", (mask,)), Source("still", (photo,)), Source("frames", (photo, next_photo))):
        data = encode_source(source)
        assert isinstance(data, bytes)
        back = decode_source(data)
        assert back.kind == source.kind
        assert all(map(np.array_equal, back.pixels, source.pixels)) and back == source
    assert len(encode_source(Source("mask", (np.ones((512, 512), np.uint8),)))) < 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(hole="gray"), r"hole: expected one of \('black', 'white', 'transparent', 'opaque'\). Received 'gray'"),
        (dict(threshold=0), r"threshold: expected a fraction in \(0, 1\]. Received 0"),
        (dict(gap=0), "expected 1 or more"),
        (dict(gap=5, interval=5), "interval > gap"),
    ],
)
def test_wrong_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SourceOptions(**fields)


def test_natural_order_decides_every_tie():
    names = ["f/02.png", "f/2.png", "f/10.png", "f/a.png", "f/1b.png"]
    assert sorted(names, key=mask_sources._natural) == ["f/1b.png", "f/02.png", "f/2.png", "f/10.png", "f/a.png"]
