"""The cost of the inpainting job over that of the network alone, with the paper's network and random weights.

    make bench                                                # or: python tests/benchmarks/inpaint.py mixed_bfloat16
    ROUNDS=7 IMAGES=64 python tests/benchmarks/inpaint.py     # steadier

`end to end`: 512 x 512 JPEGs with holes through the whole job (read, decode, network, encode, write), over a bare loop
of `model.predict_on_batch` with the same batch size. `no holes`: the same for images that need no network. Loop and
jobs take turns; the figures are medians. The start is left out: a job's time is that from its first outputs to its
last, by the files' modification times. `24 megapixels`: an image with 1 % of holes, by the job in a process of its own,
with its peak memory; and in this process, the holes alone against the whole frame in windows.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import SMALL, progress, rounds

from trainer.command import quiet_imports

with quiet_imports():
    import cv2
    import keras
    import numpy as np

    from pipelines.inpaint import main
    from trainer import checkpoints, presets, storage
    from trainer.config import PhaseConfig, TrainConfig, UNetConfig
    from trainer.images import mask_files, pictures
    from trainer.inference import filling, predict
    from trainer.inference.windows import Box, make_group
    from trainer.model.unet import build_unet

IMAGES = int(os.environ.get("IMAGES", "2" if SMALL else "32"))
SIDE, HOLE = (64, 20) if SMALL else (512, 160)
LARGE_SHAPE, LARGE_HOLE = ((192, 256), 30) if SMALL else ((4000, 6000), 490)
UNET = UNetConfig(image_size=64, filters=(4, 8), kernels=(3, 3)) if SMALL else UNetConfig()
FIRST = 16  # outputs that do not count: as many as the job takes at a time
BATCH = 1
PRECISIONS = ("float32", "mixed_bfloat16")
LARGE_JOB = """
import sys
from pipelines.inpaint import main
code = main(sys.argv[1:])
# Not ru_maxrss, which starts at the parent's.
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
sys.exit(code)
"""


def photograph(height, width, seed):
    """Smooth shapes with grain, whose JPEG is about as large as a photograph's."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 64 + 2, width // 64 + 2, 3), np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def write_inputs(folder, count, height=SIDE, width=SIDE, hole=HOLE):
    for number in range(count):
        image = cv2.imencode(".jpg", photograph(height, width, number), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        mask = np.full((height, width), 255, np.uint8)
        mask[height // 3 : height // 3 + hole, width // 3 : width // 3 + hole] = 0
        storage.create(f"{folder}/in/{number:03d}.jpg", image.tobytes())
        storage.create(f"{folder}/holes/{number:03d}.png", cv2.imencode(".png", mask)[1].tobytes())


def make_run(folder):
    config = TrainConfig(initial=PhaseConfig(steps=1), unet=UNET)
    variables = checkpoints.read_variables(build_unet(config.unet).variables)
    state = {"step": 0, "phase": "initial", "examples": 0}
    storage.create(f"{folder}/config.json", presets.to_json(config))
    checkpoints.save_checkpoint(folder, {"model": variables, "optimizer": {}}, state, keep=1)
    return config


def arguments(folder, run, precision):
    files = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--hole", "black", "--output", f"{folder}/out"]
    return [*files, "--run", run, "--precision", precision, "--batch-size", str(BATCH), "--overwrite"]


def seconds_each(folder):
    """Seconds per image of a job, by its outputs."""
    written = sorted(path.stat().st_mtime for path in Path(folder, "out").glob("*.png"))
    return (written[-1] - written[FIRST - 1]) / (len(written) - FIRST)


def benchmark(scratch, run, config, precision):
    folders = {"holes": f"{scratch}/holes", "holeless": f"{scratch}/holeless"}
    write_inputs(folders["holes"], FIRST + IMAGES)
    write_inputs(folders["holeless"], FIRST + 10 * IMAGES, hole=0)
    network = build_unet(config.unet, dtype=precision)
    network.compile(jit_compile=False)  # XLA is slower here
    image, mask = np.full((BATCH, SIDE, SIDE, 3), 0.5, np.float32), np.ones((BATCH, SIDE, SIDE, 1), np.float32)
    mask[:, SIDE // 3 : SIDE // 3 + HOLE, SIDE // 3 : SIDE // 3 + HOLE] = 0
    network.predict_on_batch([image, mask])

    def bare():
        begin = time.perf_counter()
        for _ in range(IMAGES // 2):
            network.predict_on_batch([image, mask])
        return (time.perf_counter() - begin) / (IMAGES // 2)

    found = []
    for number in range(rounds(3)):
        progress(f"{precision}, round {number + 1} of {rounds(3)}")
        seconds = {"loop": bare()}
        for name, folder in folders.items():
            assert main(arguments(folder, run, precision)) == 0
            seconds[name] = seconds_each(folder)
            if name == "holes":
                seconds["loop"] = (seconds["loop"] + bare()) / 2
        found.append(seconds)
    loop, job, holeless = (statistics.median(each[name] for each in found) for name in ("loop", *folders))
    share = statistics.median(each["loop"] / each["holes"] for each in found)
    cost = statistics.median(each["holeless"] / each["holes"] for each in found)
    print(f"{precision}: bare loop {1 / loop:.2f} images/s, end to end {1 / job:.2f} images/s, {share:.1%} of it")
    print(f"{precision}: no holes {1000 * holeless:.1f} ms per image, {cost:.1%} of one with holes")


def benchmark_large(scratch, run):
    write_inputs(f"{scratch}/large", 1, *LARGE_SHAPE, hole=LARGE_HOLE)
    begin = time.perf_counter()
    command = [sys.executable, "-c", LARGE_JOB, *arguments(f"{scratch}/large", run, "float32")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, peak = time.perf_counter() - begin, int(done.stdout.split()[-1]) * 1024 / 1e9
    print(f"24 megapixels, 1 % holes: the job {taken:.1f} s with the start, peak {peak:.2f} GB")

    model = predict.load_model(predict.find_model(run), "float32")
    image = pictures.decode(storage.read(f"{scratch}/large/in/000.jpg")).pixels
    black = mask_files.MaskReading(hole="black")
    mask = mask_files.read_mask(storage.read(f"{scratch}/large/holes/000.png"), black).mask
    filling.fill_images([image[:SIDE, :SIDE].copy()], [np.eye(SIDE, dtype=np.uint8)], model)  # compiles
    whole = make_group(Box(0, 0, *mask.shape), mask.shape, model.tiling, model.sides, model.stride)
    seconds, found, windows = {}, {}, {}
    ways = {
        "holes": lambda pixels: filling.fill_images([pixels], [mask], model)[0],
        "frame": lambda pixels: filling.fill_groups(pixels, mask, [whole], model, skip_holeless=False),
        "frame's windows with holes": lambda pixels: filling.fill_groups(pixels, mask, [whole], model),
    }
    for name, fill in ways.items():
        found[name], begin = image.copy(), time.perf_counter()
        windows[name] = fill(found[name])
        seconds[name] = time.perf_counter() - begin
        print(f"24 megapixels, {name}: {windows[name]} windows, {seconds[name]:.1f} s")
    apart = np.abs(found["frame"].astype(int) - found["frame's windows with holes"]).max() / 255
    share = seconds["holes"] / seconds["frame"]
    print(f"24 megapixels: holes alone take {share:.1%} of the frame; where windows are the same, {apart:.4f} apart")


if __name__ == "__main__":
    chosen = sys.argv[1:] or [*PRECISIONS, "large"]
    with tempfile.TemporaryDirectory() as scratch:
        keras.utils.set_random_seed(0)
        run = f"{scratch}/run"
        config = make_run(run)
        for precision in PRECISIONS:
            if precision in chosen:
                with tempfile.TemporaryDirectory() as inputs:
                    benchmark(inputs, run, config, precision)
        if "large" in chosen:
            benchmark_large(scratch, run)
