"""masks.families.occlusion: scenes whose occlusion is known, exactness, and bits that no CPU feature changes."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest

import masks
from masks.coverage import RATIO_BUCKETS
from masks.families import occlusion
from masks.sampling import MaskSpec, sample_mask
from masks.sources import Source

# A change here means that mask datasets made before can no longer be made again.
GOLDEN = {
    "frames": "596f0f894539f84ac8d6e056699031f4311809bfa6210450cabd825933bb1933",
    "still": "dd0335228df30c5cf9ae641691623544ddc4420132d4dcb76b23018b6c3e2550",
}


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3]: the sum of random squares of four sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), int)
    for size in (2, 5, 11, 23):
        cells = rng.integers(0, 64, (height // size + 1, width // size + 1))
        total += np.kron(cells, np.ones((size, size), int))[:height, :width]
    return np.repeat(total[..., None], 3, axis=2).astype(np.uint8)


def scene(near: tuple[int, int], far: tuple[int, int], shape: str = "disc", height: int = 256, width: int = 300):
    """Two frames and what the second hides of the first (bool): a disc or rectangle moves by ``near`` = (x, y) over a
    background that moves by ``far``."""
    back, front = texture(height + 100, width + 100, 0), texture(height + 100, width + 100, 1)
    rows, columns = np.mgrid[:height, :width]

    def inside(motion):
        x, y = columns - width // 2 - motion[0], rows - height // 2 - motion[1]
        return x * x + y * y < 70**2 if shape == "disc" else (abs(x) < 80) & (abs(y) < 55)

    def layer(pixels, motion):
        return pixels[50 - motion[1] : 50 - motion[1] + height, 50 - motion[0] : 50 - motion[0] + width]

    frames = [
        np.where(inside(n)[..., None], layer(front, n), layer(back, f)) for n, f in (((0, 0), (0, 0)), (near, far))
    ]
    # Background at x is at x + far in the second frame: hidden if the shape is there.
    hidden = inside((near[0] - far[0], near[1] - far[1])) & ~inside((0, 0))
    return frames[0], frames[1], hidden


def widened(found: np.ndarray, pixels: int) -> np.ndarray:
    size = 2 * pixels + 1
    return cv2.dilate(found.astype(np.uint8), np.ones((size, size), np.uint8)) > 0


@pytest.mark.parametrize("shape", ["disc", "rectangle"])
@pytest.mark.parametrize(
    ("near", "far"),
    [
        ((16, 0), (0, 0)),
        ((26, 0), (0, 0)),
        ((10, 4), (-3, 0)),
        ((-12, 9), (2, -2)),
        ((24, 10), (-4, 4)),
        ((0, 0), (8, 3)),
    ],
)
def test_occluded_is_what_the_second_frame_hides(near, far, shape):
    """At least 0.8 of it is found, and of what is found, within 2 pixels."""
    frame, next_frame, hidden = scene(near, far, shape)
    found = occlusion.occluded(frame, next_frame) == 0
    recall = np.count_nonzero(hidden & widened(found, 2)) / np.count_nonzero(hidden)
    precision = np.count_nonzero(found & widened(hidden, 2)) / np.count_nonzero(found)
    assert recall >= 0.8 and precision >= 0.8, (recall, precision)
    # The other way round, it is what the second frame uncovers.
    back = occlusion.occluded(next_frame, frame) == 0
    assert np.count_nonzero(found & back) < 0.5 * np.count_nonzero(found)


def test_what_moves_without_hiding_is_not_occluded():
    frame = texture(256, 300, 0)
    assert occlusion.occluded(frame, frame).all()
    moved = texture(306, 350, 0)
    seen = occlusion.occluded(moved[20:276, 25:325], moved[14:270, 16:316])  # everything moves by (9, 6)
    assert np.count_nonzero(seen == 0) < 0.01 * seen.size  # what leaves the frame is no hole either


def test_flows_that_leave_the_frame_have_nothing_to_disagree_with(monkeypatch):
    forward, backward = np.zeros((2, 40, 100, 2), np.float32)
    forward[..., 0] = 30
    monkeypatch.setattr(occlusion, "_flows", lambda *_: (forward, backward))
    found = occlusion.occluded(*np.zeros((2, 40, 100, 3), np.uint8)) == 0
    assert found[:, :70].all() and not found[:, 70:].any()  # 69 + 30 is the last column


@pytest.mark.parametrize(
    ("flow", "back", "fails"), [(0.5, 0.2, False), (0.5, 0.3, True), (20, -18, False), (20, -17, True)]
)
def test_occluded_follows_its_formula(monkeypatch, flow, back, fails):
    """(0.5 + 0.2)^2 = 0.49 < 0.5029; 0.64 > 0.5034; (20 - 18)^2 = 4 < 7.74; 9 > 7.39."""
    forward, backward = np.zeros((2, 40, 100, 2), np.float32)
    forward[..., 1], backward[..., 1] = flow, back
    monkeypatch.setattr(occlusion, "_flows", lambda *_: (forward, backward))
    found = occlusion.occluded(*np.zeros((2, 40, 100, 3), np.uint8)) == 0
    assert (found[:15] == fails).all()


def test_two_layers_move_against_each_other():
    """Frames of noise differ from one translated image, and their occlusion is a band, not all or nothing."""
    image = texture(300, 400, 3)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        frame, next_frame = occlusion.two_layers(rng, image)
        assert frame.shape == next_frame.shape == (256, 256, 3) and frame.dtype == np.uint8
        ratio = np.mean(occlusion.occluded(frame, next_frame) == 0)
        assert 0.002 < ratio < 0.4
    image_before = image.copy()
    occlusion.two_layers(np.random.default_rng(0), image)
    assert np.array_equal(image, image_before)


def test_bands_drop_specks_and_surfaces_and_keep_bands():
    holes = np.ones((256, 256), np.uint8)
    holes[20:23, 20:23] = 0  # a speck
    holes[100:200, 20:120] = 0  # a surface, 100 pixels wide
    holes[40:200, 180:190] = 0  # a band
    holes[100:104, 180:190] = 1  # with a gap
    kept = occlusion.bands(holes)
    assert kept[:, :150].all() and not kept[45:195, 182:188].any()
    assert not occlusion.bands(np.ones((256, 256), np.uint8)).sum() < 256 * 256


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 48), (341, 256)), ((1080, 1920), (256, 455)), ((50, 500), (256, 512))]
)
def test_shrink_gives_the_working_size(size, expected):
    assert occlusion.shrink(np.zeros((*size, 3), np.uint8)).shape == (*expected, 3)


def sources() -> dict[str, Source]:
    frame, next_frame, _ = scene((14, 6), (-4, 0), "rectangle", 270, 350)
    return {"frames": Source("frames", (frame, next_frame)), "still": Source("still", (texture(200, 420, 7),))}


def digest(mask: np.ndarray) -> str:
    return hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest()


def golden_mask(kind: str) -> np.ndarray:
    fields = {
        "frames": dict(height=512, width=512, hole_ratio=(0.2, 0.3), border="none"),
        "still": dict(height=97, width=161, hole_ratio=(0.5, 0.50007), border="touch", seed=3),  # 7809 of 15617
    }[kind]
    return sample_mask(MaskSpec(generator="occlusion", source=sources()[kind], **fields), 7)


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_pixels(kind):
    assert digest(golden_mask(kind)) == GOLDEN[kind]


def many_masks() -> list[str]:
    """Digests of masks of both kinds and all intervals, at two sizes."""
    return [
        digest(sample_mask(MaskSpec(generator="occlusion", height=h, width=w, hole_ratio=r, source=source), index))
        for source in sources().values()
        for h, w in ((97, 161), (300, 256))
        for index, r in enumerate(RATIO_BUCKETS)
    ]


PLAINEST = "AVX512-SKX,AVX512-COMMON,AVX2,FMA3,FP16,AVX,SSE4.2,SSE4.1,POPCNT,SSSE3"


@pytest.mark.parametrize(
    ("settings", "threads"), [({"OPENCV_IPP": "disabled"}, 3), ({"OPENCV_CPU_DISABLE": PLAINEST}, 1)]
)
def test_cpu_features_and_threads_do_not_change_a_bit(settings, threads):
    code = (
        "import sys, cv2, runpy; cv2.setNumThreads(int(sys.argv[1]));print(runpy.run_path(sys.argv[2])['many_masks']())"
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(masks.__file__).parent.parent), **settings}
    command = [sys.executable, "-c", code, str(threads), __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(many_masks())


def test_other_threads_draw_the_same():
    """OpenCV keeps by thread whether IPP is used; drawing leaves it as it was."""
    drawn, used = [], cv2.ipp.useIPP()
    thread = threading.Thread(target=lambda: drawn.append(digest(golden_mask("still"))))
    thread.start()
    thread.join()
    assert drawn == [GOLDEN["still"]] and cv2.ipp.useIPP() == used


def near_border(mask: np.ndarray, margin: int) -> bool:
    inside = mask[margin:-margin, margin:-margin]
    return np.count_nonzero(mask == 0) != np.count_nonzero(inside == 0)


@pytest.mark.parametrize("border", ["any", "none", "touch"])
@pytest.mark.parametrize(("low", "high"), RATIO_BUCKETS)
def test_every_mask_meets_its_spec_and_none_repeats(low, high, border, soak):
    for kind, source in sources().items():
        for size, margin, count in ((256, 25, 200 if soak else 2), (512, 50, 200 if soak else 1)):
            spec = MaskSpec(
                generator="occlusion", height=size, width=size, hole_ratio=(low, high), border=border, source=source
            )
            seen = set()
            for index in range(count):
                mask = sample_mask(spec, index)
                assert mask.dtype == np.uint8 and mask.shape == (size, size) and set(np.unique(mask)) == {0, 1}
                assert low < np.count_nonzero(mask == 0) / mask.size <= high
                assert border == "any" or near_border(mask, margin) == (border == "touch")
                seen.add(digest(mask))
            assert len(seen) == count, kind


def roundness(mask: np.ndarray) -> float:
    """Depth of the holes over the radius of a disc as large: 1 for a disc, little for bands."""
    depth = cv2.distanceTransform(np.pad(1 - mask, 1), cv2.DIST_L2, 5).max()
    return depth / np.sqrt(np.count_nonzero(mask == 0) / np.pi)


def test_masks_are_bands_and_no_formless_blobs():
    for kind, source in sources().items():
        spec = MaskSpec(generator="occlusion", height=256, width=256, hole_ratio=(0.04, 0.06), source=source)
        assert np.median([roundness(sample_mask(spec, index)) for index in range(10)]) < 0.6, kind


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("kind", ["still", "frames"])
def test_images_of_nothing_still_give_masks(kind, value):
    blank = np.full((40, 60, 3), value, np.uint8)
    source = Source(kind, (blank,) * (2 if kind == "frames" else 1))
    spec = MaskSpec(generator="occlusion", height=64, width=96, hole_ratio=(0.1, 0.2), border="none", source=source)
    drawn = [sample_mask(spec, index) for index in range(8)]
    assert np.median([roundness(mask) for mask in drawn]) < 0.6
    assert all(0.1 < np.mean(mask == 0) <= 0.2 for mask in drawn)
    assert len({digest(mask) for mask in drawn}) == 8


def test_sources_are_not_written_on():
    for kind, source in sources().items():
        before = [pixels.copy() for pixels in source.pixels]
        sample_mask(MaskSpec(generator="occlusion", height=64, width=64, hole_ratio=(0.1, 0.2), source=source), 0)
        assert all(map(np.array_equal, before, source.pixels)), kind


DOCUMENTATION = pathlib.Path(os.environ.get("PCONV_OPENCV_DOC", "/usr/fraction/doc/opencv-doc"))


@pytest.mark.parametrize("name", ["vtest.avi", "Megamind.avi"])
def test_film_gives_masks_along_what_moves(name):
    """Holes of neighboring frames lie where the image changed."""
    path = DOCUMENTATION / "examples" / "data" / name
    if not path.is_file():
        pytest.skip("needs Debian's opencv-doc, or PCONV_OPENCV_DOC with the path of its folder")
    capture = cv2.VideoCapture(str(path))
    frames = [capture.read()[1][..., ::-1] for _ in range(66)]
    capture.release()
    frame, next_frame = (occlusion.shrink(frames[number]) for number in (60, 65))
    holes = occlusion.bands(occlusion.occluded(frame, next_frame)) == 0
    assert 0.001 < holes.mean() < 0.3
    change = abs(frame.astype(int) - next_frame).mean(axis=2)
    assert change[holes].mean() > 1.5 * change[~holes].mean()
    source = Source("frames", (frame, next_frame))
    for index, (low, high) in enumerate(RATIO_BUCKETS):
        mask = sample_mask(
            MaskSpec(generator="occlusion", height=256, width=256, hole_ratio=(low, high), source=source), index
        )
        assert low < np.mean(mask == 0) <= high
