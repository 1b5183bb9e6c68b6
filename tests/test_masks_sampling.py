"""masks.sampling: exactness, reproducibility and refusals. Answers come from counting in NumPy, not from coverage."""

from __future__ import annotations

import hashlib
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

import masks
from masks import sampling
from masks.coverage import RATIO_BUCKETS
from masks.families import FAMILIES, Family
from masks.sampling import MaskSpec, sample_mask

# A change here means that mask datasets made before can no longer be made again.
GOLDEN = [
    (
        dict(height=64, width=64, hole_ratio=(0.01, 0.1)),
        0,
        "b44296cf81ac380f1905cdc089a4270d171120820bf5fda84959e924b55f7a29",
    ),
    (
        dict(height=97, width=161, hole_ratio=(0.2, 0.20006), border="touch", seed=3),
        7,
        "e1a384fe9acfec27807c2a145a3596082a299617a4b9d18e1e54c534415fbda4",
    ),
    (
        dict(height=256, width=256, hole_ratio=(0.3, 0.4), border="none"),
        1000,
        "f2cb92d6dc9de63b078a275503c4723b6cf34645a7f63ff05e1532d0e4e61d17",
    ),
    (
        dict(height=512, width=512, hole_ratio=(0.5, 0.6), seed=1),
        12,
        "1bb5492e2efeec9deb1bdd7989c568680e724760e2d8404a2bd3a593c8a0c04e",
    ),
]

MARGINS = {(128, 128): 13, (97, 161): 9, (161, 97): 9, (16, 16): 2, (512, 512): 50, (256, 256): 25}


def make(size=(128, 128), hole_ratio=(0.1, 0.2), **fields) -> MaskSpec:
    return MaskSpec(**{"generator": "shapes", "height": size[0], "width": size[1], "hole_ratio": hole_ratio, **fields})


def digest(mask: np.ndarray) -> str:
    return hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest()


def assert_meets(mask: np.ndarray, spec: MaskSpec) -> None:
    assert mask.dtype == np.uint8 and mask.shape == (spec.height, spec.width) and mask.flags.c_contiguous
    assert mask.max() <= 1
    low, high = spec.hole_ratio
    assert low < np.count_nonzero(mask == 0) / mask.size <= high
    margin = MARGINS[mask.shape]
    near = np.ones(mask.shape, bool)
    near[margin:-margin, margin:-margin] = False
    holes_near = bool((mask[near] == 0).any())
    assert spec.border == "any" or holes_near == (spec.border == "touch")


@pytest.mark.parametrize("border", ["any", "none", "touch"])
@pytest.mark.parametrize("hole_ratio", RATIO_BUCKETS)
@pytest.mark.parametrize("size", [(128, 128), (97, 161)])
def test_every_mask_meets_its_spec_and_none_repeats(size, hole_ratio, border):
    spec = make(size, hole_ratio, border=border)
    drawn = [sample_mask(spec, index) for index in range(30)]
    for mask in drawn:
        assert_meets(mask, spec)
    assert len({digest(mask) for mask in drawn}) == 30


@pytest.mark.parametrize("border", ["any", "none", "touch"])
@pytest.mark.parametrize(
    ("size", "hole_ratio"),
    [
        ((97, 161), (0.2, 0.20006)),  # 3124 of 15617 pixels: one number alone
        ((161, 97), (0.0, 0.00007)),  # one pixel
        ((16, 16), (0.55, 0.5625)),  # with border none up to every pixel that may be a hole, 12 * 12
        ((16, 16), (0.0, 1.0)),
        ((512, 512), (0.59, 0.6)),
    ],
)
def test_narrow_and_wide_intervals_are_met(size, hole_ratio, border):
    spec = make(size, hole_ratio, border=border)
    for index in range(20):
        assert_meets(sample_mask(spec, index), spec)


def test_full_masks_can_be_asked_for():
    for border in ("any", "touch"):
        spec = make((16, 16), (0.999, 1.0), border=border)  # 256 of 256
        assert not sample_mask(spec, 0).any()


@pytest.mark.parametrize(("fields", "index", "expected"), GOLDEN)
def test_golden_pixels(fields, index, expected):
    assert digest(sample_mask(MaskSpec(generator="shapes", **fields), index)) == expected


def test_order_and_earlier_masks_do_not_matter():
    spec = make()
    forward = [digest(sample_mask(spec, index)) for index in range(6)]
    for index in (5, 0, 3, 1, 4, 2):
        mask = sample_mask(pickle.loads(pickle.dumps(spec)), np.int64(index))
        assert digest(mask) == forward[index]
        mask[:] = 0  # a caller may write on its mask


def draw_noise(rng, canvas):
    canvas.region[:] = rng.integers(0, 2, canvas.region.shape, np.uint8)


def test_every_field_of_the_spec_and_the_index_is_in_the_random_key(monkeypatch):
    """With a family that reads nothing but ``rng``, and masks that need no settling."""
    for name in ("noise", "more noise"):
        monkeypatch.setitem(FAMILIES, name, Family(draw_noise))
    noise = dict(generator="noise", hole_ratio=(0.4, 0.6))
    changes = [{}, dict(seed=1), dict(seed=-1), dict(seed=10), dict(border="touch"), dict(generator="more noise")]
    changes += [dict(hole_ratio=(0.4, 0.6001)), dict(hole_ratio=(0.3999, 0.6))]
    specs = [make(**{**noise, **change}) for change in changes]
    assert len({digest(sample_mask(spec, index)) for spec in specs for index in (0, 1, 10)}) == 3 * len(specs)


def test_equal_specs_draw_equal_masks():
    """Lists, whole numbers and NumPy's scalars, as command lines and JSON give them."""
    one = make(hole_ratio=(0.0, 1.0), seed=3)
    two = make((np.int32(128), np.int64(128)), [-0.0, np.float64(1)], seed=np.int8(3))
    assert one == two and hash(one) == hash(two)
    assert digest(sample_mask(one, 0)) == digest(sample_mask(two, 0))


def run_fresh(code: str, hash_seed: str) -> str:
    root = pathlib.Path(masks.__file__).parent.parent
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_other_processes_draw_the_same():
    code = (
        "import hashlib; from masks.sampling import MaskSpec, sample_mask;"
        "spec = MaskSpec(generator='shapes', height=97, width=161, hole_ratio=(0.3, 0.4), border='touch', seed=5);"
        "print([hashlib.sha256(sample_mask(spec, index).tobytes()).hexdigest() for index in (4, 2)])"
    )
    spec = make((97, 161), (0.3, 0.4), border="touch", seed=5)
    here = [hashlib.sha256(sample_mask(spec, index).tobytes()).hexdigest() for index in (4, 2)]
    assert [run_fresh(code, hash_seed) for hash_seed in ("1", "2")] == [str(here)] * 2


def test_masks_load_no_framework():
    code = (
        "import importlib, pkgutil, sys, masks;"
        "[importlib.import_module(f'masks.{module.name}') for module in pkgutil.iter_modules(masks.__path__)];"
        "heavy = {'tensorflow', 'apache_beam', 'ray', 'keras', 'jax', 'torch', 'trainer', 'pipelines'};"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    assert run_fresh(code, "0") == "[]"


REFUSED = [
    (dict(generator="shape"), r"generator: expected one of \(.*'shapes'.*\). Received 'shape'"),
    (dict(height=15), "height: expected a whole number of 16 pixels or more. Received 15"),
    (dict(width=0), "width: expected a whole number of 16 pixels or more. Received 0"),
    (dict(width=128.0), "width: expected a whole number of 16 pixels or more. Received 128.0"),
    (dict(seed="1"), "seed: expected a whole number. Received '1'"),
    (dict(border="near"), r"border: expected one of \('any', 'none', 'touch'\). Received 'near'"),
    (dict(hole_ratio=(0.2, 0.1)), "hole_ratio: expected .low, high. with 0 <= low < high <= 1. Received"),
    (dict(hole_ratio=(0.2, 0.2)), "hole_ratio: expected"),
    (dict(hole_ratio=(-0.1, 0.2)), "hole_ratio: expected"),
    (dict(hole_ratio=(0.9, 1.1)), "hole_ratio: expected"),
    (dict(hole_ratio=(0.1, float("nan"))), "hole_ratio: expected"),
    (dict(hole_ratio=0.1), "hole_ratio: expected .low, high. with 0 <= low < high <= 1. Received 0.1"),
    (dict(hole_ratio=(0.1, 0.2, 0.3)), "hole_ratio: expected"),
    (dict(hole_ratio="ab"), "hole_ratio: expected"),
    (dict(hole_ratio=(0.2, 0.20001)), "interval that holds a whole number of the 16384 pixels of 128 x 128"),
    # 128 - 2 * 13 = 102 pixels wide inside: 10404 of 16384, 0.63501
    (dict(hole_ratio=(0.6351, 0.7), border="none"), "lower bound under 0.6350 with border='none', .*10404 of 16384"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_specs_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskSpec(**{"generator": "shapes", "height": 128, "width": 128, "hole_ratio": (0.1, 0.2), **fields})


def test_border_none_up_to_its_room_is_accepted():
    spec = make(hole_ratio=(0.634, 0.7), border="none")
    canvas = spec.canvas(np.ones((128, 128), np.uint8))
    assert (canvas.min_holes, canvas.max_holes) == (10388, 10404)  # 0.634 * 16384 = 10387.456
    assert_meets(sample_mask(spec, 0), spec)


def test_spec_is_frozen_and_keyword_only():
    with pytest.raises(TypeError):
        MaskSpec("shapes", 128, 128, (0.1, 0.2))
    with pytest.raises(AttributeError):
        make().seed = 1


@pytest.mark.parametrize("index", [-1, 1.0, "0", None, True])
def test_wrong_indices_are_refused(index):
    with pytest.raises(ValueError, match="index: expected a whole number of 0 or more. Received"):
        sample_mask(make(), index)


def draw_frame(rng, canvas):
    """Holes in the outermost pixels alone."""
    canvas.region[[0, -1]] = canvas.region[:, [0, -1]] = 0


FAMILIES_OFF_THE_MARK = {
    "all valid": lambda rng, canvas: None,
    "all hole": lambda rng, canvas: canvas.region.fill(0),
    "noise": draw_noise,
    "frame": draw_frame,
}


@pytest.mark.parametrize("name", FAMILIES_OFF_THE_MARK)
def test_a_family_that_misses_is_settled(name, monkeypatch):
    monkeypatch.setitem(FAMILIES, name, Family(FAMILIES_OFF_THE_MARK[name]))
    for border in sampling.BORDERS:
        for hole_ratio in (*RATIO_BUCKETS, (0.2, 0.20006), (0.0, 0.0001)):
            spec = make((97, 161), hole_ratio, generator=name, border=border)
            drawn = [sample_mask(spec, index) for index in range(3)]
            for mask in drawn:
                assert_meets(mask, spec)
            assert len({digest(mask) for mask in drawn}) > 1 or name == "frame" or hole_ratio[1] < 0.001


def test_a_family_on_the_mark_is_left_alone(monkeypatch):

    def block(rng, canvas):
        canvas.region[40:90, 40:90] = 0  # 2500 of 16384 pixels: 0.153

    monkeypatch.setitem(FAMILIES, "block", Family(block))
    for border, first in (("any", 40), ("none", 13 + 40)):
        mask = sample_mask(make(generator="block", border=border), 0)
        assert not mask[first : first + 50, first : first + 50].any() and np.count_nonzero(mask == 0) == 2500
    touching = sample_mask(make(generator="block", border="touch"), 0)
    assert not touching[40:90, 78:].any() and np.count_nonzero(touching == 0) == 2500  # the right side was nearest
