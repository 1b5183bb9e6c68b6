"""What a small network learns from a folder of photographs: its scores beside those of classical methods.

    python tests/benchmarks/learning.py                                      # bundled photographs
    python tests/benchmarks/learning.py --photos FOLDER --output OUT --set initial.steps=20000

Every fourth photograph by name, ten at most, is held out: the network never sees it. pipelines.evaluate scores the
network on pairs of those with masks of all hole-ratio intervals and border classes; its report is in OUT/report. With
the same OUT, another run resumes the training. The default is the demo's configuration: 128 x 128, batches of 8,
pixel losses only, and a network that adds to interpolated holes.

Somewhat more than an hour on two cores that compute bfloat16 (47 images/s), for 2.8 million parameters and 152
photographs, without that (one --set each):

    initial.steps=12000 initial.learning_rate=8e-3 initial.warmup_steps=200 ema_decay=0.999 data.crop_scale=0.3,1.0
    unet.filters=32,64,128,256,256 scaling.workers=1 scaling.cpus_per_worker=2
    unet.residual=false loss.valid=0.3 global_batch_size=16
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _timing import SMALL

PHOTOS = Path(__file__).resolve().parents[2] / "pipelines" / "photos"
HELD_OUT, PAIRS, MASKS, SIZE = (1, 12, 12, "64") if SMALL else (10, 120, 6000, "128")


def call(module, *arguments):
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, stdout=sys.stderr)


def split_photos(photos, folder):
    """Copies the photographs to folder/train and folder/val; returns the number in each."""
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    held_out = files[::4][:HELD_OUT]
    for path in files:
        copy = folder / ("val" if path in held_out else "train") / "photo" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return len(files) - len(held_out), len(held_out)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--output", type=Path, help="folder to keep (default: a temporary one)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to trainer.train; repeatable"
    )
    options = parser.parse_args(argv)
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
        print("{} photographs for training, {} held out".format(*counts))
        print((root / "report" / "table.md").read_text())


if __name__ == "__main__":
    main()
