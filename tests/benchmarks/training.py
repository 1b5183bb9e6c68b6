"""Training as it is launched: one worker of one core against two, waiting for data, and what checkpoints cost.

    python tests/benchmarks/training.py

Each run is `python -m trainer.train` on this machine, of the demo's network at 256 x 256 and 8 examples per worker; its
progress lines tell images/s, but for the first, that of compiling. A run of one worker has one core for all it does,
Ray's processes and the reading of data included (left alone, those would use a second one), and one of two workers has
two. Two workers share memory and caches, whatever they say to each other: two runs at one time that know nothing of
each other, each with a core, show how far two cores can come. What
checkpoints cost is told within one run, which a machine that is slower at one time than at another does not upset: the
mean time of all steps over that of the steps before a checkpoint, when the last one has long been written. Then a table
of what to expect on clusters, from the seconds of a step and the bytes of its gradients, with the bandwidths it names.

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

from trainer import presets
from trainer.model import unet

PHOTOS = Path(__file__).parents[2] / "pipelines" / "photos"
STEPS, EVERY, LINE = 60, 50, 5
NEVER = 10_000
ALWAYS = (
    "unet.image_size=256",
    "finetune.steps=0",
    "validation.every=1000000",
    f"log_every={LINE}",
    "precision=float32",
)
# Bytes per second between two neighbours of a ring: 100 Gbit/s Ethernet, and NVLink of one host, as vendors state them.
BANDWIDTHS = {"100 Gbit/s": 12.5e9, "NVLink 450 GB/s": 450e9}
GPUS = (8, 64, 256)


def call(module: str, *options: str, cores: Sequence[int] = ()) -> str:
    """Standard output of a command that has no other cores than these."""
    if cores:
        os.sched_setaffinity(0, cores)  # of this thread, whose children inherit it
    done = subprocess.run([sys.executable, "-m", module, *options], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def make_data(folder: Path) -> None:
    call("pipelines.build_imagenet", "--input", str(PHOTOS), "--output", str(folder / "images"))
    call("pipelines.build_masks", "--output", str(folder / "masks"), "--count", "600", "--size", "256")


def train(
    folder: Path, name: str, cores: Sequence[int], steps: int, checkpoint_every: int
) -> tuple[list[float], list[float]]:
    """Images/s and percents of waiting for data, by progress line, of as many workers as cores."""
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
    return tuple([float(x) for x in re.findall(form, said)] for form in (r"([\d.]+) images/s", r"data ([\d.]+)%"))


def checkpoint_cost(rates: list[float]) -> float:
    """Share of the time that checkpoints take, of the rates of lines 1, 2, ... (line 0 has none) of one run."""
    each = EVERY // LINE
    quiet = [1 / rate for line, rate in enumerate(rates, start=1) if line % each >= each // 2]
    # Whole periods, each of which begins with the line after a checkpoint, in which the last one is being written.
    whole = [1 / rate for rate in rates[each - 1 :][: len(rates) // each * each]]
    return 1 - statistics.mean(quiet) / statistics.mean(whole)


def predict_scaling(preset: str, seconds: float, whence: str) -> None:
    model = unet.build_unet(presets.PRESETS[preset].unet)
    volume = 4 * sum(math.prod(variable.shape) for variable in model.trainable_variables)
    print(f"\nall-reduce of preset {preset}: {volume / 1e6:.1f} MB per step (float32 gradients)")
    print(f"predicted efficiency at {seconds:.3g} s a step ({whence}), ring, nothing overlapped:")
    print("  GPUs   " + "   ".join(f"{name:>16}" for name in BANDWIDTHS))
    for gpus in GPUS:
        cells = [seconds / (seconds + 2 * (gpus - 1) / gpus * volume / speed) for speed in BANDWIDTHS.values()]
        print(f"  {gpus:4}   " + "   ".join(f"{cell:16.1%}" for cell in cells))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        cores = sorted(os.sched_getaffinity(0))[:2]
        one = train(folder, "run-one", cores[:1], STEPS, NEVER)
        with ThreadPoolExecutor() as pool:
            apart = pool.map(lambda core: train(folder, f"run-apart-{core}", [core], STEPS, NEVER), cores)
        two = train(folder, "run-two", cores, STEPS, NEVER)
        saving, _ = train(folder, "run-saving", cores, 3 * EVERY, EVERY)
    rows = {"one worker, one core (baseline)": [one], "two runs apart": list(apart), "two workers": [two]}
    base = statistics.median(one[0])
    for title, runs in rows.items():
        rate, wait = sum(statistics.median(rates) for rates, _ in runs), statistics.mean(runs[0][1][1:])
        print(f"{title:34}{rate:7.2f} images/s   {rate / base:.2f}   waits for data {wait:.1f} % of the time")
    print(f"checkpoints every {EVERY} steps cost {checkpoint_cost(saving):.1%} of throughput")
    predict_scaling("demo", 8 / base, "of one core, measured above")
    predict_scaling("paper", float(os.environ.get("STEP_SECONDS", "0.5")), "assumed; STEP_SECONDS sets it")


if __name__ == "__main__":
    main()
