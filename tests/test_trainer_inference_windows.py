"""Windows around holes: what they cover, how they are blended, and what large holes are filled with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.inference import filling
from trainer.inference.filling import Model, fill_groups, fill_images
from trainer.inference.windows import Box, Tiling, fit_side, make_group, make_sides, plan_groups, span_axis

SMALL = Tiling(size=64)  # margin 8, overlap 8, support 48


def coverage(shape, groups):
    """Sum of the weights at each pixel, pixel by pixel."""
    total = np.zeros(shape)
    for group in groups:
        for row in group.rows:
            for column in group.columns:
                for i, y in enumerate(range(row.first, row.last)):
                    total[y, column.first : column.last] += row.weights[i] * column.weights
    return total


def test_margin_and_overlap_are_an_eighth_of_the_size():
    assert Tiling() == Tiling(size=1024, margin=128, overlap=128) and Tiling().support == 768
    assert SMALL == Tiling(size=64, margin=8, overlap=8) and SMALL.support == 48
    assert Tiling(size=64, margin=0, overlap=1).support == 64
    assert Tiling(size=8, margin=1, overlap=2).support == 6  # the least of each


def test_sides_are_few_and_hold_any_length():
    assert make_sides(256, 512, largest=1024) == (256, 512, 768, 1024)
    assert make_sides(8, 40, largest=64) == (8, 16, 24, 32, 40, 48, 64)
    assert make_sides(512, largest=64) == (512,)
    assert [fit_side(n, (8, 16, 24), 8) for n in (1, 8, 9, 24, 25, 41)] == [8, 8, 16, 24, 32, 48]
    assert fit_side(17, (), 8) == 24


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_spans_cover_with_weights_that_sum_to_one(data):
    margin, overlap = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 9))
    size = data.draw(st.integers(2 * margin + 3 * overlap, 90).filter(lambda n: n >= 8))
    tiling = Tiling(size=size, margin=margin, overlap=overlap)
    length = data.draw(st.integers(1, 500))
    first = data.draw(st.integers(0, length - 1))
    last = data.draw(st.integers(first + 1, length))
    spans = span_axis(first, last, length, tiling, (), 1)
    total = np.zeros(length)
    for span in spans:
        assert 0 <= span.start <= max(0, span.first - margin) and span.stop <= length
        assert span.stop >= min(length, span.last + margin) and span.stop - span.start <= size
        assert len(span.weights) == span.last - span.first > 0 and span.weights.min() > 0
        total[span.first : span.last] += span.weights
    np.testing.assert_allclose(total[first:last], 1, atol=1e-6)
    assert not total[:first].any() and not total[last:].any()
    if len(spans) > 1:  # a grid is of one shape
        assert {span.stop - span.start for span in spans} == {min(size, length)}
        assert len(spans) <= 2 + (last - first - overlap) // (tiling.support - overlap)
    else:
        assert min(last + margin, length) - max(first - margin, 0) <= size


def test_a_window_takes_the_context_that_its_padded_size_has_room_for():
    (span,) = span_axis(100, 110, 1000, Tiling(size=64), (32, 64), 8)  # 10 + 2 * 8 = 26, so 32
    assert (span.start, span.stop) == (89, 121)
    (span,) = span_axis(0, 10, 1000, Tiling(size=64), (32, 64), 8)
    assert (span.start, span.stop) == (0, 32)
    (span,) = span_axis(995, 1000, 1000, Tiling(size=64), (32, 64), 8)
    assert (span.start, span.stop) == (968, 1000)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_groups_hold_every_hole_once(seed):
    rng = np.random.default_rng(seed)
    mask = np.ones(rng.integers(1, 400, 2), np.uint8)
    for _ in range(rng.integers(0, 6)):
        top, left = (rng.integers(0, length) for length in mask.shape)
        mask[top : top + rng.integers(1, 90), left : left + rng.integers(1, 90)] = 0
    groups = plan_groups(mask, SMALL, make_sides(8, largest=64), 8)
    total = coverage(mask.shape, groups)
    assert np.all(total[mask == 0] > 0.999)
    for group in groups:
        assert not mask[group.box.slices].all()
        np.testing.assert_allclose(coverage(mask.shape, [group])[group.box.slices], 1, atol=1e-6)
    assert bool(groups) == (not mask.all())


def test_far_holes_have_windows_of_their_own_and_near_ones_share():
    mask = np.ones((600, 600), np.uint8)
    mask[10:20, 10:20] = mask[580:590, 500:510] = 0
    far = plan_groups(mask, SMALL, make_sides(8, largest=64), 8)
    assert len(far) == 2 and all(group.is_single for group in far)
    assert all(row.stop - row.start <= 48 for group in far for row in group.rows)
    mask[10:20, 34:40] = 0
    assert len(plan_groups(mask, SMALL, make_sides(8, largest=64), 8)) == 2


def test_speckles_everywhere_share_windows():
    rng = np.random.default_rng(0)
    mask = (rng.random((4000, 6000)) > 2e-4).astype(np.uint8)
    groups = plan_groups(mask, Tiling(), make_sides(256, largest=1024), 256)
    windows = sum(len(group.rows) * len(group.columns) for group in groups)
    assert windows < 80  # the whole frame takes 7 x 10


def test_the_work_of_planning_grows_with_the_holes_and_not_with_their_square(monkeypatch):
    plans, counted = [], "trainer.inference.windows.make_group"
    monkeypatch.setattr(counted, lambda *arguments: plans.append(arguments[0]) or make_group(*arguments))
    monkeypatch.setattr("trainer.inference.windows._NEIGHBORS", 5)
    mask = np.ones((100, 9600), np.uint8)
    mask[40:50, 40::96] = 0  # 100 holes too far apart to share a window
    assert len(plan_groups(mask, SMALL, make_sides(8, largest=64), 8)) == 100
    assert len(plans) <= 100 * (1 + 5)  # of each hole its own, and with the five before


@pytest.mark.parametrize("options", [{"size": 4}, {"size": 64, "margin": 30}, {"size": 64, "overlap": 0}])
def test_tilings_that_cannot_be_blended_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        Tiling(**options)


# What the windows are filled with


class Recorder:
    """Stands for a network: gives each window's valid mean everywhere, or its own number, and keeps what it saw."""

    def __init__(self, numbered=False):
        self.seen, self._numbered = [], numbered

    def __call__(self, image, mask):
        self.seen.append((image.copy(), mask.copy()))
        weight = np.maximum(mask.sum((1, 2), keepdims=True), 1)
        mean = (image * mask).sum((1, 2), keepdims=True) / weight
        output = np.broadcast_to(mean, image.shape).copy()
        return output + len(self.seen) * 0.01 if self._numbered else output


def make_model(predict, size=64, batch_size=1):
    tiling = Tiling(size=size)
    return Model(predict, 8, make_sides(8, largest=size), batch_size, tiling)


def wavy(height, width, dtype=np.uint8, channels=3):
    """A smooth picture."""
    y, x = np.mgrid[:height, :width] / 40
    planes = [0.5 + 0.4 * np.sin(y + k) * np.cos(x - k) for k in range(channels)]
    return np.rint(np.stack(planes, 2) * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_valid_pixels_and_alpha_stay_whatever_the_windows(dtype, channels):
    pixels = wavy(210, 190, dtype, channels)
    mask = np.ones((210, 190), np.uint8)
    mask[5:150, 40:180] = mask[200:, :9] = 0
    image = pixels.copy()
    (windows,) = fill_images([pixels], [mask], make_model(Recorder()))
    assert windows > 9
    np.testing.assert_array_equal(pixels[mask == 1], image[mask == 1])
    colors = channels - (channels in (2, 4))
    np.testing.assert_array_equal(pixels[..., colors:], image[..., colors:])
    assert (pixels[..., :colors] != image[..., :colors])[mask == 0].mean() > 0.9


def test_the_network_sees_what_is_valid_and_nothing_of_what_is_not():
    pixels, mask = wavy(300, 300), np.ones((300, 300), np.uint8)
    mask[100:110, 120:150] = 0
    pixels[mask == 0] = 255
    recorder = Recorder()
    assert fill_images([pixels], [mask], make_model(recorder)) == [1]
    ((image, valid),) = recorder.seen
    # 112 - 96 + 16 by 160 - 112 + 16 in cells of 16: 32 by 64.
    assert valid.shape == (1, 32, 64, 1)
    at = slice(88, 120), slice(104, 168)
    np.testing.assert_array_equal(valid[0, ..., 0], mask[at])
    expected = wavy(300, 300)[at] / np.float32(255) * mask[at][..., None]
    np.testing.assert_allclose(image[0], expected, atol=1e-6)


def test_gray_is_the_luminance_of_what_the_network_gives():
    pixels, mask = np.full((8, 8, 1), 7, np.uint8), np.ones((8, 8), np.uint8)
    mask[3, 4] = 0

    def predict(image, _):
        return np.broadcast_to(np.float32([1.0, 0.5, 0.0]), image.shape)

    fill_images([pixels], [mask], make_model(predict))
    assert pixels[3, 4, 0] == round(255 * (0.299 + 0.5 * 0.587)) and np.count_nonzero(pixels != 7) == 1


def test_whole_frame_and_holes_alone_agree_where_they_share_windows():
    pixels = wavy(400, 500)
    mask = np.ones((400, 500), np.uint8)
    mask[130:180, 200:260] = mask[300:305, 20:400] = 0
    frame = [make_group(Box(0, 0, 400, 500), mask.shape, SMALL, make_sides(8, largest=64), 8)]
    whole, alone = pixels.copy(), pixels.copy()
    all_windows = fill_groups(whole, mask, frame, make_model(Recorder()), skip_holeless=False)
    some_windows = fill_groups(alone, mask, frame, make_model(Recorder()))
    assert all_windows >= len(frame[0].rows) * len(frame[0].columns) == 10 * 13
    assert some_windows < all_windows / 4
    np.testing.assert_array_equal(whole, alone)


def test_neighboring_windows_are_blended_linearly():
    """Each window gives a level of its own; inside holes no step is larger than the blending makes it."""
    pixels, mask = np.zeros((64, 300, 3), np.uint16), np.ones((64, 300), np.uint8)
    mask[28:36, 10:290] = 0  # nowhere deep
    model = make_model(Recorder(numbered=True))
    fill_images([pixels], [mask], model)
    row = pixels[30, 10:290, 0].astype(float) / 65535
    levels = np.unique(np.round(row, 4))
    assert row[0] == pytest.approx(0.01, abs=1e-4) and row[-1] == pytest.approx(0.08, abs=1e-4)
    assert np.max(np.abs(np.diff(row))) <= 0.01 / SMALL.overlap + 1e-4
    assert len(levels) > 8  # (300 - 8) / 40 pixels a step: eight windows, and what lies between them


@pytest.mark.parametrize("batch_size", [None, 1, 3, 8])
def test_batches_do_not_matter_and_have_few_shapes(batch_size):
    rng = np.random.default_rng(4)
    sizes = [(1, 1), (1, 300), (300, 2), (40, 40), (64, 64), (65, 64), (200, 170), (33, 17)]
    pictures, masks = [], []
    for height, width in sizes:
        pictures.append(wavy(height, width))
        masks.append((rng.random((-(-height // 9), -(-width // 9))) > 0.3).repeat(9, 0).repeat(9, 1))
        masks[-1] = masks[-1][:height, :width].astype(np.uint8)
    expected = [picture.copy() for picture in pictures]
    for picture, mask in zip(expected, masks, strict=True):
        fill_images([picture], [mask], make_model(Recorder()))
    recorder = Recorder()
    fill_images(pictures, masks, make_model(recorder, batch_size=batch_size))
    for ours, theirs in zip(pictures, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    shapes = {image.shape for image, _ in recorder.seen}
    if batch_size:  # 64 x 64 is far below 512 x 512: full batches throughout
        assert {shape[0] for shape in shapes} == {batch_size}
        assert {side for shape in shapes for side in shape[1:3]} <= set(make_sides(8, largest=64))
    assert filling._batch_limit(make_model(None, 1024, 8), (1024, 1024)) == 2


def test_no_hole_costs_no_window():
    recorder = Recorder()
    assert fill_images(
        [wavy(9, 9), wavy(300, 9)], [np.ones((9, 9), np.uint8), np.ones((300, 9), np.uint8)], make_model(recorder)
    ) == [0, 0]
    assert not recorder.seen
