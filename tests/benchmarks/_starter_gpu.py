"""What tests/benchmarks/starter_gpu.py does: examples from photographs in memory, and a training step in JAX."""

import concurrent.futures
import functools
import itertools
import json
import math
import os
import queue
import threading
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import SMALL, progress

from masks.coverage import RATIO_BUCKETS
from masks.sampling import MaskSpec, sample_mask
from trainer import presets
from trainer.model.losses import total_loss
from trainer.model.unet import build_unet

BORDERS = ("none", "touch")
# Squares of a batch by their side.
SIZES = {32: 4, 64: 2} if SMALL else {128: 64, 256: 16}
MASKS = 24 if SMALL else 6000  # of each side
PROBE, PROBES = 25, 12 if SMALL else 120
SHORTEST = 96 if SMALL else 1024  # longer photographs are reduced to it: memory
WARMUP = 100  # steps


# Examples


def read_photos(folder):
    """Each photograph as uint8 [height, width, 3] in RGB, at full, half, quarter ... size."""

    def pyramid(path):
        photo = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        while min(photo.shape[:2]) >= 2 * SHORTEST:
            photo = halve(photo)
        levels = [photo]
        while min(levels[-1].shape[:2]) >= 2 * min(SIZES):
            levels.append(halve(levels[-1]))
        return levels

    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(pyramid, paths))


def halve(photo):
    height, width = photo.shape[:2]
    return cv2.resize(photo, (width // 2, height // 2), interpolation=cv2.INTER_AREA)


def cut_square(levels, side, scale, y, x):
    """uint8 [side, side, 3]: the square of `scale` times the shorter side at the place (y, x), all in [0, 1]."""
    whole = max(int(min(levels[0].shape[:2]) * scale), 1)
    level = min(max(int(math.log2(max(whole / side, 1))), 0), len(levels) - 1)
    photo, whole = levels[level], max(whole >> level, 1)
    top, left = (int(place * (size - whole)) for place, size in zip((y, x), photo.shape, strict=False))
    square = photo[top : top + whole, left : left + whole]
    how = cv2.INTER_AREA if whole > side else cv2.INTER_LINEAR
    return cv2.resize(square, (side, side), interpolation=how)


def make_targets(photos, side, count, scales, rng):
    """uint8 [count, side, side, 3]: squares of random photographs, mirrored, and half of them transposed."""
    low, high = scales
    targets = np.empty((count, side, side, 3), np.uint8)
    for target, (which, scale, y, x, *flips) in zip(targets, rng.random((count, 7)).tolist(), strict=True):
        square = cut_square(photos[int(which * len(photos))], side, low + (high - low) * scale, y, x)
        square = cv2.flip(square, 1) if flips[0] < 0.5 else square
        square = cv2.flip(square, 0) if flips[1] < 0.5 and flips[2] < 0.5 else square
        target[:] = cv2.transpose(square) if flips[2] < 0.5 else square
    return targets


def draw_mask(side, seed, number):
    """Packed bits of one mask; numbers go round all intervals and border classes."""
    interval, border = list(itertools.product(RATIO_BUCKETS, BORDERS))[number % 12]
    spec = MaskSpec(generator="shapes", height=side, width=side, hole_ratio=interval, border=border, seed=seed)
    return np.packbits(sample_mask(spec, number))


def draw_masks(side, count, seed):
    """uint8 [count, side, side] of {0, 1}; 0 = hole."""
    with concurrent.futures.ProcessPoolExecutor() as pool:
        packed = list(pool.map(functools.partial(draw_mask, side, seed), range(count), chunksize=50))
    return np.unpackbits(np.stack(packed), axis=1).reshape(count, side, side)


def examples(photos, masks, scales, seed):
    """Endless batches (target, mask), uint8, of the sides of SIZES in turn, made ahead by threads."""
    ready = queue.Queue(maxsize=64)
    turn = itertools.count()

    def work():
        while True:
            number = next(turn)
            rng = np.random.default_rng([seed, number])
            side = list(SIZES)[number % len(SIZES)]
            chosen = masks[side][rng.integers(len(masks[side]), size=SIZES[side])]
            chosen = chosen[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
            targets = make_targets(photos, side, SIZES[side], scales, rng)
            ready.put((targets, np.ascontiguousarray(chosen)[..., None]))

    for _ in range(max(os.cpu_count() - 2, 1)):
        threading.Thread(target=work, daemon=True).start()
    while True:
        yield ready.get()


# Training


def make_step(model, config):
    """The first state, and one step: state, target, mask, learning rate -> state, loss."""
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.scale_by_adam())

    def loss(weights, statistics, target, mask):
        output, statistics = model.stateless_call(weights, statistics, [target * mask, mask], training=True)
        return total_loss(output, target, mask, None, config.loss)[0], statistics

    def step(state, target, mask, rate):
        target, mask = target.astype("float32") / 255, mask.astype("float32")
        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(
            state["weights"], state["statistics"], target, mask
        )
        updates, moments = optimizer.update(gradients, state["moments"])
        weights = [w - rate * u for w, u in zip(state["weights"], updates, strict=True)]
        decay = jnp.minimum(config.ema_decay, (1 + state["step"]) / (10 + state["step"]))
        averaged = [
            a * decay + v * (1 - decay) for a, v in zip(state["averaged"], [*weights, *statistics], strict=True)
        ]
        return {
            "weights": weights,
            "statistics": statistics,
            "moments": moments,
            "averaged": averaged,
            "step": state["step"] + 1,
        }, value

    weights = [v.value for v in model.trainable_variables]
    statistics = [v.value for v in model.non_trainable_variables]
    averaged = [jnp.copy(x) for x in [*weights, *statistics]]
    return {
        "weights": weights,
        "statistics": statistics,
        "moments": optimizer.init(weights),
        "averaged": averaged,
        "step": jnp.zeros((), "float32"),
    }, step


def probe(predict, averaged, pairs):
    """Mean PSNR in holes by interval, for pairs of targets and masks by side."""
    found = {}
    for side, (targets, masks) in pairs.items():
        scores = []
        for first in range(0, len(targets), 12):
            target, mask = targets[first : first + 12], masks[first : first + 12]
            output = np.asarray(predict[side](averaged, target, mask)).clip(0, 1)
            hole = np.broadcast_to(mask == 0, target.shape)
            error = ((output - target / 255.0) ** 2 * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
            scores += list(-10 * np.log10(error + 1e-10))
        found[side] = np.reshape(scores, (-1, len(RATIO_BUCKETS), len(BORDERS))).mean((0, 2)).round(3).tolist()
    return found


def save(output, model, state, config, facts):
    output.mkdir(parents=True, exist_ok=True)
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    arrays = {v.path: np.asarray(a) for v, a in zip(variables, state["averaged"], strict=True)}
    np.savez(output / "weights.npz", **arrays)
    (output / "weights.json").write_text(json.dumps({"config": json.loads(presets.to_json(config)), **facts}))


def make_data(folder):
    """Photographs to train on, masks by side, and by side the pairs of targets and masks that PSNR is probed with."""
    cv2.setNumThreads(1)
    began = time.monotonic()
    masks = {side: draw_masks(side, MASKS, 0) for side in SIZES}
    photos = read_photos(folder)
    held_out = photos[::PROBE]
    photos = [photo for number, photo in enumerate(photos) if number % PROBE]
    pairs = {
        side: (
            np.stack([cut_square(held_out[n // 12 % len(held_out)], side, 1.0, 0.5, 0.5) for n in range(PROBES)]),
            draw_masks(side, PROBES, 1)[..., None],
        )
        for side in SIZES
    }
    progress(f"{len(photos)} photographs, {len(held_out)} to probe, {time.monotonic() - began:.0f} s")
    return photos, masks, pairs, len(held_out)


def compile_all(step, predict, state, pairs):
    """Steps and probes by side, compiled at the same time."""
    began, steps, probes = time.monotonic(), {}, {}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for side in SIZES:
            batch = [np.zeros((SIZES[side], side, side, channels), np.uint8) for channels in (3, 1)]
            lowered = jax.jit(step, donate_argnums=0).lower(state, *batch, jnp.float32(0))
            steps[side] = pool.submit(lowered.compile)
            lowered = jax.jit(predict).lower(state["averaged"], *(x[:12] for x in pairs[side]))
            probes[side] = pool.submit(lowered.compile)
    found = [{side: made.result() for side, made in of.items()} for of in (steps, probes)]
    progress(f"compiled in {time.monotonic() - began:.0f} s")
    return found


def train(config, data, seconds, output):
    """Trains for so many seconds, and saves and probes eight times on the way."""
    photos, masks, pairs, probed = data
    model, full = build_unet(config.unet, config.precision), build_unet(config.unet, "float32")
    count = len(model.trainable_variables)
    state, step = make_step(model, config)

    def predict(averaged, target, mask):
        target, mask = target.astype("float32") / 255, mask.astype("float32")
        return full.stateless_call(averaged[:count], averaged[count:], [target * mask, mask], training=False)[0]

    steps, probes = compile_all(step, predict, state, pairs)
    began, curve, losses, seen = time.monotonic(), [], [], 0
    for number, (target, mask) in enumerate(examples(photos, masks, config.data.crop_scale, 0)):
        spent = time.monotonic() - began
        passed = min(spent / seconds, 1)
        if passed >= (len(curve) + 1) / 8:
            mean = float(np.mean([float(x) for x in losses[-100:]]))
            facts = {"seconds": round(spent, 1), "step": number, "examples": seen}
            curve.append({**facts, "loss": round(mean, 4), **probe(probes, state["averaged"], pairs)})
            progress(json.dumps(curve[-1]))
            facts |= {"curve": curve, "device": jax.devices()[0].device_kind, "sides": list(SIZES), "probes": probed}
            save(output, model, state, config, facts)
            if passed >= 1:
                return
        rate = config.initial.learning_rate * min((number + 1) / WARMUP, 1) * (1 + math.cos(math.pi * passed)) / 2
        state, value = steps[target.shape[1]](state, target, mask, jnp.float32(rate))
        losses.append(value)
        seen += len(target)
        if number % 50 == 49:
            losses[-50].block_until_ready()  # no more than so many steps ahead
            losses = losses[-200:]
