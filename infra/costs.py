"""Prints what each stage costs and how long it takes, as a table of Markdown, from rates and prices that are options.

    python infra/costs.py
    python infra/costs.py --price-vcpu 0.05 --price-gpu 0.60 --gpu-images 80

Rates per vCPU were measured (see --help); that of a GPU and all prices are assumptions: put in your own.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

OPTIONS = {
    # Measured on two cores of an AMD EPYC with AVX-512 bfloat16, as processor time, start of the job left out.
    "mask_ms": (0.66, "ms of a vCPU per mask of 512 x 512, drawn, encoded and written (measured)"),
    "photo_ms": (0.35, "ms of a vCPU per photograph of 63 kB kept as it is (measured); scaled by size"),
    "infer_images": (1.19, "512 x 512 images/s of a vCPU, float32, end to end (measured: 2.37 on two)"),
    # Assumed. Convolutions of a 512 x 512 image: 0.716 Tflop to train (network forward and backward, VGG-16 three times
    # forward, twice backward), 0.076 to fill; 24 % and 19 % of an L4's 121 Tflop/s in bfloat16 (its data sheet).
    "gpu_images": (40.0, "512 x 512 training images/s of an L4 in bfloat16, all losses (ASSUMED, not measured)"),
    "gpu_infer_images": (300.0, "512 x 512 images/s of an L4, inference in bfloat16 (ASSUMED, not measured)"),
    "bucket_mb": (50.0, "MB/s that a vCPU reads from or writes to a bucket (ASSUMED)"),
    "start_hours": (0.1, "hours until workers run, paid (ASSUMED)"),
    "price_vcpu": (0.07, "USD an hour of a Dataflow vCPU with 4 GB (ASSUMED, November 2026)"),
    "price_gpu": (0.85, "USD an hour of a g2-standard-8 with one L4 (ASSUMED, November 2026)"),
    "price_head": (0.14, "USD an hour of the Ray head, e2-standard-4 (ASSUMED, November 2026)"),
    "price_gb": (0.02, "USD a month of a GB in a bucket (ASSUMED, November 2026)"),
}


@dataclass(frozen=True)
class Stage:
    """One row: what is done, by how much of what machine.

    Attributes:
        hours_of_one: how long one vCPU or GPU would take.
        units: how many there are; price of one an hour; fixed: USD an hour beside them.
    """

    name: str
    work: str
    hours_of_one: float
    units: int
    unit: str
    price: float
    fixed: float = 0.0

    def row(self, start: float) -> str:
        hours = self.hours_of_one / self.units + start
        cost = hours * (self.units * self.price + self.fixed)
        return f"| {self.name} | {self.work} | {self.units} {self.unit} | {hours:,.1f} h | ${cost:,.2f} |"


def stages(o: argparse.Namespace) -> list[Stage]:
    def cpu(name: str, work: str, seconds: float, units: int) -> Stage:
        return Stage(name, work, seconds / 3600, units, "vCPU", o.price_vcpu)

    def gpu(name: str, work: str, images: float, rate: float, units: int) -> Stage:
        return Stage(name, work, images / rate / 3600, units, "L4", o.price_gpu, o.price_head)

    def photos(count: float, gigabytes: float) -> float:
        computing = count * o.photo_ms / 1e3 * (gigabytes * 1e6 / count / 63)
        return computing + 2 * gigabytes * 1e3 / o.bucket_mb  # read once, written once

    return [
        cpu("training masks", "55,000 masks", 55_000 * o.mask_ms / 1e3, 4),
        cpu("ImageNet to records", "1.28 M images, 138 GB", photos(1.28e6, 138), 16),
        cpu("Places2 to records", "1.8 M images, 105 GB", photos(1.8e6, 105), 16),
        gpu("train, preset paper", "137,500 steps of 24 images", 137_500 * 24, o.gpu_images, 4),
        gpu("train, ten epochs of ImageNet", "12.8 M images", 12.8e6, o.gpu_images, 4),
        gpu("train, ten epochs of Places2", "18 M images", 18e6, o.gpu_images, 4),
        cpu("fill a million images, CPU", "1 M images of 512 x 512", 1e6 / o.infer_images, 200),
        gpu("fill a million images, GPU", "1 M images of 512 x 512", 1e6, o.gpu_infer_images, 4),
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python infra/costs.py", description=__doc__.splitlines()[0])
    for name, (value, text) in OPTIONS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=value, help=f"{text}; default {value}")
    options = parser.parse_args(argv)
    print("| stage | work | on | time | cost |", "|---|---|--:|--:|--:|", sep="\n")
    print(*(stage.row(options.start_hours) for stage in stages(options)), sep="\n")
    for name, gigabytes in (("ImageNet", 138), ("Places2", 105)):
        cost = 2 * gigabytes * options.price_gb
        print(f"| keep {name} | tars and records, {2 * gigabytes} GB | buckets | a month | ${cost:,.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
