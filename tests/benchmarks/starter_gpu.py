"""Trains the starter model's network on one GPU in minutes: the part of tests/benchmarks/starter.py that takes hours.

    python tests/benchmarks/starter.py --photos FOLDER --output OUT --prepare
    python tests/benchmarks/starter_gpu.py --photos OUT/photos/train --output OUT/gpu
    python tests/benchmarks/starter.py --photos FOLDER --output OUT --weights OUT/gpu/weights.npz

Needs keras, jax with its CUDA plugin, optax, opencv-python-headless, pydantic and google-crc32c, but not TensorFlow:
layers, network, losses and masks are this project's, on Keras's JAX backend. Examples are cut from the photographs in
memory, and every step takes squares of one of SIZES. The learning rate falls with the time
that has passed, by a cosine. Every PROBE-th photograph is never trained on: the curve of PSNR in holes is of those,
and OUT/curve.json has it. The photographs that the starter model is judged by are not read at all.
"""

import argparse
import os
import sys
from pathlib import Path

from starter import RECIPE

# PSNR in the holes of 120 pairs of the probed photographs, (0.1, 0.2] and (0.4, 0.5] at 128 x 128 and the same at
# 256 x 256, from 23.45, 20.02, 22.88, 19.63 of the interpolation. Six processes on one H100 for 100 s, at 2e-3, most of
# them interrupted before their last step; one seed:
#
#     hole 6, refine 32                      3,519 steps   24.21 20.46 23.43 19.93
#     hole_log 1, refine 0                   6,638 steps   24.33 20.58 23.62 20.06   (24.09 20.37 23.40 19.83 at 3,456)
#     hole_log 1, refine 32, 1.4 times the filters, 1,583  23.93 20.15 23.12 19.68
#     the same at 5e-3                       1,978 steps   23.96 20.19 23.18 19.71
#
# then, alone and for 395 s, at 3e-3:
#
#     hole_log 1, refine 32                 43,910 steps   25.16 21.32 24.36 20.72   (24.43 20.57 23.65 20.00 at 4,542)
#
# Before the last stages saw the interpolated image, 1,800 steps of 8 had not taught more than 0.14 dB in any interval.
SETTINGS = [*RECIPE, "precision=mixed_bfloat16"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder with the photographs to train on, and no others")
    parser.add_argument("--output", type=Path, help="folder to keep; without it nothing is done: it takes a GPU")
    parser.add_argument("--seconds", type=float, default=395, help="of training (default 395)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config; repeatable")
    options = parser.parse_args(argv)
    if not options.output:
        print("skipped: --output OUT trains on a GPU")
        return
    os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported
    from _starter_gpu import make_data, train

    from trainer import presets

    config = presets.override(presets.PRESETS["demo"], [*SETTINGS, *options.set])
    train(config, make_data(options.photos), options.seconds, options.output)
    sys.stdout.flush()
    os._exit(0)  # threads that make examples still run


if __name__ == "__main__":
    main()
