"""The four jobs on data in a bucket: what they get, and what they must write, which one process writes."""

from __future__ import annotations

import importlib
import json

from engines import tools
from masks.codec import encode_mask
from masks.sampling import MaskSpec, sample_mask
from networks import small_config, write_run
from trainer import storage
from trainer.images import rgb

PHOTOS = tools.ROOT / "pipelines/photos"
# By job the options with its inputs; {} is the bucket.
JOBS = {
    "build_masks": "--count 96 --size 64 --split val --num-shards 3 --stratify",
    "build_imagenet": "--input {}/photos",
    "inpaint": "--images {}/in/** --masks {}/holes/** --hole black --run {}/run",
    "evaluate": "--images {}/expected/build_imagenet --masks {}/expected/build_masks --run {}/run",
}


def options_of(job: str, bucket: str, output: str) -> list[str]:
    return [*JOBS[job].replace("{}", bucket).split(), "--output", f"{bucket}/{output}"]


def upload_inputs(bucket: str, copies: int = 1) -> None:
    """Photographs in folders, one that is broken, the same with holes, ``copies`` times, and a network's run."""
    photos = sorted(PHOTOS.glob("*/*/*.jpg"))
    for path in photos:
        storage.create(f"{bucket}/photos/{path.relative_to(PHOTOS)}", path.read_bytes())
    storage.create(f"{bucket}/photos/train/object/broken.jpg", photos[0].read_bytes()[:1000])
    for index, path in enumerate(photos * copies):
        height, width, _ = rgb.decode_rgb(path.read_bytes()).shape
        spec = MaskSpec(generator="shapes", height=height, width=width, hole_ratio=(0.2, 0.3))
        storage.create(f"{bucket}/in/{index:03d}.jpg", path.read_bytes())
        storage.create(f"{bucket}/holes/{index:03d}.png", encode_mask(sample_mask(spec, index)))
    write_run(f"{bucket}/run", small_config(32))


def names(folder: str) -> list[str]:
    return [storage.relative(address, folder) for address in storage.find(folder)]


def contents(folder: str) -> dict[str, bytes]:
    """All that a job has left in a folder, by name, with 0 for the seconds that it took for each item."""
    found = {name: storage.read(storage.join(folder, name)) for name in names(folder)}
    return {name: _timeless(data) if name == "items.jsonl" else data for name, data in found.items()}


def _timeless(lines: bytes) -> bytes:
    items = [json.loads(line) for line in lines.splitlines()]
    return b"".join(json.dumps(item | {"seconds": 0}).encode() + b"\n" for item in items)


def run_in_process(job: str, bucket: str) -> dict[str, bytes]:
    """What the job writes when it runs in this process, into ``expected/JOB``."""
    code = importlib.import_module(f"pipelines.{job}").main(options_of(job, bucket, f"expected/{job}"))
    assert code == (3 if job == "build_imagenet" else 0)
    return contents(f"{bucket}/expected/{job}")
