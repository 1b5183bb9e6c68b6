"""Variants run in turn in one process, so that a noisy machine slows all of them alike."""

import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROUNDS = int(os.environ.get("ROUNDS", "7"))


def take_turns(variants, rounds=ROUNDS, warm_up=2):
    """Median seconds of each variant, a function that returns when its work is done."""
    for run in variants.values():
        for _ in range(warm_up):
            run()
    seconds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}
