"""PSNR of OpenCV's methods by their radius: what `trainer.inference.baselines.RADII` was chosen by.

    python tests/benchmarks/classical.py                       # bundled photographs for training
    python tests/benchmarks/classical.py --photos FOLDER --size 256

Each photograph gets masks of each interval of hole ratios, of the family that pipelines.build_masks draws by default.
A column has the mean PSNR inside the holes, in dB, at a radius in pixels.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from _timing import SMALL, progress

from masks.coverage import RATIO_BUCKETS
from masks.sampling import MaskSpec, sample_mask
from trainer.images import rgb
from trainer.inference.baselines import fill_with_opencv

PHOTOS = Path(__file__).parents[2] / "pipelines" / "photos" / "train"
METHODS = {"Telea": cv2.INPAINT_TELEA, "Navier-Stokes": cv2.INPAINT_NS}
MASKS = 1 if SMALL else 2  # per photograph and interval
RADII = (1, 3) if SMALL else (1, 2, 3, 4, 5, 7, 10, 15)


def psnr_in_holes(filled, image, mask):
    errors = (filled.astype(np.float64) - image)[mask == 0]
    return -10 * np.log10(max(np.square(errors).mean(), 1e-3) / 255**2)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--size", type=int, default=64 if SMALL else 128, help="in pixels (default: %(default)s)")
    options = parser.parse_args(argv)
    files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = files[:1] if SMALL else files
    scores = defaultdict(list)
    for number, path in enumerate(files):
        progress(f"{path.name}, {number + 1} of {len(files)}")
        image = rgb.center_square(rgb.decode_rgb(path.read_bytes()), options.size)
        for interval in RATIO_BUCKETS:
            spec = MaskSpec(generator="shapes", height=options.size, width=options.size, hole_ratio=interval)
            for mask in (sample_mask(spec, MASKS * number + k) for k in range(MASKS)):
                for name, method in METHODS.items():
                    for radius in RADII:
                        filled = fill_with_opencv(image, mask, method, radius)
                        scores[name, interval, radius].append(psnr_in_holes(filled, image, mask))
    print(f"{len(files)} photographs of {options.size} x {options.size}, {MASKS} masks each per interval")
    for name in METHODS:
        print(f"{name:20}", *(f"{radius:6}" for radius in RADII))
        for interval in RATIO_BUCKETS:
            means = [np.mean(scores[name, interval, radius]) for radius in RADII]
            print(f"({interval[0]}, {interval[1]}]".ljust(20), *(f"{mean:6.2f}" for mean in means))
        print(f"{'all':20}", *(f"{np.mean([np.mean(scores[name, i, r]) for i in RATIO_BUCKETS]):6.2f}" for r in RADII))


if __name__ == "__main__":
    main()
