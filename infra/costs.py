"""Prints a Markdown table of what each stage costs and how long it takes; rates and prices are options.

    python infra/costs.py
    python infra/costs.py --price-vcpu 0.04 --price-gpu 0.60 --gpu-images 80

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
    "gpu_efficiency": (0.8, "of its rate alone, what each of four L4s keeps that exchange gradients (ASSUMED)"),
    "png_ms": (27.0, "vCPU ms to decode an image of 512 x 512 and encode it as PNG, beside a GPU (ASSUMED)"),
    "tar_reads": (2.0, "times that ImageNet's tars are read: where images lie is found first"),
    "price_vcpu": (0.056, "USD per hour of a Dataflow vCPU (ASSUMED, November 2026)"),
    "price_memory": (0.003557, "USD per hour of 1 GB of a Dataflow worker (ASSUMED, November 2026)"),
    "price_dataflow_gpu": (0.67, "USD per hour of an L4 of a Dataflow worker (ASSUMED, November 2026)"),
    "price_writes": (5.0, "USD per million objects written to a bucket (ASSUMED, November 2026)"),
    "price_reads": (0.4, "USD per million reads of objects (ASSUMED, November 2026)"),
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
        head: USD per hour for the rest of the cluster.
        requests: USD for the requests to buckets.
    """

    name: str
    work: str
    hours_of_one: float
    units: int
    unit: str
    price: float
    head: float = 0.0
    requests: float = 0.0

    def row(self, start: float) -> str:
        hours = self.hours_of_one / self.units + start
        parts = {f"{self.unit}s": hours * self.units * self.price, "head": hours * self.head, "requests": self.requests}
        cost = sum(parts.values())
        most = max(parts, key=lambda part: parts[part])
        share = f"{most}, {parts[most] / cost:.0%}" if cost else ""
        return f"| {self.name} | {self.work} | {self.units} {self.unit} | {hours:,.1f} h | ${cost:,.2f} | {share} |"


def stages(o: argparse.Namespace) -> list[Stage]:
    vcpu = o.price_vcpu + 4 * o.price_memory

    def requests(writes: float, reads: float) -> float:
        return (writes * o.price_writes + reads * o.price_reads) / 1e6

    def cpu(name: str, work: str, seconds: float, units: int, writes: float = 0, reads: float = 0) -> Stage:
        return Stage(name, work, seconds / 3600, units, "vCPU", vcpu, requests=requests(writes, reads))

    def train(name: str, work: str, images: float) -> Stage:
        hours = images / o.gpu_images / o.gpu_efficiency / 3600
        return Stage(name, work, hours, 4, "L4", o.price_gpu, o.price_head)

    def photos(count: float, gigabytes: float, reads: float = 1) -> float:
        computing = count * o.photo_ms / 1e3 * (gigabytes * 1e6 / count / 63)
        return computing + (reads + 1) * gigabytes * 1e3 / o.bucket_mb  # written once

    # A g2-standard-8 has 8 vCPUs with 4 GB each, which decode and encode.
    rate = min(o.gpu_infer_images, 8 * 1e3 / o.png_ms)
    filling = {"writes": 1.02e6, "reads": 2.04e6}  # of a million images: image and mask; output, books and lists
    return [
        cpu("training masks", "55,000 masks", 55_000 * o.mask_ms / 1e3, 4),
        cpu("ImageNet to records", "1.28 M images, 138 GB", photos(1.28e6, 138, o.tar_reads), 16, reads=1.28e6),
        cpu("Places2 to records", "1.8 M images, 105 GB", photos(1.8e6, 105), 16, reads=1.8e6),
        train("train, preset paper", "137,500 steps of 24 images", 137_500 * 24),
        train("train, ten epochs of ImageNet", "12.8 M images", 12.8e6),
        train("train, ten epochs of Places2", "18 M images", 18e6),
        cpu("fill a million images, CPU", "1 M images of 512 x 512", 1e6 / o.infer_images, 200, **filling),
        Stage(
            "fill a million images, GPU",
            "1 M images of 512 x 512",
            1e6 / rate / 3600,
            4,
            "L4",
            o.price_dataflow_gpu + 8 * vcpu,
            requests=requests(**filling),
        ),
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python infra/costs.py", description=__doc__.splitlines()[0])
    for name, (value, text) in OPTIONS.items():
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=value, help=f"{text}; default {value}")
    options = parser.parse_args(argv)
    print("| stage | work | on | time | cost | most of it |", "|---|---|--:|--:|--:|---|", sep="\n")
    print(*(stage.row(options.start_hours) for stage in stages(options)), sep="\n")
    for name, gigabytes in (("ImageNet", 138), ("Places2", 105)):
        cost = 2 * gigabytes * options.price_gb
        print(f"| keep {name} | tars and records, {2 * gigabytes} GB | buckets | a month | ${cost:,.2f} | storage |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
