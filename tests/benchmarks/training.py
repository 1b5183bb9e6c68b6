"""Training as it is launched: one worker of one core against two, time spent waiting for data, cost of checkpoints.

    python tests/benchmarks/training.py              # all of it, or some rows: python tests/benchmarks/training.py two

Each run is `python -m trainer.train` on this machine: the demo's network at 256 x 256, 8 examples per worker. Its
progress lines give images/s, except the first, which is compilation. A run of one worker has one core for everything it
does, Ray's processes and the reading of data included (otherwise those would use a second core); a run of two workers
has two. Two workers share memory and caches whatever they exchange, so two independent runs at once, of one core each,
show the most that two cores can give (row `apart`).

The cost of checkpoints is measured within one run, so that a machine whose speed varies does not distort it: mean time
of all steps over that of the steps before a checkpoint, when the previous one has long been written. Then a table of
what to expect on clusters, from the seconds of a step, the bytes of its gradients and the bandwidths it names.

    STEP_SECONDS=0.35 python tests/benchmarks/training.py    # of the paper's network on your accelerator
"""

import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _timing import SMALL, progress

from trainer import presets
from trainer.model import unet

PHOTOS = Path(__file__).parents[2] / "pipelines" / "photos"
STEPS, EVERY, LINE = (4, 4, 1) if SMALL else (60, 50, 5)
NEVER = 10_000
SIZE = 64 if SMALL else 256
ROWS = ("apart", "two", "checkpoints")  # beside the baseline
ALWAYS = (
    f"unet.image_size={SIZE}",
    *(("unet.filters=4,8", "unet.kernels=3,3") if SMALL else ()),
    "finetune.steps=0",
    "validation.every=1000000",
    f"log_every={LINE}",
    "precision=float32",
)
# Bytes per second between neighbors in a ring, as vendors state them.
BANDWIDTHS = {"100 Gbit/s": 12.5e9, "NVLink 450 GB/s": 450e9}
GPUS = (8, 64, 256)


def call(module: str, *options: str, cores: Sequence[int] = ()) -> str:
    """Standard output of a command that is restricted to these cores."""
    if cores:
        os.sched_setaffinity(0, cores)  # of this thread, whose children inherit it
    done = subprocess.run([sys.executable, "-m", module, *options], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def make_data(folder: Path) -> None:
    call("pipelines.build_imagenet", "--input", str(PHOTOS), "--output", str(folder / "images"))
    call(
        "pipelines.build_masks",
        "--output",
        str(folder / "masks"),
        "--count",
        "12" if SMALL else "600",
        "--size",
        str(SIZE),
    )


def train(
    folder: Path, name: str, cores: Sequence[int], steps: int, checkpoint_every: int
) -> tuple[list[float], list[float]]:
    """Trains with one worker per core; returns images/s and percent of time waiting for data, by progress line."""
    workers = len(cores)
    settings = [
        *ALWAYS,
        f"initial.steps={steps}",
        f"scaling.workers={workers}",
        f"global_batch_size={8 * workers}",
        f"checkpoint.every={checkpoint_every}",
    ]
    said = call(
        "trainer.train",
        *("--preset", "demo", "--images", str(folder / "images"), "--masks", str(folder / "masks")),
        *("--run", str(folder / name)),
        *(part for setting in settings for part in ("--set", setting)),
        cores=cores,
    )
    return read_progress(said)


def read_progress(said: str) -> tuple[list[float], list[float]]:
    """Images/s and percent of time waiting for data, of every progress line but the first."""
    rates, waits = ([float(x) for x in re.findall(form, said)] for form in (r"([\d.]+) images/s", r"data ([\d.]+)%"))
    return rates, waits


def checkpoint_cost(rates: list[float]) -> float:
    """Fraction of the time that checkpoints take, from one run's rates of lines 1, 2, ... (line 0 has none)."""
    each = EVERY // LINE
    quiet = [1 / rate for line, rate in enumerate(rates, start=1) if line % each >= each // 2]
    # Whole periods: each begins with the line after a checkpoint, during which that checkpoint is being written.
    whole = [1 / rate for rate in rates[each - 1 :][: len(rates) // each * each]]
    return 1 - statistics.mean(quiet) / statistics.mean(whole)


def predict_scaling(preset: str, seconds: float, source: str) -> None:
    model = unet.build_unet(presets.PRESETS[preset].unet)
    volume = 4 * sum(math.prod(variable.shape) for variable in model.trainable_variables)
    print(f"\nall-reduce of preset {preset}: {volume / 1e6:.1f} MB per step (float32 gradients)")
    print(f"predicted efficiency for {seconds:.3g} s per step ({source}), ring, no overlap:")
    print("  GPUs   " + "   ".join(f"{name:>16}" for name in BANDWIDTHS))
    for gpus in GPUS:
        cells = [seconds / (seconds + 2 * (gpus - 1) / gpus * volume / speed) for speed in BANDWIDTHS.values()]
        print(f"  {gpus:4}   " + "   ".join(f"{cell:16.1%}" for cell in cells))


def print_row(title: str, runs: Sequence[tuple[list[float], list[float]]], base: float) -> None:
    """One line for runs at the same time: their images/s together, over those of the baseline."""
    rate, wait = sum(statistics.median(rates) for rates, _ in runs), statistics.mean(runs[0][1][1:])
    print(
        f"{title:34}{rate:7.2f} images/s   {rate / base:.2f}   waits for data {wait:.1f} % of the time",
        flush=True,
    )


def main(chosen: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress("making data")
        make_data(folder)
        cores = sorted(os.sched_getaffinity(0))[:2]
        progress("one worker")
        one = train(folder, "run-one", cores[:1], STEPS, NEVER)
        base = statistics.median(one[0])
        print_row("one worker, one core (baseline)", [one], base)
        if "apart" in chosen:
            progress("two runs at once")
            with ThreadPoolExecutor() as pool:
                apart = pool.map(lambda core: train(folder, f"run-apart-{core}", [core], STEPS, NEVER), cores)
            print_row("two runs apart", list(apart), base)
        if "two" in chosen:
            progress("two workers")
            print_row("two workers", [train(folder, "run-two", cores, STEPS, NEVER)], base)
        if "checkpoints" in chosen:
            progress("two workers that write checkpoints")
            saving, _ = train(folder, "run-saving", cores, 3 * EVERY, EVERY)
            print(f"checkpoints every {EVERY} steps cost {checkpoint_cost(saving):.1%} of throughput", flush=True)
    predict_scaling("demo", 8 / base, "of one core, measured above")
    predict_scaling("paper", float(os.environ.get("STEP_SECONDS", "0.5")), "assumed; STEP_SECONDS sets it")


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - set(ROWS):
        sys.exit(f"expected rows of {ROWS}. Received {sorted(unknown)}.")
    main(sys.argv[1:] or ROWS)
