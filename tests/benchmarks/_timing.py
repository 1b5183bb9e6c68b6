"""What the benchmarks share: sizes by environment, progress on stderr, and variants that take turns."""

import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# SMALL=1: the smallest sizes, to see that a benchmark runs. Its numbers then mean nothing.
SMALL = os.environ.get("SMALL") == "1"


def rounds(default=7):
    """ROUNDS of the environment; more give steadier medians."""
    return int(os.environ.get("ROUNDS", "1" if SMALL else default))


def progress(text):
    """One line on stderr, since results may be minutes away."""
    print(f"... {text}", file=sys.stderr, flush=True)


def take_turns(variants, warm_up=2):
    """Median seconds of each variant, a function that returns when its work is done.

    Variants run in turn in one process, so that a noisy machine slows all of them alike.
    """
    for run in variants.values():
        for _ in range(1 if SMALL else warm_up):
            run()
    seconds = {name: [] for name in variants}
    for _ in range(rounds()):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}
