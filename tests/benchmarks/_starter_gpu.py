"""What tests/benchmarks/starter_gpu.py does: examples from photographs in memory, and a training step in JAX."""

import concurrent.futures
import contextlib
import functools
import itertools
import json
import math
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import SMALL, progress

from masks.coverage import RATIO_BUCKETS
from masks.sampling import MaskSpec, sample_mask
from trainer import presets
from trainer.model.losses import needs_features, perceptual_loss, total_loss
from trainer.model.unet import build_unet, freeze_encoder_bn
from trainer.model.vgg import build_features

BORDERS = ("none", "touch")
SIZES = {32: 4, 64: 2} if SMALL else {128: 64, 256: 16}  # squares of a batch by their side, in turn
MASKS = 24 if SMALL else 6000  # of each side
PROBE, PROBES, PART = 25, 12 if SMALL else 120, 12
SHORTEST = 96 if SMALL else 1024  # longer photographs are reduced to it: memory


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


def examples(photos, masks, scales, sizes, seed):
    """Endless batches (target, mask), uint8, of the sizes in turn, made ahead by threads until it is closed."""
    ready, closed = queue.Queue(maxsize=64), threading.Event()
    turn = itertools.count()

    def work():
        while not closed.is_set():
            number = next(turn)
            rng = np.random.default_rng([seed, number])
            side, count = list(sizes.items())[number % len(sizes)]
            chosen = masks[side][rng.integers(len(masks[side]), size=count)]
            chosen = chosen[:, :: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
            targets = make_targets(photos, side, count, scales, rng)
            batch = targets, np.ascontiguousarray(chosen)[..., None]
            while not closed.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(batch, timeout=1)
                    break

    for _ in range(max(os.cpu_count() - 2, 1)):
        threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            yield ready.get()
    finally:
        closed.set()


# Training


class Plan(NamedTuple):
    """One training.

    Attributes:
        config: of which the network, losses, precision, learning rate, warm-up and EMA count.
        sizes: squares of a batch by their side, in turn.
        steps: how many; None: as many as fit into `seconds`.
        begins: weights to go on from, with the encoder's BatchNorm as it is; None: the network's own, of `seed`.
    """

    config: Any
    sizes: dict[int, int]
    steps: int | None
    seconds: float
    begins: Path | None = None
    seed: int = 0

    def passed(self, number, spent):
        """The part of the training before step `number`, after so many seconds, in [0, 1]."""
        return min(number / self.steps if self.steps else spent / self.seconds, 1)

    def rate(self, number, passed):
        """The learning rate of step `number`: it falls by a cosine."""
        peak, warmup = self.config.initial.learning_rate, self.config.initial.warmup_steps
        return peak * min((number + 1) / max(warmup, 1), 1) * (1 + math.cos(math.pi * passed)) / 2


def make_model(plan, precision):
    model = build_unet(plan.config.unet, precision, seed=plan.seed)
    if plan.begins:
        with np.load(plan.begins) as arrays:
            for variable in model.variables:
                variable.assign(arrays[variable.path].astype("float32"))
        freeze_encoder_bn(model, True)
    return model


def make_state(model, optimizer):
    weights = [v.value for v in model.trainable_variables]
    statistics = [v.value for v in model.non_trainable_variables]
    return {
        "weights": weights,
        "statistics": statistics,
        "moments": optimizer.init(weights),
        "averaged": [jnp.copy(x) for x in [*weights, *statistics]],
        "step": jnp.zeros((), "float32"),
    }


def make_step(model, config, features):
    """The optimizer, and one step: state, target, mask, learning rate -> state, loss."""
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.scale_by_adam())

    def loss(weights, statistics, target, mask):
        output, statistics = model.stateless_call(weights, statistics, [target * mask, mask], training=True)
        return total_loss(output, target, mask, features, config.loss)[0], statistics

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

    return optimizer, step


def make_probe(model, features):
    """Averaged weights, targets, masks -> the composites, PSNR in the holes and detail of each, and their distance.

    Detail: the sum of the absolute differences of neighbors in the holes, as a part of the target's: 1 where a hole is
    as rough as what was there. Distance: the paper's perceptual term, of the composite alone.
    """
    count = len(model.trainable_variables)

    def predict(averaged, target, mask):
        target, mask = target.astype("float32") / 255, mask.astype("float32")
        output = model.stateless_call(averaged[:count], averaged[count:], [target * mask, mask], training=False)[0]
        composite = jnp.where(mask > 0, target, jnp.clip(output, 0, 1))
        hole = jnp.broadcast_to(1 - mask, target.shape)
        error = (jnp.square(composite - target) * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
        rough, wanted = (
            sum(jnp.abs(jnp.diff(image * hole, axis=axis)).sum((1, 2, 3)) for axis in (1, 2))
            for image in (composite, target)
        )
        distance = perceptual_loss(features(composite), features(target))
        return composite, -10 * jnp.log10(error + 1e-10), rough / wanted, distance

    return predict


def probe(predict, averaged, pairs):
    """By side: mean PSNR in holes by interval; and the means of detail and distance."""
    found = {}
    for side, (targets, masks) in pairs.items():
        parts = [
            [np.asarray(x) for x in predict[side](averaged, targets[n : n + PART], masks[n : n + PART])[1:]]
            for n in range(0, len(targets), PART)
        ]
        scores, detail, distance = (np.hstack(x) for x in zip(*parts, strict=True))
        by_interval = np.reshape(scores, (-1, len(RATIO_BUCKETS), len(BORDERS))).mean((0, 2))
        found[side] = [round(float(x), 3) for x in by_interval]
        found[f"detail {side}"] = round(float(detail.mean()), 4)
        found[f"distance {side}"] = round(float(distance.mean()), 4)
    return found


def draw_probes(predict, averaged, pairs, side):
    """PNG: some of the probes of a side, with holes in gray, filled, and whole, side by side."""
    targets, masks = (x[:: len(x) // PART][:PART] for x in pairs[side])
    filled = (np.asarray(predict[side](averaged, targets, masks)[0]) * 255).round().astype(np.uint8)
    rows = np.concatenate([np.where(masks > 0, targets, np.uint8(128)), filled, targets], axis=2)
    return cv2.imencode(".png", rows.reshape(-1, *rows.shape[2:])[..., ::-1])[1].tobytes()


def save(output, model, state, plan, facts):
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    arrays = {v.path: np.asarray(a) for v, a in zip(variables, state["averaged"], strict=True)}
    np.savez(output / "weights.npz", **arrays)
    (output / "weights.json").write_text(json.dumps({"config": json.loads(presets.to_json(plan.config)), **facts}))


def make_data(folder):
    """Photographs to train on, masks by side, and by side the pairs of targets and masks that are probed."""
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


def compile_all(step, predict, state, plan, pairs):
    """Steps and probes by side, compiled at the same time."""
    began, steps, probes = time.monotonic(), {}, {}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for side, count in plan.sizes.items():
            batch = [np.zeros((count, side, side, channels), np.uint8) for channels in (3, 1)]
            lowered = jax.jit(step, donate_argnums=0).lower(state, *batch, jnp.float32(0))
            steps[side] = pool.submit(lowered.compile)
        for side in SIZES:
            lowered = jax.jit(predict).lower(state["averaged"], *(x[:PART] for x in pairs[side]))
            probes[side] = pool.submit(lowered.compile)
    found = [{side: made.result() for side, made in of.items()} for of in (steps, probes)]
    progress(f"compiled in {time.monotonic() - began:.0f} s")
    return found


def train(plan, data, outputs):
    """Trains once for each of the folders, of the seeds 0, 1 ...; see `train_once`."""
    features = [build_features("bundled", precision) for precision in ("float32", plan.config.precision)]
    model, full = make_model(plan, plan.config.precision), make_model(plan, "float32")
    optimizer, step = make_step(model, plan.config, features[1] if needs_features(plan.config.loss) else None)
    compiled = compile_all(step, make_probe(full, features[0]), make_state(model, optimizer), plan, data[2])
    for seed, output in enumerate(outputs):
        output.mkdir(parents=True, exist_ok=True)
        seeded = plan._replace(seed=seed)
        train_once(seeded, data, make_model(seeded, plan.config.precision), optimizer, compiled, output)


def train_once(plan, data, model, optimizer, compiled, output):
    """Saves and probes eight times on the way, and draws some probes at the end."""
    (photos, masks, pairs, probed), (steps, probes) = data, compiled
    state = make_state(model, optimizer)
    batches = examples(photos, masks, plan.config.data.crop_scale, plan.sizes, plan.seed)
    began, curve, losses, seen = time.monotonic(), [], [], 0
    for number, (target, mask) in enumerate(batches):
        spent = time.monotonic() - began
        passed = plan.passed(number, spent)
        if passed >= (len(curve) + 1) / 8:
            mean = float(np.mean([float(x) for x in losses[-100:]]))
            facts = {"seconds": round(spent, 1), "step": number, "examples": seen}
            curve.append({**facts, "loss": round(mean, 4), **probe(probes, state["averaged"], pairs)})
            progress(f"{output}: {json.dumps(curve[-1])}")
            facts |= {"curve": curve, "device": jax.devices()[0].device_kind, "sides": [*plan.sizes], "probes": probed}
            save(output, model, state, plan, facts)
            if passed >= 1:
                break
        rate = jnp.float32(plan.rate(number, passed))
        state, value = steps[target.shape[1]](state, target, mask, rate)
        losses.append(value)
        seen += len(target)
        if number % 50 == 49:
            losses[-50].block_until_ready()  # no more than so many steps ahead
            losses = losses[-200:]
    batches.close()
    for side in SIZES:
        (output / f"probes-{side}.png").write_bytes(draw_probes(probes, state["averaged"], pairs, side))
