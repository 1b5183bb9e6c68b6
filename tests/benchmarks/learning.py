"""What a small network learns from a folder of photographs: its table beside classical methods.

    python tests/benchmarks/learning.py                                      # bundled photographs
    python tests/benchmarks/learning.py --photos FOLDER --output OUT --set initial.steps=20000

Every fourth photograph in the order of their names, ten at most, is held out and never trained on. Pairs of all
hole-ratio intervals and border classes are made of those; the report of pipelines.evaluate, which this ends with,
is in OUT/report. Run again with the same OUT, training continues where it was. The demo's config is the default:
128 x 128, batches of 16, bfloat16, pixel losses only.

An hour on two cores, of 2.8 million parameters, from 28 photographs (each --set of its own):

    initial.steps=12000 initial.learning_rate=8e-3 initial.warmup_steps=200 ema_decay=0.999 data.crop_scale=0.3,1.0
    unet.filters=32,64,128,256,256 scaling.workers=1 scaling.cpus_per_worker=2
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PHOTOS = Path(__file__).resolve().parents[2] / "pipelines" / "photos"
HELD_OUT, PAIRS, MASKS, SIZE = 10, 120, 6000, "128"


def call(module, *arguments):
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, stdout=sys.stderr)


def split_photos(photos, folder):
    """Copies the photographs to folder/train and folder/val; returns how many are in each."""
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    held_out = files[::4][:HELD_OUT]
    for path in files:
        copy = folder / ("val" if path in held_out else "train") / "photo" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return len(files) - len(held_out), len(held_out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--output", type=Path, help="kept (default: a folder that is removed)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of trainer.train; repeatable")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pconv-learn-") as scratch:
        root = options.output or Path(scratch)
        counts = split_photos(options.photos, root / "photos")
        call("pipelines.build_imagenet", "--input", root / "photos", "--output", root / "images")
        call("pipelines.build_masks", "--output", root / "masks", "--count", MASKS, "--size", SIZE)
        stratified = ["--count", PAIRS, "--stratify", "--size", SIZE, "--split", "val", "--seed", 1]
        call("pipelines.build_masks", "--output", root / "val-masks", *stratified)
        data = ["--images", root / "images", "--run", root / "run"]
        settings = [part for assignment in options.set for part in ("--set", assignment)]
        masks = ["--masks", root / "masks", "--val-masks", root / "val-masks"]
        call("trainer.train", "--preset", "demo", *data, *masks, *settings)
        call(
            "pipelines.evaluate", *data, "--masks", root / "val-masks", "--per-cell", "all", "--output", root / "report"
        )
        print("{} photographs trained on, {} held out".format(*counts))
        print((root / "report" / "table.md").read_text())


if __name__ == "__main__":
    main()
