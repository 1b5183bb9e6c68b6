"""masks.sources and how specifications carry them: equality, refusals, mixtures."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from masks.families import FAMILIES, Family
from masks.sampling import MaskSpec, family_of, sample_mask
from masks.sources import Source

MASK = np.ones((20, 30), np.uint8)
PHOTO = np.zeros((20, 30, 3), np.uint8)


def test_sources_are_equal_when_kind_and_pixels_are():
    one, two = Source("mask", (MASK,)), Source("mask", (MASK.copy(),))
    assert one == two and hash(one) == hash(two) and one == pickle.loads(pickle.dumps(one))
    other = MASK.copy()
    other[0, 0] = 0
    turned = MASK.reshape(30, 20)
    assert len({one, Source("mask", (other,)), Source("mask", (turned,)), Source("still", (PHOTO,))}) == 4
    assert Source("mask", (MASK[::2, ::2],)) == Source("mask", (MASK[::2, ::2].copy(),))  # strides do not matter
    assert one != "mask"


@pytest.mark.parametrize(
    ("kind", "pixels"),
    [
        ("photo", (PHOTO,)),
        ("mask", (PHOTO,)),
        ("mask", ()),
        ("mask", (MASK, MASK)),
        ("mask", (MASK.astype(np.float32),)),
        ("mask", (MASK[:0],)),
        ("still", (MASK,)),
        ("still", (PHOTO[..., :2],)),
        ("frames", (PHOTO,)),
        ("frames", (PHOTO, PHOTO[1:])),
        ("frames", ("a", "b")),
    ],
)
def test_other_pixels_are_refused(kind, pixels):
    with pytest.raises(ValueError, match="expected"):
        Source(kind, pixels)


@pytest.fixture
def families(monkeypatch):
    """Three families that fill rows from the top; ``from_mask`` starts from a source."""

    def copy_source(rng, canvas):
        canvas.region[:] = canvas.source.pixels[0]

    for name, count in (("two", 2), ("three", 3)):
        monkeypatch.setitem(FAMILIES, name, Family(lambda rng, canvas, count=count: canvas.region[:count].fill(0)))
    monkeypatch.setitem(FAMILIES, "from_mask", Family(copy_source, source_kinds=("mask",)))


def make(**fields) -> MaskSpec:
    return MaskSpec(**{"generator": "two", "height": 20, "width": 20, "hole_ratio": (0.0, 1.0), **fields})


def test_a_mixture_draws_each_family_by_its_weight(families):
    spec = make(generator="mixture", weights={"two": 3, "three": 1})
    drawn = [family_of(spec, index) for index in range(2000)]
    assert 1400 < drawn.count("two") < 1600  # 1500, and a standard deviation of 19
    for index, family in enumerate(drawn[:50]):
        assert np.count_nonzero(sample_mask(spec, index) == 0) == 20 * {"two": 2, "three": 3}[family]


def test_weights_are_kept_in_name_order(families):
    one = make(generator="mixture", weights={"two": 1, "three": 2})
    two = make(generator="mixture", weights=[("three", 2.0), ("two", 1.0)])
    assert one == two and one.families == ("three", "two")
    assert make().families == ("two",)


@pytest.mark.parametrize(
    "fields",
    [
        {"generator": "mixture"},
        {"generator": "mixture", "weights": {"none": 1}},
        {"generator": "mixture", "weights": {"mixture": 1}},
        {"generator": "mixture", "weights": {"two": 0}},
        {"generator": "mixture", "weights": {"two": float("inf")}},
        {"generator": "mixture", "weights": [("two", 1), ("two", 2)]},
        {"weights": {"two": 1}},
    ],
)
def test_other_weights_are_refused(families, fields):
    with pytest.raises(ValueError, match="weights: expected"):
        make(**fields)


def test_a_source_is_needed_and_must_fit(families):
    mask = np.ones((20, 20), np.uint8)
    mask[5:9] = 0
    spec = make(generator="from_mask", source=Source("mask", (mask,)))
    np.testing.assert_array_equal(sample_mask(spec, 0), mask)
    with pytest.raises(ValueError, match="source: expected a Source of one of .*'from_mask'.* Received None"):
        sample_mask(make(generator="from_mask"), 0)
    for generator in ("from_mask", "two"):
        with pytest.raises(ValueError, match="source: expected one of"):
            make(generator=generator, source=Source("still", (PHOTO,)))


def test_the_margin_can_be_set():
    wide = make(generator="shapes", height=64, width=64, hole_ratio=(0.01, 0.1), border="none", margin=20)
    for index in range(20):
        inside = sample_mask(wide, index)[20:-20, 20:-20]
        assert np.count_nonzero(sample_mask(wide, index) == 0) == np.count_nonzero(inside == 0) > 40
    same = dict(generator="shapes", hole_ratio=(0.1, 0.2))
    assert make(margin=2, **same) == make(**same)  # 50 of 512 pixels are 2 of 20
    for margin in (0, 10, 1.5):
        with pytest.raises(ValueError, match="margin: expected 1 to 9 pixels"):
            make(margin=margin, **same)
