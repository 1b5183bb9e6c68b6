"""The image job against its bare work: photographs/s of the job, and of a loop of the same OpenCV calls.

    python tests/benchmarks/imagenet.py [--rounds 5] [--only rates|sizes|memory|again]

`rates`: --short-side 256 with one process and two, and JPEGs that are kept as they are; beside them a loop that reads,
decodes, shrinks and encodes each file and discards the result. A job's rate is the difference in photographs between a
long and a short run over the difference in time, which leaves out the start of Python and Beam. `sizes`: time per
photograph from such differences, for 500 to 4,000 photographs. `memory`: peak of a process, with tars of 50 and 500 MB
in shards of 25 MB. `again`: what a job takes that another left when it was killed with 90 % of its shards written,
of the time and of the processor's seconds of a whole job. Each round runs everything once, in turn; the figures are
medians.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from _timing import SMALL, progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from running import KILLED_IMAGENET  # noqa: E402  (of the tests)

PHOTOS = sorted((Path(__file__).resolve().parents[2] / "pipelines" / "photos").rglob("*.jpg"))
SHRINK = ("--short-side", "256")
TWO = ("--direct_running_mode", "multi_processing", "--direct_num_workers", "2")


def write_photographs(folder: Path, count: int) -> int:
    """Writes pieces of photographs of ImageNet's size, about 500 x 375; returns their bytes."""
    rng, total = random.Random(0), 0
    decoded = [cv2.imread(str(photo)) for photo in PHOTOS]
    for number in range(count):
        photo = rng.choice(decoded)
        side = rng.uniform(0.6, 1.0)
        height, width = (int(length * side) for length in photo.shape[:2])
        y, x = rng.randint(0, photo.shape[0] - height), rng.randint(0, photo.shape[1] - width)
        piece = cv2.resize(photo[y : y + height, x : x + width], (rng.randint(450, 550), rng.randint(340, 410)))
        data = cv2.imencode(".jpg", piece, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        path = folder / "train" / f"n{number % 8:08d}" / f"{number:06d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        total += len(data)
    return total


def bare_rate(folder: Path) -> float:
    cv2.setNumThreads(1)
    paths = list(folder.rglob("*.JPEG"))
    begin = time.perf_counter()
    for path in paths:
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        scale = 256 / min(pixels.shape[:2])
        size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return len(paths) / (time.perf_counter() - begin)


def two_bare_rates(folder: Path) -> float:
    """Of two loops at once: what this machine can give two processes."""
    with ProcessPoolExecutor(2) as pool:
        return sum(pool.map(bare_rate, [folder, folder]))


def job_seconds(source: Path, *options: str, num_shards: int = 8) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipelines.build_imagenet", "--input", str(source)]
        command += ["--output", str(Path(folder) / "set"), "--num-shards", str(num_shards)]
        begin = time.perf_counter()
        subprocess.run([*command, *options], check=True, capture_output=True)
        return time.perf_counter() - begin


def bench_rates(root: Path, rounds: int) -> None:
    short, long = (10, 20) if SMALL else (500, 4_500)
    for count in (short, long):
        write_photographs(root / str(count), count)
    cases = {"shrink, 1 process": SHRINK, "shrink, 2 processes": (*SHRINK, *TWO), "keep, 1 process": ()}
    bare: list[float] = []
    two_bare: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        bare.append(bare_rate(root / str(short)))
        two_bare.append(two_bare_rates(root / str(short)))
        for name, options in cases.items():
            seconds = [job_seconds(root / str(count), *options) for count in (short, long)]
            rates[name].append((long - short) / (seconds[1] - seconds[0]))
    base = statistics.median(bare)
    print(f"{'bare loop, 1 process (baseline)':34}{base:8.0f} images/s   1.00")
    for name, found in {"bare loop, 2 processes": two_bare, **rates}.items():
        print(f"{name:34}{statistics.median(found):8.0f} images/s   {statistics.median(found) / base:.2f}")
    one, two, keep = rates.values()
    print(f"two processes over one       {statistics.median(b / a for a, b in zip(one, two, strict=True)):.2f}")
    print(f"keeping over shrinking       {statistics.median(b / a for a, b in zip(one, keep, strict=True)):.2f}")


def bench_sizes(root: Path, rounds: int) -> None:
    base, *counts = (2, 4) if SMALL else (20, 500, 1_000, 2_000, 4_000)
    for count in (base, *counts):
        write_photographs(root / str(count), count)
    seconds: dict[int, list[float]] = {count: [] for count in (base, *counts)}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for count in seconds:
            seconds[count].append(job_seconds(root / str(count), *SHRINK))
    start = statistics.median(seconds.pop(base))
    for count, found in seconds.items():
        each = 1000 * (statistics.median(found) - start) / (count - base)
        print(f"{count:6} photographs   {each:6.3f} ms each, after {start:.1f} s for the start and {base} photographs")


def bench_memory(root: Path) -> None:
    write_photographs(root, 10 if SMALL else 200)
    files = [path.read_bytes() for path in sorted(root.rglob("*.JPEG"))]
    for megabytes in (1,) if SMALL else (50, 500):
        tar, size = root / f"{megabytes}" / "ILSVRC2012_img_train.tar", 0
        tar.parent.mkdir()
        with tarfile.open(tar, "w") as outer:
            for synset in range(10):
                inner = io.BytesIO()
                with tarfile.open(fileobj=inner, mode="w") as archive:
                    while size < (synset + 1) * megabytes * 100_000:
                        info = tarfile.TarInfo(f"{size:012d}.JPEG")
                        data = files[size % len(files)]
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
                        size += len(data)
                info = tarfile.TarInfo(f"n{synset:08d}.tar")
                info.size = inner.tell()
                inner.seek(0)
                outer.addfile(info, inner)
        code = (
            "import resource, sys\nfrom pipelines.build_imagenet import main\nmain(sys.argv[1:])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        arguments = ["--input", str(tar), "--output", str(root / f"set-{megabytes}")]
        arguments += ["--num-shards", str(max(1, megabytes // 25))]
        done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
        print(f"tar of {megabytes:3} MB   peak {int(done.stdout.split()[-1]) / 1024:.0f} MB")


def bench_again(root: Path, rounds: int) -> None:
    count, num_shards = (20, 10) if SMALL else (10_000, 20)
    write_photographs(root / "photos", count)

    def spend(output: str, *start: str) -> tuple[float, float]:
        """Time and processor's seconds of a job."""
        options = ["--input", str(root / "photos"), "--output", str(root / output), "--num-shards", str(num_shards)]
        begin = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *start, *options, *SHRINK], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as job:
            _, _, used = os.wait4(job.pid, 0)
            job.returncode = 0
        return time.perf_counter() - begin, used.ru_utime + used.ru_stime

    shares: list[tuple[float, ...]] = []
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        whole = spend(f"whole-{number}", "-m", "pipelines.build_imagenet")
        spend(f"again-{number}", "-c", KILLED_IMAGENET, str(num_shards * 9 // 10))
        again = spend(f"again-{number}", "-m", "pipelines.build_imagenet")
        for path in (root / f"whole-{number}").rglob("*"):
            assert path.is_dir() or path.read_bytes() == (root / f"again-{number}" / path.name).read_bytes(), path
        shares.append((*whole, *again, again[0] / whole[0], again[1] / whole[1]))
    values = [statistics.median(found) for found in zip(*shares, strict=True)]
    print(f"{count} photographs, whole      {values[0]:7.1f} s, {values[1]:7.1f} s of the processor")
    print(f"again after 90 % of its shards  {values[2]:7.1f} s, {values[3]:7.1f} s of the processor")
    print(f"again over whole                {values[4]:7.2f}    {values[5]:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1 if SMALL else 5)
    parser.add_argument("--only", choices=("rates", "sizes", "memory", "again"))
    options = parser.parse_args()
    benches = {"rates": bench_rates, "sizes": bench_sizes, "memory": lambda root, _: bench_memory(root)}
    for name, bench in {**benches, "again": bench_again}.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                print(f"\n{name}", flush=True)
                bench(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
