"""What the metrics for Prometheus cost: a training step that tells them through Ray, over one that tells nobody.

    python tests/benchmarks/metrics.py
    ROUNDS=30 python tests/benchmarks/metrics.py

The demo's network and image size, 8 examples, one worker's process in a Ray of its own. The worker tells its pace and
its losses after each step (`log_every=1`; trainings do after 20 or more), and its thread sets all gauges again
meanwhile. On a busy machine the ratio says little, and the last figure, of telling alone, all.
"""

import logging
import time

from _timing import SMALL, take_turns

from trainer.command import quiet_imports

with quiet_imports():
    import keras
    import numpy as np
    import ray
    import tensorflow as tf
    from ray.util.metrics import Gauge

    from trainer import presets
    from trainer.config import LossConfig, UNetConfig
    from trainer.model.unet import build_unet
    from trainer.training.progress.events import Pace, Speed, StepDone
    from trainer.training.progress.metrics import Metrics
    from trainer.training.step import make_train_step

BATCH, CALLS = (1, 10) if SMALL else (8, 2000)
CONFIG = UNetConfig(image_size=32, filters=(4, 8), kernels=(3, 3)) if SMALL else presets.PRESETS["demo"].unet
SIZE = CONFIG.image_size
LOSSES = LossConfig(perceptual=0, style_output=0, style_composite=0)


def make_step():
    """A function that does one training step and returns its loss terms as numbers."""
    rng = np.random.default_rng(0)
    target = tf.constant(rng.random((BATCH, SIZE, SIZE, 3)), tf.float32)
    mask = tf.constant(rng.random((BATCH, SIZE, SIZE, 1)) > 0.3, tf.float32)
    model = build_unet(CONFIG, "float32", height=SIZE, width=SIZE)
    optimizer = keras.optimizers.Adam(2e-4)
    optimizer.build(model.trainable_variables)
    step = make_train_step(tf.distribute.get_strategy(), model, optimizer, None, LOSSES)
    return lambda: {name: float(value) for name, value in step(target, mask).terms.items()}


def tell(metrics, terms):
    """What a worker tells after a step."""
    speed = Speed(images_per_second=10.0, data_wait=0.01, eta_seconds=1.0, step_seconds=0.8)
    metrics.record(Pace(worker=0, speed=speed, own_seconds=0.7))
    metrics.record(StepDone(step=1, total_steps=2, phase="initial", terms=terms, speed=speed))


def main():
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(num_cpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
    try:
        step = make_step()
        terms = step()
        metrics = Metrics("gs://bucket/run", 0, Gauge)
        seconds = take_turns({"silent": step, "telling": lambda: tell(metrics, step())})
        begin = time.perf_counter()
        for _ in range(CALLS):
            tell(metrics, terms)
        each = (time.perf_counter() - begin) / CALLS
        metrics.close()
    finally:
        ray.shutdown()
    print(
        f"step of {BATCH} x {SIZE} x {SIZE}: {1000 * seconds['silent']:.1f} ms, with metrics "
        f"{1000 * seconds['telling']:.1f} ms, ratio {seconds['telling'] / seconds['silent']:.3f}; to tell of one takes "
        f"{1e6 * each:.0f} us, {each / seconds['silent']:.3%} of it",
        flush=True,
    )


if __name__ == "__main__":
    main()
