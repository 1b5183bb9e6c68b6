"""Training as it is launched: one worker of one core against two, waiting for data, and what checkpoints cost.

    python tests/benchmarks/training.py

Each run is `python -m trainer.train` on this machine, of the demo's network at 256 x 256 and 8 examples per worker;
images/s are medians over its progress lines, of which the first, that of compiling, gives none. Then a table of what
to expect on clusters, from the seconds of a step and the bytes of its gradients, with the bandwidths it names.

    STEP_SECONDS=0.35 python tests/benchmarks/training.py    # of the paper's network on your accelerator
"""

import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from trainer import presets, unet

PHOTOS = Path(__file__).parents[2] / "pipelines" / "photos"
STEPS, EVERY = 150, 50
ALWAYS = ("unet.image_size=256", "finetune.steps=0", "validation.every=1000000", "log_every=10", "precision=float32")
# Bytes per second between two neighbours of a ring: 100 Gbit/s Ethernet, and NVLink of one host, as vendors state them.
BANDWIDTHS = {"100 Gbit/s": 12.5e9, "NVLink 450 GB/s": 450e9}
GPUS = (8, 64, 256)


def call(module: str, *options: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *options], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def make_data(folder: Path) -> None:
    call("pipelines.build_imagenet", "--input", str(PHOTOS), "--output", str(folder / "images"))
    call("pipelines.build_masks", "--output", str(folder / "masks"), "--count", "600", "--size", "256")


def train(folder: Path, name: str, workers: int, checkpoint_every: int) -> dict[str, float]:
    """Images/s and share of waiting for data, medians over the run's progress lines."""
    settings = [
        *ALWAYS,
        f"initial.steps={STEPS}",
        f"scaling.workers={workers}",
        f"global_batch_size={8 * workers}",
        f"checkpoint.every={checkpoint_every}",
    ]
    said = call(
        "trainer.train",
        *("--preset", "demo", "--images", str(folder / "images"), "--masks", str(folder / "masks")),
        *("--run", str(folder / name)),
        *(part for setting in settings for part in ("--set", setting)),
    )
    rates = [float(rate) for rate in re.findall(r"([\d.]+) images/s", said)]
    waits = [float(share) for share in re.findall(r"data (\d+(?:\.\d+)?)%", said)]
    return {"rate": statistics.median(rates), "wait": statistics.median(waits)}


def predict_scaling() -> None:
    config = presets.PRESETS["paper"].unet
    model = unet.build_unet(config)
    volume = 4 * sum(math.prod(variable.shape) for variable in model.trainable_variables)
    seconds = float(os.environ.get("STEP_SECONDS", "0.5"))
    print(f"\nall-reduce of the paper's network: {volume / 1e6:.1f} MB per step (float32 gradients)")
    print(f"predicted efficiency at {seconds:g} s a step of one GPU, ring, nothing overlapped (STEP_SECONDS sets it):")
    print("  GPUs   " + "   ".join(f"{name:>16}" for name in BANDWIDTHS))
    for gpus in GPUS:
        cells = [seconds / (seconds + 2 * (gpus - 1) / gpus * volume / speed) for speed in BANDWIDTHS.values()]
        print(f"  {gpus:4}   " + "   ".join(f"{cell:16.1%}" for cell in cells))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        plan = {
            "one worker, one core (baseline)": (1, 10_000),
            "two workers, one core each": (2, 10_000),
            f"two workers, checkpoint every {EVERY} steps": (2, EVERY),
        }
        found = {title: train(folder, f"run-{i}", *given) for i, (title, given) in enumerate(plan.items())}
    base = next(iter(found.values()))["rate"]
    for title, result in found.items():
        print(f"{title:42} {result['rate']:7.2f} images/s   {result['rate'] / base:.2f}   waits {result['wait']:.0f} %")
    one, two, saving = (result["rate"] for result in found.values())
    print(f"checkpoints every {EVERY} steps cost {1 - saving / two:.1%} of throughput")
    predict_scaling()


if __name__ == "__main__":
    main()
