"""Pairs of masks and images: balanced, decided by the seed alone, the same from any order of records."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b

import pytest

from pipelines.evaluation import pairing
from pipelines.evaluation.pairing import ALL_MASKS, CELLS, MaskKey


def digest(kind: str, seed: int, number: int) -> bytes:
    return blake2b(f"{kind} {seed} {number}".encode(), digest_size=8).digest()


def make_masks(counts: dict[tuple[int, int], int]) -> list[MaskKey]:
    cells = [cell for cell, count in counts.items() for _ in range(count)]
    random.Random(1).shuffle(cells)
    return [MaskKey(10 * i, *cell) for i, cell in enumerate(cells)]


def cells_of(plan, masks) -> Counter:
    by_index = {mask.mask_index: (mask.bucket, mask.border) for mask in masks}
    return Counter(by_index[index] for index in plan.places)


def test_every_cell_has_as_many_pairs_as_the_smallest():
    counts = {cell: 7 + number for number, cell in enumerate(CELLS)}
    counts[2, 0], counts[3, 1], counts[-1, 0] = 5, 0, 2
    masks = make_masks(counts)
    plan = pairing.plan_pairs(masks, seed=3)
    assert plan.found == counts and plan.rounds == 5
    assert cells_of(plan, masks) == {cell: min(5, count) for cell, count in counts.items() if count}


@pytest.mark.parametrize(("per_cell", "most"), [(1, 1), (8, 8), (ALL_MASKS, 999)])
def test_as_many_pairs_as_asked_for_where_there_are(per_cell, most):
    counts = {cell: 3 + 2 * number for number, cell in enumerate(CELLS)}
    masks = make_masks(counts)
    plan = pairing.plan_pairs(masks, 0, per_cell)
    assert cells_of(plan, masks) == {cell: min(most, count) for cell, count in counts.items()}
    assert sorted(pair for pair, _ in plan.places.values()) == list(range(len(plan.places)))


def test_the_plan_by_hand():
    masks = make_masks(dict.fromkeys(CELLS[:4], 6))
    plan = pairing.plan_pairs(masks, seed=11, per_cell=4)
    expected, pair = {}, 0
    for turn in range(4):
        for cell in CELLS[:4]:
            ordered = sorted(
                (m.mask_index for m in masks if m[1:] == cell), key=lambda index: digest("mask", 11, index)
            )
            expected[ordered[turn]] = (pair, turn)
            pair += 1
    assert plan.places == expected
    assert pairing.plan_pairs(masks[::-1], seed=11, per_cell=4) == plan
    assert pairing.plan_pairs(masks, seed=12, per_cell=4).places.keys() != expected.keys()


def test_masks_outside_of_the_intervals_decide_only_where_there_are_no_others():
    assert pairing.plan_pairs(make_masks({(-1, 0): 1, (0, 0): 4}), 0).rounds == 4
    assert len(pairing.plan_pairs(make_masks({(-1, 0): 3, (-1, 1): 2}), 0).places) == 4
    assert pairing.plan_pairs([], 0) == pairing.Plan({}, 0, dict.fromkeys(CELLS, 0))


@pytest.mark.parametrize(("num_images", "rounds"), [(5, 12), (12, 5), (1, 3)])
def test_images_take_turns_in_the_seeds_order(num_images, rounds):
    order = sorted(range(num_images), key=lambda position: digest("image", 4, position))
    places = pairing.order_images(num_images, 4, rounds)
    assert places == {position: place for place, position in enumerate(order[:rounds])}
    found = {turn: p for p, place in places.items() for turn in pairing.rounds_of(place, num_images, rounds)}
    assert found == {turn: order[turn % num_images] for turn in range(rounds)}
