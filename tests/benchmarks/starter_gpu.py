"""Trains the starter model's network on one GPU in minutes: the part of tests/benchmarks/starter.py that takes hours.

    python tests/benchmarks/starter.py --photos FOLDER --output OUT --prepare
    python tests/benchmarks/starter_gpu.py --photos OUT/photos/train --output OUT/gpu
    python tests/benchmarks/starter_gpu.py --photos OUT/photos/train --output OUT/tuned \\
        --begins OUT/gpu/weights.npz --steps 2000
    python tests/benchmarks/starter.py --photos FOLDER --output OUT --weights OUT/gpu/weights.npz \\
        --tuned OUT/tuned/weights.npz

--begins finetunes weights with the paper's terms. --run trains the same network several times with other settings,
--seeds each with other first weights and examples: so settings are compared.

Needs keras, jax with its CUDA plugin, optax, opencv-python-headless, pydantic and google-crc32c, but not TensorFlow:
layers, network, losses and masks are this project's, on Keras's JAX backend. Examples are cut from the photographs in
memory, and every step takes squares of one side. The learning rate falls by a cosine, with the time that has passed or
with --steps. Every PROBE-th photograph is never trained on: the curve of PSNR in holes is of those, and
OUT/weights.json has it. The photographs that the starter model is judged by are not read at all.
"""

import argparse
import os
import sys
from pathlib import Path

from starter import FINETUNE, FINETUNE_RATE, RECIPE

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
#
# Three seeds of 2,000 steps of 40 on an H100, one setting changed: their means in the six intervals at 128 x 128 and at
# 256 x 256, where interpolation has 25.51 22.87 22.17 20.85 19.64 18.56; in brackets the standard deviation of the mean
# of all twelve between the seeds.
#
#     as below                        26.38 23.97 22.15 20.97 20.18 19.13   25.99 23.17 22.41 21.00 19.70 18.60  (0.03)
#     hole 6 in place of hole_log 1   26.18 23.92 22.16 20.98 20.26 19.21   25.94 23.24 22.69 21.20 19.79 18.60  (0.04)
#     refine 0                        26.10 23.67 22.00 20.84 20.08 19.09   25.72 23.01 22.30 20.92 19.67 18.58  (0.01)
#     crop_scale 0.15 to 1            26.27 23.63 21.94 20.80 20.06 19.06   25.67 22.94 22.22 20.87 19.65 18.57  (0.01)
#     learning rate 8e-3              26.38 23.84 22.08 20.91 20.13 19.10   25.90 23.10 22.34 20.95 19.68 18.58  (0.05)
#     learning rate 1e-3, two seeds   26.30 24.02 22.23 21.02 20.21 19.18   26.02 23.27 22.56 21.12 19.77 18.62  (0.03)
#     EMA of 0.99                     26.37 23.97 22.15 20.96 20.18 19.13   25.98 23.18 22.41 21.00 19.70 18.59  (0.01)
SETTINGS = [*RECIPE, "precision=mixed_bfloat16"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--photos", type=Path, help="folder with the photographs to train on, and no others")
    add("--output", type=Path, help="folder to keep; without it nothing is done: it takes a GPU")
    add("--seconds", type=float, default=395, help="of training (default 395)")
    add("--steps", type=int, help="of training, in place of seconds")
    add("--preset", help="its settings in place of the starter model's")
    add("--batch", action="append", metavar="SIDE=COUNT", help="squares of a batch; repeatable, takes turns")
    add("--begins", type=Path, metavar="WEIGHTS", help="finetune these, of a network of the same settings")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config; repeatable")
    add("--run", action="append", nargs="+", metavar=("NAME", "KEY=VALUE"), help="train OUT/NAME; repeatable")
    add("--seeds", type=int, default=1, metavar="N", help="train each N times: OUT/NAME/0, OUT/NAME/1 ...")
    options = parser.parse_args(argv)
    if not options.output:
        print("skipped: --output OUT trains on a GPU")
        return
    os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported
    # An H100's process compiled for 155 s (squares of 256 alone) and 268 s (with VGG-16), so what it compiles is kept.
    # With XLA_FLAGS=--xla_gpu_autotune_level=0 it took 10 s, but then each step with VGG-16 took seconds.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.output / "compiled"))
    from _starter_gpu import SIZES, Plan, make_data, train

    from trainer import presets

    preset, settings = (options.preset, []) if options.preset else ("demo", SETTINGS)
    if options.begins:
        settings = [*settings, *FINETUNE, f"initial.learning_rate={FINETUNE_RATE}"]
    sizes = {int(side): int(count) for side, _, count in (x.partition("=") for x in options.batch or [])} or SIZES
    data = make_data(options.photos)
    for name, *changes in options.run or [["."]]:
        config = presets.override(presets.PRESETS[preset], [*settings, *options.set, *changes])
        folder = options.output / name
        outputs = [folder / str(seed) for seed in range(options.seeds)] if options.seeds > 1 else [folder]
        train(Plan(config, sizes, options.steps, options.seconds, options.begins), data, outputs)
    sys.stdout.flush()
    os._exit(0)  # threads that make examples still run


if __name__ == "__main__":
    main()
