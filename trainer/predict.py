"""Inpainting of arrays with a trained network: what the batch job calls, and what a notebook would.

    model = load_model(find_model("gs://B/runs/a"))
    picture = inpaint(image, mask, model)

Valid pixels come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer import checkpoints, presets, storage
from trainer.command import UserError
from trainer.config import TrainConfig
from trainer.unet import build_unet


@dataclass(frozen=True, kw_only=True)
class ModelPin:
    """The network to use, fixed once at launch: a checkpoint that cannot change and the config it was trained with."""

    checkpoint: checkpoints.Pin
    config: TrainConfig


@dataclass(frozen=True)
class Model:
    """A network ready to be called.

    Attributes:
        predict: image float32 [B, H, W, 3] in [0, 1] and mask float32 [B, H, W, 1] to output float32
            [B, H, W, 3]; H and W multiples of ``stride``.
        stride: in pixels.
    """

    predict: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    stride: int


def find_model(run: str) -> ModelPin:
    """The newest checkpoint of a run.

    Raises:
        UserError: the folder is no run, or the run has no checkpoint yet.
    """
    data, _ = storage.read_versioned(storage.join(run, "config.json"))
    if data is None:
        if not storage.find(run):
            raise storage.NotFound(f"run {run} does not exist")
        raise UserError(f"{run} has no config.json: it is not the folder of a training run")
    try:
        config = presets.from_json(data)
    except ValueError as error:
        raise UserError(f"{run}/config.json is not a config: {error}") from None
    pin = checkpoints.find_latest(run)
    if pin is None:
        raise UserError(f"{run} has no checkpoint yet: training has not reached its first one")
    return ModelPin(checkpoint=pin, config=config)


def load_model(pin: ModelPin, precision: str | None = None) -> Model:
    """Builds the network from its config and reads its weights; runs no code from storage.

    Args:
        precision: ``float32`` or ``mixed_bfloat16``; by default what it was trained with.
    """
    unet = build_unet(pin.config.unet, dtype=precision or pin.config.precision)
    checkpoint = checkpoints.load_checkpoint(pin.checkpoint, ("model",))
    checkpoints.assign_variables(unet.variables, checkpoint.variables["model"])
    # Sizes are left open: one trace serves every size of image.
    signature = [tf.TensorSpec([None, None, None, channels], tf.float32) for channels in (3, 1)]
    predict = tf.function(lambda image, mask: unet([image, mask], training=False), input_signature=signature)
    return Model(predict=predict, stride=pin.config.unet.stride)


def _pad(array: np.ndarray, stride: int) -> np.ndarray:
    """Zeros, which are holes in a mask, below and to the right up to multiples of ``stride``."""
    bottom, right = (-array.shape[0] % stride, -array.shape[1] % stride)
    return np.pad(array, ((0, bottom), (0, right), (0, 0)))


def inpaint_batch(images: Sequence[np.ndarray], masks: Sequence[np.ndarray], model: Model) -> list[np.ndarray]:
    """Images with their holes filled; those of one padded size are computed together.

    Args:
        images: uint8 [height, width, 3] RGB each, of any sizes; what lies under holes does not matter.
        masks: uint8 [height, width] of {0, 1} each, 1 = valid.

    Returns:
        uint8 [height, width, 3] each: the network's output in the holes, the image's own values elsewhere.

    Raises:
        ValueError: an image and its mask differ in size, or have another dtype, shape or value.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    inputs = []
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if image.dtype != np.uint8 or image.shape[2:] != (3,) or image.size == 0:
            raise ValueError(f"image: expected uint8 [height, width, 3]. Received {image.dtype} {list(image.shape)}.")
        if mask.dtype != np.uint8 or mask.max(initial=0) > 1:  # 255 for valid would have every pixel replaced
            raise ValueError(f"mask: expected uint8 of 0 and 1. Received {mask.dtype} up to {mask.max(initial=0)}.")
        if image.shape[:2] != mask.shape:
            raise ValueError(f"mask: expected the image's size {image.shape[:2]}. Received {mask.shape}.")
        valid = mask[..., None].astype(np.float32)
        inputs.append((_pad(image.astype(np.float32) / 255 * valid, model.stride), _pad(valid, model.stride)))
        groups.setdefault(inputs[-1][0].shape, []).append(i)
    results: list[np.ndarray] = [np.empty(0)] * len(inputs)
    for members in groups.values():
        stacked = (np.stack([inputs[i][part] for i in members]) for part in (0, 1))
        for i, output in zip(members, model.predict(*stacked).numpy(), strict=True):
            height, width = masks[i].shape
            filled = np.rint(np.clip(output[:height, :width], 0, 1) * 255).astype(np.uint8)
            results[i] = np.where(masks[i][..., None] == 1, images[i], filled)
    return results


def inpaint(image: np.ndarray, mask: np.ndarray, model: Model) -> np.ndarray:
    """`inpaint_batch` for one image."""
    return inpaint_batch([image], [mask], model)[0]
