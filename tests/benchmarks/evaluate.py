"""Where an evaluation spends its time: network, baselines, metrics, and the rest.

    make bench                                           # or: python tests/benchmarks/evaluate.py paper
    PAIRS=240 python tests/benchmarks/evaluate.py demo   # shorter

Evaluates a network with random weights (the paper's or the demo's) and the default baselines on the bundled photographs
with stratified masks of 256 x 256. Times include the start of Python; `rest` is reading, decoding, pairing, Beam and
the report. Calls are timed where they are made, in the single thread of the in-process runner.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import SMALL

from trainer.command import quiet_imports

PAIRS = int(os.environ.get("PAIRS", "12" if SMALL else "1008"))  # divisible by the twelve cells
SIZE = 64 if SMALL else 256
NETWORKS = ("paper", "demo")


def timed(function, name, seconds):
    def call(*arguments):
        begin = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin

    return call


def evaluate(arguments):
    """Runs the command with its parts timed; the last line of its output has their seconds."""
    with quiet_imports():
        import dataclasses

        import numpy as np

        from pipelines.evaluate import main
        from trainer.inference import predict
        from trainer.inference.baselines import BASELINES
        from trainer.metrics import image_quality

    seconds = {}
    load = predict.load_model

    def load_timed(*positional, **named):
        model = load(*positional, **named)
        return dataclasses.replace(
            model, predict=timed(lambda image, mask: np.asarray(model.predict(image, mask)), "network", seconds)
        )

    predict.load_model = load_timed
    image_quality.compare = timed(image_quality.compare, "metrics", seconds)
    for name, fill in BASELINES.items():
        BASELINES[name] = timed(fill, "baselines", seconds)
    code = main(arguments)
    print(json.dumps(seconds))
    return code


def make_inputs(folder, networks):
    """Masks, and a run of each network."""
    with quiet_imports():
        import keras

        from pipelines import build_masks
        from trainer import checkpoints, presets, storage
        from trainer.model.unet import build_unet

    options = ["--count", str(PAIRS), "--stratify", "--size", str(SIZE), "--split", "val"]
    build_masks.main(["--output", f"{folder}/masks", *options])
    keras.utils.set_random_seed(0)
    for name in networks:
        config = presets.PRESETS[name]
        arrays = checkpoints.read_variables(build_unet(config.unet).variables)
        storage.create(f"{folder}/{name}/config.json", presets.to_json(config))
        state = {"step": 0, "phase": "initial", "examples": 0}
        checkpoints.save_checkpoint(f"{folder}/{name}", {"model": arrays, "optimizer": {}}, state, keep=1)


def benchmark(folder, name):
    from pipelines.demo import PHOTOS

    data = ["--images", f"{PHOTOS}/**/*.jpg", "--masks", f"{folder}/masks", "--run", f"{folder}/{name}"]
    command = [sys.executable, __file__, "--job", *data, "--output", f"{folder}/{name}-report"]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    whole = time.perf_counter() - begin
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(Path(f"{folder}/{name}-report/metrics.json").read_text())["counts"]
    seconds = json.loads(done.stdout.splitlines()[-1])
    seconds["rest"] = whole - sum(seconds.values())
    parts = ", ".join(f"{part} {taken:.1f} s ({taken / whole:.0%})" for part, taken in seconds.items())
    inside = (seconds["network"] + seconds["metrics"]) / whole
    of_network = (seconds["network"] + seconds["metrics"]) / (whole - seconds["baselines"])
    print(f"{name}: {counts['pairs']} pairs of {SIZE} x {SIZE}, {counts['rows']} images, {whole:.1f} s: {parts}")
    print(f"{name}: network and metrics {inside:.0%}, with the baselines {1 - seconds['rest'] / whole:.0%}; ", end="")
    print(f"of all but the baselines {of_network:.0%}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        sys.exit(evaluate(sys.argv[2:]))
    chosen = sys.argv[1:] or NETWORKS[:1]
    with tempfile.TemporaryDirectory() as scratch:
        make_inputs(scratch, chosen)
        for network in chosen:
            benchmark(scratch, network)
