"""Inpainting of arrays with a trained network, for the batch job, notebooks and services.

    model = load_model(find_model("gs://B/runs/a"))  # or starter(), which comes with the package
    filled = inpaint(image, mask, model)

Valid pixels are returned bit for bit. Images are gray or RGB, with or without alpha, of 8 or 16 bits and of any size:
up to `Tiling.size` they are computed at once, larger ones in windows around their holes. Loading a model takes
seconds, so a service does it once; `inpaint` is thread-safe.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer import checkpoints, storage, weight_files
from trainer.errors import UserError, no_gpu
from trainer.inference import DEVICES, arrays
from trainer.inference.filling import Model, fill_images
from trainer.inference.pins import MODEL, STARTER, STARTER_WEIGHTS, ModelPin, find_export, find_model, starter
from trainer.inference.windows import Tiling, make_sides
from trainer.model.precision import find_policy
from trainer.model.unet import build_unet

__all__ = ["Model", "ModelPin", "find_export", "find_model", "inpaint", "inpaint_batch", "load_model", "starter"]

GPU_BATCH = 8


# Loading


def load_model(
    pin: ModelPin,
    precision: str | None = None,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    window: int | None = None,
) -> Model:
    """Builds the network from its config and reads the weights that validation judged; runs no code from storage.

    Args:
        precision: a Keras dtype policy such as ``float32`` or ``mixed_bfloat16``; by default what it was trained with,
            or float32 where `precision.find_policy` says so.
        device: ``cpu``, ``gpu``, or ``auto`` for a GPU if there is one.
        batch_size: images of 512 x 512 per batch; by default 8 on a GPU and 1 on a CPU, where more is no faster.
        window: longest side in pixels that is computed at once; by default twice the training crops', at most 1024:
            a network does not fill across distances that it was never shown.

    Raises:
        UserError: the weights do not fit the config, or are not finite.
        DeviceError: there is no GPU.
    """
    if not isinstance(pin, ModelPin):
        expected = "what find_model, find_export or starter returns"
        raise ValueError(f"pin: expected {expected}. Received {type(pin).__name__}.")
    if device not in DEVICES:
        raise ValueError(f"device: expected one of {DEVICES}. Received {device!r}.")
    gpus = tf.config.list_logical_devices("GPU")
    if device == "gpu" and not gpus:
        raise no_gpu("device gpu")
    uses_gpu = bool(gpus) and device != "cpu"
    place = (lambda: tf.device("CPU:0")) if device == "cpu" else nullcontext
    with place():
        unet = _restore_unet(pin, precision or find_policy(pin.config.precision, "gpu" if uses_gpu else "cpu"))
    # Sizes are open: one trace serves images of every size.
    signature = [tf.TensorSpec([None, None, None, channels], tf.float32) for channels in (3, 1)]
    traced = tf.function(lambda image, mask: unet([image, mask], training=False), input_signature=signature)

    def predict(image, mask):
        with place():
            return traced(image, mask)

    unet_config = pin.config.unet
    size = unet_config.image_size
    tiling = Tiling(size=max(window or min(2 * size, max(size, Tiling.size)), unet_config.stride))
    return Model(
        predict=predict,
        stride=unet_config.stride,
        sides=make_sides(unet_config.stride, size, largest=tiling.size),
        batch_size=batch_size or (GPU_BATCH if uses_gpu else 1),
        tiling=tiling,
    )


def _restore_unet(pin: ModelPin, dtype: str) -> keras.Model:
    """The network of a pin with its weights; raises `UserError` if they do not fit."""
    address, config = pin.checkpoint.address, pin.config.unet
    if address.endswith(".keras"):
        data = storage.read(address, pin.checkpoint.crc32c, weight_files.MAX_BYTES)
        weight_files.check_keras(data, address)
        checkpoints.require_fit(config, len(data), address)
        unet = build_unet(config, dtype=dtype)
        _load_weights(unet, data, address)
    elif address == STARTER:
        unet = build_unet(config, dtype=dtype)
        checkpoints.assign_variables(unet.variables, read_starter(pin.checkpoint.crc32c))
    else:
        weights = checkpoints.inference_weights(checkpoints.load_for_inference(pin.checkpoint))
        checkpoints.require_fit(config, sum(array.nbytes for array in weights.arrays.values()), address)
        unet = build_unet(config, dtype=dtype)
        checkpoints.assign_variables(unet.variables, weights.arrays)
    return unet


def read_starter(crc32c: str) -> dict[str, np.ndarray]:
    """The arrays of the starter model that is installed here, float32; raises `UserError` if it is another."""
    data = STARTER_WEIGHTS.read_bytes()
    if storage.crc32c(data) != crc32c:
        raise UserError(
            "starter: expected the model of the version that launched this job. Received another, or a damaged one: "
            f"{STARTER_WEIGHTS}. Install the same version of pconv on all machines."
        )
    arrays = weight_files.read_npz(data, str(STARTER_WEIGHTS))
    return {path: array.astype(np.float32) for path, array in arrays.items()}


def _load_weights(unet, data: bytes, address: str) -> None:
    """Sets a network's weights from an exported ``.keras`` file, which was read from ``address``."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, MODEL)
        path.write_bytes(data)
        try:
            unet.load_weights(path)  # reads only the weights of a .keras file, not the code that builds the model
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{address} does not fit the network of its card: {reason}") from None
    checkpoints.require_finite({variable.path: np.asarray(variable) for variable in unet.variables}, address)


# Inpainting


def fill_batch(images: Iterable[Any], masks: Iterable[Any], model: Model) -> tuple[list[np.ndarray], list[int]]:
    """`inpaint_batch`, and the number of windows computed for each image."""
    if not isinstance(model, Model):
        raise ValueError(f"model: expected what load_model returns. Received {type(model).__name__}.")
    pairs = arrays.as_pairs(images, masks)
    results = [np.array(image, order="C") for image, _ in pairs]
    pixels = [result[..., None] if result.ndim == 2 else result for result in results]
    return results, fill_images(pixels, [mask for _, mask in pairs], model)


def inpaint_batch(images: Iterable[Any], masks: Iterable[Any], model: Model) -> list[np.ndarray]:
    """Fills the holes of images; those of one padded size share batches.

    Args:
        images: uint8 or uint16 each, of any sizes: [height, width] gray, or [height, width, channels] with 1 gray, 2
            gray and alpha, 3 RGB, 4 RGB and alpha. Pixels under holes are ignored. Images of Pillow's, tensors and
            nested lists of numbers will do, too: see `arrays.as_image`.
        masks: uint8 or bool [height, width] of {0, 1} each, 1 = valid; Pillow's of mode 1, white = valid.

    Returns:
        arrays of the images' dtypes and shapes: the network's output in the holes, the original values elsewhere and in
        alpha. An image without any valid pixel becomes black.

    Raises:
        ValueError: an image and its mask differ in size, or have an unsupported dtype, shape or value; the message
            says what was expected.
    """
    return fill_batch(images, masks, model)[0]


def inpaint(image: Any, mask: Any, model: Model) -> np.ndarray:
    """`inpaint_batch` for one image, such as an array or one of Pillow's; an array."""
    return inpaint_batch([image], [mask], model)[0]


def with_batch_size(model: Model, batch_size: int) -> Model:
    """The same network with another batch size."""
    return dataclasses.replace(model, batch_size=batch_size)
