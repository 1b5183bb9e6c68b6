"""Dry run: plan, dataset sizes, memory estimate, and access checks for every address."""

from __future__ import annotations

import dataclasses
import math

import keras

from trainer import presets
from trainer.config import TrainConfig
from trainer.data.batches import count_reads, fit_streams
from trainer.data.manifest import check_sizes, load_manifest
from trainer.model.losses import needs_features
from trainer.model.unet import build_unet

_GB = 1e9


def estimate_memory(config: TrainConfig, model: keras.Model) -> dict[str, int]:
    """Estimates the bytes one worker needs for training, by purpose, from shapes alone.

    * ``variables``, ``gradients``, ``optimizer``: 4 bytes per value of each; Adam keeps two values per weight.
    * ``accumulated``: the gradients of the parts before, if a step has several.
    * ``average``: 4 bytes per value of the EMA, if there is one; ``validation``: a second copy of the network.
    * ``activations``: every layer's output for one worker's batch, kept for the gradient, in the compute dtype
      (masks, inputs and the output in float32).
    * ``perceptual``: the same for VGG-16 on output, composite and target, if the loss needs it.

    Libraries and the input pipeline need more on top, and a framework may keep more or recompute.
    """
    values = sum(math.prod(v.shape) for v in model.variables)
    trained = sum(math.prod(v.shape) for v in model.trainable_variables)
    batch, size = config.per_worker_batch_size, config.unet.image_size
    width = 4 if config.precision == "float32" else 2
    activations = 0
    for layer in model.layers:
        for tensor in layer.output if isinstance(layer.output, list | tuple) else [layer.output]:
            bytes_each = 4 if keras.backend.standardize_dtype(tensor.dtype) == "float32" else width
            activations += batch * math.prod(tensor.shape[1:]) * bytes_each
    perceptual = 0
    if needs_features(config.loss):
        from trainer.model.vgg import BLOCKS

        for level, block in enumerate(BLOCKS):
            side = size >> level
            perceptual += 3 * batch * width * sum(side * side * filters for filters in block)
            perceptual += 3 * batch * width * (side // 2) ** 2 * block[-1]
    needs = {"variables": 4 * values, "gradients": 4 * trained, "optimizer": 8 * trained}
    needs |= {"accumulated": 4 * trained if config.accumulate > 1 else 0}
    needs |= {"average": 4 * values if config.ema_decay else 0, "validation": 4 * values}
    return needs | {"activations": activations, "perceptual": perceptual}


def count_records(folder: str, kind: str) -> dict[str, int]:
    """Number of records of a dataset, by split."""
    counts: dict[str, int] = {}
    for shard in load_manifest(folder, kind).shards:
        counts[shard.split] = counts.get(shard.split, 0) + shard.records
    return counts


def check_shards(folder: str, kind: str, split: str) -> str:
    """Checks that every shard of a split exists and has its size; returns a line that says so.

    Raises:
        UserError: a shard is missing or has another size; the message names the first.
    """
    shards = load_manifest(folder, kind).split(split)
    check_sizes(folder, shards)
    return f"readable   {folder}: all {len(shards)} shards of split {split!r} are present"


def describe_reads(config: TrainConfig, images: str, masks: str, workers: int) -> list[str]:
    """Says how often so many workers read each shard in an epoch, and warns where that is avoidable or much.

    Shards in which a stream begins are read twice, and not worth a warning where they are few.
    """
    reads, streams = count_reads(images, masks, config.data, workers), config.data.streams
    by = f"{workers} worker{'s' if workers > 1 else ''}"
    lines = [f"reads      each shard of {_times(reads)} an epoch, by {by} with data.streams={streams}"]
    if max(reads.values()) <= 1.1:
        return lines
    fit = fit_streams(images, masks, config.data, [workers])
    fitted = count_reads(images, masks, dataclasses.replace(config.data, streams=fit), workers)
    warning = "warning    shards are read more than once: "
    if sum(fitted.values()) < sum(reads.values()) - 0.1:
        advice = f"a new run with data.streams=auto would have {fit} streams, and read those of {_times(fitted)}"
    else:
        advice = "datasets of more shards (--num-shards), or fewer workers, would change that"
    return [*lines, warning + advice]


def describe_change(config: TrainConfig, images: str, masks: str, earlier: int, workers: int) -> str:
    """Says what it costs that a run continues with another number of workers than ``earlier``."""
    before, now = (count_reads(images, masks, config.data, count) for count in (earlier, workers))
    cost = f"each shard of {_times(now)} an epoch instead of {_times(before)}" if _times(now) != _times(before) else ""
    return (
        f"{workers} worker{'s' if workers > 1 else ''} instead of {earlier}: the same examples in the same order, "
        f"{cost or 'and no shard is read more often'}"
    )


def _times(reads: dict[str, float]) -> str:
    first, *others = (f"{name} {value:.2f}" for name, value in reads.items())
    return ", of ".join([f"{first} times", *others])


def describe_plan(config: TrainConfig, datasets: dict[str, tuple[str, str]], validation: str) -> list[str]:
    """Describes a run as lines: config, datasets, validation, parameters, steps and memory.

    Args:
        datasets: kind and address, by purpose; at least ``images``.
        validation: a line from `validation.find_held_out`.
    """
    lines = [f"{key} = {value}" for key, value in presets.flatten(config).items()]
    images = count_records(*reversed(datasets["images"])).get(config.data.split, 0)
    epochs = config.total_steps * config.examples_per_step / images
    for name, (kind, folder) in datasets.items():
        counts = ", ".join(f"{count:,} in {split}" for split, count in sorted(count_records(folder, kind).items()))
        lines.append(f"{name:<10} {folder}: {counts}")
    size = config.unet.image_size
    with keras.device("cpu"):  # an accelerator may lack the room; with a size, so that every output has a shape
        model = build_unet(config.unet, dtype=config.precision, height=size, width=size)
    needs, trained = estimate_memory(config, model), sum(math.prod(v.shape) for v in model.trainable_variables)
    parts = ", ".join(f"{name} {value / _GB:.3g}" for name, value in needs.items() if value)
    return [
        *lines,
        validation,
        f"parameters {model.count_params():,}, {trained:,} trainable",
        f"steps      {config.total_steps:,} of {config.examples_per_step} examples: {epochs:.2f} epochs "
        f"({config.initial.steps:,} initial, {config.finetune.steps:,} finetune)",
        f"memory     about {sum(needs.values()) / _GB:.3g} GB per worker, from shapes: {parts}",
    ]
