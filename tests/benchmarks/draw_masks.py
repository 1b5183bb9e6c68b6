"""Masks per second on one core at 512 x 512, with exact hole ratios, beside a plain generator with arbitrary ones.

    make bench                                             # or: python tests/benchmarks/draw_masks.py shapes walks
    ROUNDS=15 python tests/benchmarks/draw_masks.py        # steadier medians

Each round draws masks of the paper's six intervals with border `any`; the last columns include encoding. Times are CPU
times of the thread, hence about the same on a busy machine.
"""

import math
import random
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from _timing import SMALL, rounds

from masks.codec import encode_mask
from masks.coverage import RATIO_BUCKETS
from masks.families import FAMILIES
from masks.sampling import MaskSpec, sample_mask
from masks.sources import Source

ROUNDS = rounds(5)
SIZE = 64 if SMALL else 512
MASKS = 1 if SMALL else 20  # per interval and round; 1 for families with a source, which are far slower
PHOTOS = Path(__file__).parents[2] / "pipelines" / "photos"


def draw_plain(size=SIZE):
    """Random lines, circles and ellipses as public generators draw them: 1 to 20 of each kind, up to 6 % thick."""
    mask, thickest = np.ones((size, size), np.uint8), int(0.06 * size)

    def point():
        return random.randint(1, size), random.randint(1, size)

    for _ in range(random.randint(1, 20)):
        cv2.line(mask, point(), point(), 0, random.randint(3, thickest))
    for _ in range(random.randint(1, 20)):
        cv2.circle(mask, point(), random.randint(3, thickest), 0, -1)
    for _ in range(random.randint(1, 20)):
        turn, start, end = (random.randint(3, 180) for _ in range(3))
        cv2.ellipse(mask, point(), point(), turn, start, end, 0, random.randint(3, thickest))
    return mask


def make_sources(kinds):
    """Sources that a family draws from: photographs, or as many masks."""
    photos = [cv2.imread(str(path)) for path in sorted(PHOTOS.rglob("*.jpg"))]
    if "still" in kinds:
        return [Source("still", (photo,)) for photo in photos]
    spec = MaskSpec(generator="shapes", height=SIZE, width=SIZE, hole_ratio=RATIO_BUCKETS[1])
    return [Source("mask", (sample_mask(spec, index),)) for index in range(len(photos))]


def make_tasks(family):
    """(spec, index) of each mask of one round."""
    kinds = FAMILIES[family].source_kinds
    sources, masks = (make_sources(kinds), 1) if kinds else ([None], MASKS)
    fields = dict(generator=family, height=SIZE, width=SIZE)
    return [
        (MaskSpec(**fields, hole_ratio=interval, source=sources[(number * masks + index) % len(sources)]), index)
        for number, interval in enumerate(RATIO_BUCKETS)
        for index in range(masks)
    ]


def median_rates(variants):
    """Calls per second of each variant, a list of functions that every round calls; variants take turns."""
    rates = {name: [] for name in variants}
    for round_number in range(ROUNDS + 1):
        for name, calls in variants.items():
            begin = time.thread_time()
            for call in calls:
                call()
            if round_number:  # the first one warms up
                rates[name].append(len(calls) / (time.thread_time() - begin))
    return {name: statistics.median(values) for name, values in rates.items()}


def main(chosen):
    cv2.setNumThreads(1)
    random.seed(0)
    variants = {}
    for family in ("plain", *chosen):
        if family == "plain":
            draws = [draw_plain] * (MASKS * len(RATIO_BUCKETS))
        else:
            draws = [lambda spec=spec, index=index: sample_mask(spec, index) for spec, index in make_tasks(family)]
        variants[family, "draw"] = draws
        variants[family, "encode"] = [lambda draw=draw: encode_mask(draw()) for draw in draws]
    # As in any process that has held a photograph: the allocator then keeps memory of a mask's size.
    np.ones(1 << 24, np.uint8)
    rates = median_rates(variants)

    print(f"masks of {SIZE} x {SIZE} per second on one core (ratio to plain), medians of {ROUNDS}")
    print(f"{'':12}{'draw':>10}{'':10}{'draw + encode':>16}")
    for family in ("plain", *chosen):
        draw, encode = (rates[family, what] / rates["plain", what] for what in ("draw", "encode"))
        print(
            f"{family:12}{format_rate(rates[family, 'draw']):>10}{f'({draw:.3f})':>10}"
            f"{format_rate(rates[family, 'encode']):>16}{f'({encode:.3f})':>10}",
            flush=True,
        )


def format_rate(rate):
    return f"{rate:,.0f}" if math.log10(rate) > 2 else f"{rate:.1f}"


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name in FAMILIES] or list(FAMILIES))
