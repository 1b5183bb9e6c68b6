"""What all families that start from nothing have in common. Answers come from counting in NumPy, not from coverage."""

from __future__ import annotations

import hashlib
import os
import pathlib
import statistics
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from numpy._core import _multiarray_umath

import masks
from masks import exactness
from masks.coverage import RATIO_BUCKETS
from masks.families import FAMILIES
from masks.sampling import BORDERS, MIXTURE, MaskSpec, sample_mask

FREE = [name for name, family in FAMILIES.items() if not family.source_kinds]
MARGINS = {(512, 512): 50, (256, 256): 25, (128, 128): 13, (97, 161): 9, (16, 16): 2, (16, 300): 2}

each_family = pytest.mark.parametrize("family", FREE)
each_border = pytest.mark.parametrize("border", BORDERS)
each_interval = pytest.mark.parametrize("hole_ratio", RATIO_BUCKETS)


def make(family, size=(128, 128), hole_ratio=(0.2, 0.3), border="any", **fields) -> MaskSpec:
    height, width = size
    return MaskSpec(generator=family, height=height, width=width, hole_ratio=hole_ratio, border=border, **fields)


def assert_meets(mask: np.ndarray, spec: MaskSpec) -> None:
    assert mask.dtype == np.uint8 and mask.shape == (spec.height, spec.width) and mask.flags.c_contiguous
    assert mask.max() <= 1
    low, high = spec.hole_ratio
    assert low < np.count_nonzero(mask == 0) / mask.size <= high
    margin = MARGINS[mask.shape]
    near = np.ones(mask.shape, bool)
    near[margin:-margin, margin:-margin] = False
    assert spec.border == "any" or bool((mask[near] == 0).any()) == (spec.border == "touch")


def test_the_readme_lists_every_family():
    lines = (pathlib.Path(masks.__file__).parent / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("`")[1::2] for line in lines if line.startswith("| `") and line.endswith(".py` |")]
    assert [row[0] for row in rows] == [*FAMILIES, MIXTURE]
    assert all((pathlib.Path(masks.__file__).parent / "families" / row[-1]).is_file() for row in rows[:-1])


@each_family
@each_border
@each_interval
def test_every_mask_meets_its_spec_and_none_repeats(family, border, hole_ratio, soak):
    """With --soak in a bounded time each as well: the guard is far above the 4 that was measured."""
    count, sizes = (200, (256, 512)) if soak else (6, (256,))
    for size in sizes:
        spec = make(family, (size, size), hole_ratio, border)
        sample_mask(spec, count)
        digests, seconds = set(), []
        for index in range(count):
            begin = time.thread_time()
            mask = sample_mask(spec, index)
            seconds.append(time.thread_time() - begin)
            assert_meets(mask, spec)
            digests.add(hashlib.sha256(mask.tobytes()).digest())
        assert len(digests) == count
        if soak:
            assert np.quantile(seconds, 0.99) < 20 * statistics.median(seconds)


@each_family
@each_border
@pytest.mark.parametrize(
    ("size", "hole_ratio"),
    [
        ((97, 161), (0.2, 0.20006)),  # 3124 of 15617 pixels: one number alone
        ((97, 161), (0.0, 0.00007)),  # one pixel
        ((16, 16), (0.55, 0.5625)),  # with border none up to every pixel that may be a hole, 12 * 12
        ((16, 300), (0.0, 1.0)),
        ((128, 128), (0.6, 0.62)),  # with border none nearly all of 0.635
    ],
)
def test_narrow_and_wide_intervals_and_odd_sizes_are_met(family, border, size, hole_ratio):
    spec = make(family, size, hole_ratio, border)
    for index in range(5):
        assert_meets(sample_mask(spec, index), spec)


@each_family
def test_full_masks_can_be_asked_for(family):
    assert not sample_mask(make(family, (16, 16), (0.999, 1.0)), 0).any()


@each_family
def test_little_is_left_to_settle(family, monkeypatch):
    """Families draw what is asked for, so that their masks look like what they are."""
    settled = []
    for name in ("resize_holes", "shift_to_border"):
        step = getattr(exactness, name)
        monkeypatch.setattr(exactness, name, lambda *args, step=step: (settled.append(step), step(*args)))
    for border in BORDERS:
        for hole_ratio in RATIO_BUCKETS:
            spec = make(family, hole_ratio=hole_ratio, border=border)
            for index in range(10):
                sample_mask(spec, index)
    assert len(settled) <= 2  # of 180


@each_family
def test_holes_lie_everywhere(family):
    """Both axes of a canvas that is not square, in each quarter alike; x and y swapped would leave half of it empty."""
    holes = sum(1.0 - sample_mask(make(family, (64, 256)), index) for index in range(300))
    quarters = [holes[:32, :128], holes[32:, :128], holes[:32, 128:], holes[32:, 128:]]
    fractions = [quarter.sum() / holes.sum() for quarter in quarters]
    assert max(fractions) < 0.29 and min(fractions) > 0.21
    assert holes.min() > 0


@each_family
def test_touching_holes_use_all_four_sides(family):
    """Small ratios, where what touches is a large part of the mask."""
    spec = make(family, hole_ratio=(0.01, 0.02), border="touch")
    drawn = [sample_mask(spec, index) for index in range(200)]
    sides = (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])
    touching = np.array([[not mask[side].all() for side in sides] for mask in drawn])
    assert touching.any(axis=1).mean() > 0.98
    assert touching.sum(axis=0).min() >= 40


@each_family
def test_ratios_spread_over_the_interval(family):
    ratios = [np.mean(sample_mask(make(family), index) == 0) for index in range(300)]
    counts, _ = np.histogram(ratios, bins=[0.2, 0.225, 0.25, 0.275, 0.3])
    assert counts.sum() == 300 and counts.min() >= 20


def longest_run(pixels: np.ndarray) -> int:
    """Of True in one row."""
    ends = np.flatnonzero(np.diff(np.concatenate([[0], pixels, [0]])))
    return int((ends[1::2] - ends[::2]).max(initial=0))


@pytest.mark.parametrize("family", ["strokes", "walks", "blobs"])
def test_inner_holes_are_not_cut_along_a_line(family):
    """Border none: their outermost rows and columns hold no long straight edge. The sides of boxes are straight."""
    for hole_ratio in ((0.1, 0.2), (0.3, 0.4)):
        spec = make(family, (256, 256), hole_ratio, "none")
        runs = []
        for index in range(30):
            holes = spec.canvas(sample_mask(spec, index)).region == 0
            runs.append(max(longest_run(line) for line in (holes[0], holes[-1], holes[:, 0], holes[:, -1])))
        assert np.quantile(runs, 0.9) < 0.05 * 206


DIGESTS = """
import hashlib, sys, cv2
from masks.sampling import BORDERS, MaskSpec, sample_mask
from masks.coverage import RATIO_BUCKETS
cv2.setNumThreads(int(sys.argv[1]))
for family in sys.argv[2:]:
    for height, width in ((97, 161), (256, 256), (512, 512)):
        for border in BORDERS:
            for hole_ratio in (*RATIO_BUCKETS, (0.3, 0.3001)):
                spec = MaskSpec(generator=family, height=height, width=width, hole_ratio=hole_ratio, border=border)
                for index in range(2):
                    print(spec, index, hashlib.sha256(sample_mask(spec, index)).hexdigest())
"""


def run_fresh(threads: int, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(masks.__file__).parent.parent), **variables}
    command = [sys.executable, "-c", DIGESTS, str(threads), *FREE]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_pixels_do_not_depend_on_the_processor_or_threads():
    """Code for older processors, in OpenCV and NumPy, another number of threads, none of Intel's library."""
    here = run_fresh(1)
    assert len(here.splitlines()) == len(FREE) * 3 * 3 * 7 * 2
    assert run_fresh(2, OPENBLAS_NUM_THREADS="2") == here
    older = dict(
        OPENCV_CPU_DISABLE="AVX512-SKX,AVX512-COMMON,AVX2,FMA3,FP16,AVX",
        NPY_DISABLE_CPU_FEATURES=" ".join(
            name for name in _multiarray_umath.__cpu_dispatch__ if _multiarray_umath.__cpu_features__[name]
        ),
    )
    assert run_fresh(2, **older) == here
    assert run_fresh(1, OPENCV_IPP="disabled", **older) == here


def test_opencv_knows_how_to_be_an_older_processor():
    """Else the test above would compare like with like."""
    if "AVX2" not in cv2.getCPUFeaturesLine():
        pytest.skip("this processor has no AVX2")
    code = "import cv2; print(cv2.getCPUFeaturesLine())"
    environment = {**os.environ, "OPENCV_CPU_DISABLE": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() != cv2.getCPUFeaturesLine().strip()
