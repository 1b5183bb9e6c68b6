"""masks.families.files and masks.families.augment: masks of others, augmented. Answers come from counting in NumPy."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

import masks
from masks.coverage import RATIO_BUCKETS
from masks.families import augment
from masks.sampling import MaskSpec, sample_mask
from masks.sources import Source

# A change here means that mask datasets made before can no longer be made again.
GOLDEN = [
    (
        dict(height=512, width=512, hole_ratio=(0.2, 0.3), border="none"),
        7,
        "1eb604a91ba553b6557d476fdda2363a595b802bae7350e724120f03ddfd5d4e",
    ),
    (
        dict(height=97, width=161, hole_ratio=(0.5, 0.50007), border="touch", seed=3),
        12,
        "4fd7d9a7f8eef43209f237db05ffc5a87df18ed17bb10abd06a294fb35af8edf",
    ),  # 7809 of 15617 pixels
]


def letters() -> np.ndarray:
    """uint8 [140, 200]: an L, a ring and a dot, of 0."""
    mask = np.ones((140, 200), np.uint8)
    mask[20:110, 20:32] = mask[98:110, 20:80] = 0
    rows, columns = np.mgrid[:140, :200]
    away = (rows - 60) ** 2 + (columns - 130) ** 2
    mask[(away < 40**2) & (away > 30**2)] = 0
    mask[125:131, 180:186] = 0
    return mask


def inputs() -> dict[str, np.ndarray]:
    nearly = np.zeros((60, 90), np.uint8)
    nearly[20:30, 30:60] = 1
    dots = (np.arange(64 * 64).reshape(64, 64) % 7 > 0).astype(np.uint8)
    return {"letters": letters(), "nearly all hole": nearly, "dots": dots}


def make(source: np.ndarray, **fields) -> MaskSpec:
    fields = {"height": 128, "width": 128, "hole_ratio": (0.1, 0.2), **fields}
    return MaskSpec(generator="files", source=Source("mask", (source,)), **fields)


def digest(mask: np.ndarray) -> str:
    return hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest()


def near_border(mask: np.ndarray, margin: int) -> bool:
    inside = mask[margin:-margin, margin:-margin]
    return np.count_nonzero(mask == 0) != np.count_nonzero(inside == 0)


@pytest.mark.parametrize(("fields", "index", "expected"), GOLDEN)
def test_golden_pixels(fields, index, expected):
    assert digest(sample_mask(make(letters(), **fields), index)) == expected


def many_masks() -> list[str]:
    """Digests of masks of all intervals, at two sizes."""
    return [
        digest(sample_mask(make(source, height=h, width=w, hole_ratio=ratio), index))
        for source in inputs().values()
        for h, w in ((97, 161), (300, 256))
        for index, ratio in enumerate(RATIO_BUCKETS)
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


@pytest.mark.parametrize("border", ["any", "none", "touch"])
@pytest.mark.parametrize(("low", "high"), RATIO_BUCKETS)
def test_every_mask_meets_its_spec_and_none_repeats(low, high, border, soak):
    for name, source in inputs().items():
        for size, margin, count in ((256, 25, 200 if soak else 3), (512, 50, 200 if soak else 1)):
            spec = make(source, height=size, width=size, hole_ratio=(low, high), border=border)
            seen = set()
            for index in range(count):
                mask = sample_mask(spec, index)
                assert mask.dtype == np.uint8 and mask.shape == (size, size) and set(np.unique(mask)) == {0, 1}
                assert low < np.count_nonzero(mask == 0) / mask.size <= high
                assert border == "any" or near_border(mask, margin) == (border == "touch")
                seen.add(digest(mask))
            assert len(seen) == count, name


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("border", ["any", "none", "touch"])
def test_masks_of_one_color_still_give_masks(value, border):
    spec = make(np.full((40, 30), value, np.uint8), height=16, width=64, border=border)
    for index in range(5):
        mask = sample_mask(spec, index)
        assert 0.1 < np.mean(mask == 0) <= 0.2
        assert border == "any" or near_border(mask, 2) == (border == "touch")


def test_shapes_keep_their_look():
    """Strokes of one width give strokes of about one width: a formless blob would be as thick as it is wide."""
    strokes = np.ones((200, 200), np.uint8)
    strokes[::40] = strokes[1::40] = strokes[2::40] = strokes[3::40] = 0
    for index in range(10):
        mask = sample_mask(make(strokes, height=256, width=256, hole_ratio=(0.2, 0.3)), index)
        thickest = 2 * cv2.distanceTransform(np.pad(1 - mask, 1), cv2.DIST_L2, 5).max()
        blob = 2 * np.sqrt(np.count_nonzero(mask == 0) / np.pi)
        assert thickest < 0.5 * blob, index


def test_the_source_alone_decides_which_holes():
    """Same index, another source: other holes; same pixels in another array: the same."""
    spec = make(letters())
    assert np.array_equal(sample_mask(spec, 0), sample_mask(make(np.asfortranarray(letters())), 0))
    assert not np.array_equal(sample_mask(spec, 0), sample_mask(make(1 - letters()), 0))
    source = letters()
    sample_mask(make(source), 0)
    assert np.array_equal(source, letters())


def test_augmented_turns_without_new_values_and_keeps_a_hole_in_view():
    source = np.ones((100, 140), np.uint8)
    source[70:74, 100:104] = 0  # small: most crops would miss it
    angles, areas = set(), []
    for seed in range(40):
        found = augment.augmented(np.random.default_rng(seed), source, (90, 90))
        assert found.shape == (90, 90) and set(np.unique(found)) == {0, 1}
        areas.append(np.count_nonzero(found == 0))
        angles.add(round(cv2.minAreaRect(cv2.findNonZero(1 - found))[2]))
    # 16 pixels at scales of area from 8100 / 14000 to 2 ** 2.4 times that: 9 to 49; mirrored and cut, a little beyond.
    assert 2 <= min(areas) and 25 < max(areas) < 120
    assert len(angles) > 3


def test_augmented_touches_the_border_when_it_shall():
    source = np.ones((100, 100), np.uint8)
    source[45:55, 45:55] = 0
    sides = np.zeros(4, int)
    for seed in range(40):
        found = augment.augmented(np.random.default_rng(seed), source, (64, 80), touch=True)
        touched = [not edge.all() for edge in (found[0], found[-1], found[:, 0], found[:, -1])]
        assert any(touched)
        sides += touched
    assert sides.min() >= 3
