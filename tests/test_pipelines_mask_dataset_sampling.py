"""pipelines.mask_dataset.sampling: tallies that do not depend on their grouping, and batches of one source."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pipelines
from pipelines.mask_dataset.sampling import CHUNK, Batch, Cell, Count, histogram, merge_tallies, split_group

INSIDE, TOUCHING = Cell("shapes", 0, 0), Cell("shapes", 0, 1)


def test_a_tally_is_the_same_in_any_order_and_grouping():
    ones = [{INSIDE if index % 3 else TOUCHING: Count(1, index, b"%d" % index)} for index in range(3, 20)]
    expected = {TOUCHING: Count(6, 3, b"3"), INSIDE: Count(11, 4, b"4")}  # 3, 6 ... 18, and the other 11
    assert merge_tallies(ones) == expected
    shuffle = random.Random(0)
    for size in (1, 2, 5):
        shuffle.shuffle(ones)
        groups = [merge_tallies(itertools.islice(ones, start, start + size)) for start in range(0, len(ones), size)]
        assert merge_tallies([{}, *groups]) == expected
    assert histogram(expected) == [
        {"generator": "shapes", "bucket": 0, "touches_border": 0, "count": 11},
        {"generator": "shapes", "bucket": 0, "touches_border": 1, "count": 6},
    ]


def test_masks_of_one_source_are_batches_in_index_order():
    indices = list(range(0, 2 * (2 * CHUNK + 1), 2))
    found = split_group(("mask:a", {"source": [b"source"], "indices": indices[::-1]}))
    batches = [Batch(*item) for item in found]
    assert [batch.indices for batch in batches] == [indices[:CHUNK], indices[CHUNK : 2 * CHUNK], indices[2 * CHUNK :]]
    assert {batch.source for batch in batches} == {b"source"}
    assert [Batch(*item).source for item in split_group(("~0", {"source": [], "indices": [1]}))] == [b""]


def test_importing_the_command_loads_no_framework():
    code = (
        "import sys, pipelines.build_masks as b; b.parser().format_help();"
        "heavy = {'tensorflow', 'keras', 'apache_beam', 'ray'};"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    root = Path(pipelines.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
