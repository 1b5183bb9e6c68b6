"""Prints a Markdown table of what each stage costs and how long it takes; rates and prices are options.

    python infra/costs.py
    python infra/costs.py --price-vcpu 0.05 --price-gpu 0.60 --gpu-images 80

Rates of a vCPU were measured (see --help). Those of a GPU and all prices are assumptions: pass your own.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

OPTIONS = {
    # Measured on two cores of an AMD EPYC with AVX-512 bfloat16, as CPU time, without the job's startup.
    "mask_ms": (0.66, "vCPU ms to draw, encode and write a mask of 512 x 512 (measured)"),
    "photo_ms": (0.35, "vCPU ms per photograph of 63 kB, kept as it is (measured); scales with size"),
    "infer_images": (1.19, "512 x 512 images/s of a vCPU, float32, end to end (measured: 2.37 on two vCPUs)"),
    # Assumed: 24 % and 19 % of the 121 Tflop/s in bfloat16 of an L4's data sheet. The convolutions of a 512 x 512 image
    # are 0.716 Tflop to train (network forward and backward, VGG-16 thrice forward, twice backward), 0.076 to fill.
    "gpu_images": (40.0, "512 x 512 training images/s of an L4 in bfloat16, all losses (ASSUMED, not measured)"),
    "gpu_infer_images": (300.0, "512 x 512 images/s of an L4, inference in bfloat16 (ASSUMED, not measured)"),
    "bucket_mb": (50.0, "MB/s that a vCPU reads from or writes to a bucket (ASSUMED)"),
    "start_hours": (0.1, "hours of startup, paid (ASSUMED)"),
    "price_vcpu": (0.07, "USD per hour of a Dataflow vCPU with 4 GB (ASSUMED, November 2026)"),
    "price_gpu": (0.85, "USD per hour of a g2-standard-8 with one L4 (ASSUMED, November 2026)"),
    "price_head": (0.14, "USD per hour of the Ray head, e2-standard-4 (ASSUMED, November 2026)"),
    "price_gb": (0.02, "USD per month and GB in a bucket (ASSUMED, November 2026)"),
}


@dataclass(frozen=True)
class Stage:
    """One row of the table: a job and the machines that run it.

    Attributes:
        hours_of_one: how long a single vCPU or GPU would take.
        units: number of vCPUs or GPUs.
        unit: what they are called.
        price: USD per hour of one of them.
        fixed: USD per hour for the rest of the cluster.
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
