"""The mask job against its bare work: masks/s that the job writes, and that a loop draws and encodes.

    python tests/benchmarks/mask_job.py

One process, then two, at 512 x 512, all six intervals. A job's rate is the difference in masks between a long and a
short run over the difference in time, which leaves out the start of Python and Beam; the last column is the whole time
of the long run. Each round runs everything once, in turn; the figures are medians.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
from _timing import SMALL, progress, rounds

from masks.codec import encode_mask
from masks.coverage import RATIO_BUCKETS
from masks.sampling import MaskSpec, sample_mask

SHORT, LONG = (12, 24) if SMALL else (6_000, 42_000)
PROCESSES = (1,) if SMALL else (1, 2)
TWO = ("--direct_running_mode", "multi_processing", "--direct_num_workers", "2")


def bare_rate(count: int = SHORT) -> float:
    """Masks/s of one process that draws and encodes masks and discards them."""
    cv2.setNumThreads(1)
    specs = [MaskSpec(generator="shapes", height=512, width=512, hole_ratio=interval) for interval in RATIO_BUCKETS]
    begin = time.perf_counter()
    for index in range(count):
        encode_mask(sample_mask(specs[index % len(specs)], index))
    return count / (time.perf_counter() - begin)


def job_seconds(count: int, *options: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipelines.build_masks", "--output", str(Path(folder) / "set")]
        begin = time.perf_counter()
        subprocess.run([*command, "--count", str(count), *options], check=True, capture_output=True)
        seconds = time.perf_counter() - begin
    return seconds


def main() -> None:
    bare: list[float] = []
    rates: dict[int, list[float]] = {processes: [] for processes in PROCESSES}
    whole: dict[int, list[float]] = {processes: [] for processes in PROCESSES}
    for number in range(rounds()):
        progress(f"round {number + 1} of {rounds()}")
        bare.append(bare_rate())
        for processes in PROCESSES:
            short, long = (job_seconds(count, *(TWO if processes == 2 else ())) for count in (SHORT, LONG))
            rates[processes].append((LONG - SHORT) / (long - short))
            whole[processes].append(long)
    base = statistics.median(bare)
    print(f"bare draw + encode, one process (baseline)   {base:8.0f} masks/s   1.00")
    for processes in PROCESSES:
        rate, seconds = statistics.median(rates[processes]), statistics.median(whole[processes])
        print(
            f"job, {processes} process{'es' if processes > 1 else '  '}                            "
            f"{rate:8.0f} masks/s   {rate / base:.2f}   ({LONG} masks in {seconds:.1f} s with the start)"
        )
    if 2 in PROCESSES:
        ratio = statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True))
        print(f"two processes over one                                          {ratio:.2f}")


if __name__ == "__main__":
    main()
