"""Exports a trained network to files that other programs load, with a model card.

    RUN/exports/step-00000400/model.keras   loads with ``keras.saving.load_model`` after ``import trainer.model.unet``
                              saved_model/  TensorFlow SavedModel, signature ``serving_default``
                              model.onnx    ONNX, opset 18
                              card.json     step, examples, checkpoint it was made from, whether its weights are
                                            the moving average (ema) or not (raw), loss terms, config, crc32c of
                                            the files; written last

All have the inputs ``image`` and ``mask`` of `build_unet` with batch, height and width open; SavedModel
and ONNX name their output ``output`` and do not need this project. Pixels under holes, even NaN, have no
effect in any of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from trainer import checkpoints, storage
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.inference.pins import CARD, CARD_FORM, MODEL
from trainer.model.unet import build_unet

SAVED_MODEL, ONNX = "saved_model", "model.onnx"
FILES = (MODEL, SAVED_MODEL, ONNX, CARD)
PRINCIPAL = {"keras": MODEL, "saved_model": f"{SAVED_MODEL}/saved_model.pb", "onnx": ONNX}  # file of each format
OPSET = 18  # the newest that tf2onnx 1.17 is tested with


def export_folder(run: str, checkpoint: checkpoints.Checkpoint) -> str:
    """Address of the folder for a run's export of a checkpoint."""
    return storage.join(run, "exports", f"step-{checkpoint.state['step']:08d}")


def export_model(
    run: str,
    config: TrainConfig,
    checkpoint: checkpoints.Checkpoint,
    metrics: dict,
    formats: Sequence[str] = ("keras",),
    folder: str | None = None,
) -> str:
    """Writes the files of an export that are not there as its card has them; returns its folder.

    The network is stored in float32 and takes inputs whose sides are multiples of ``config.unet.stride``. An export of
    another checkpoint, or of other weights, is replaced as a whole.

    Args:
        checkpoint: from `checkpoints.load_for_inference`, or with all parts.
        metrics: for the card.
        formats: of `trainer.inference.EXPORT_FORMATS`.
        folder: `export_folder` by default.

    Raises:
        UserError: the checkpoint does not fit the config, its weights are not finite, or a format needs a package
            that is not installed.
    """
    storage.confine(folder or run)
    folder = folder or export_folder(run, checkpoint)
    weights = checkpoints.inference_weights(checkpoint)
    there = CARD_FORM.read_if_any(storage.join(folder, CARD))
    if there is not None and (there.checkpoint_crc32c, there.weights) != (checkpoint.pin.crc32c, weights.kind):
        there = None
    files = _intact(folder, there.files) if there else {}
    missing = [name for name in formats if PRINCIPAL[name] not in files]
    if there is not None and not missing:
        return folder
    size = sum(array.nbytes for array in weights.arrays.values())
    checkpoints.require_fit(config.unet, size, checkpoint.pin.address)
    model = build_unet(config.unet, dtype="float32")
    checkpoints.assign_variables(model.variables, weights.arrays)
    writers = {"keras": _write_keras, "saved_model": _write_saved_model, "onnx": _write_onnx}
    with tempfile.TemporaryDirectory() as scratch:
        for name in missing:
            writers[name](model, scratch)
        if there is None:
            _remove(folder)
        files |= _publish(scratch, folder)
    card = {
        **checkpoint.state,
        "checkpoint": storage.relative(checkpoint.pin.address, run),
        "checkpoint_crc32c": checkpoint.pin.crc32c,
        "weights": weights.kind,
        "files": files,
        "metrics": there.metrics if there else metrics,
        "config": dataclasses.asdict(config),
        "input": "image [B, H, W, 3] in [0, 1]; mask [B, H, W, 1], 1 = valid; "
        f"H and W multiples of {config.unet.stride}",
    }
    storage.overwrite(storage.join(folder, CARD), json.dumps(card, indent=1, sort_keys=True).encode())
    return folder


def _format_of(name: str) -> str:
    """The format that a file of an export belongs to, by its path; empty for other files."""
    return next((kind for kind, main in PRINCIPAL.items() if main.split("/")[0] == name.split("/")[0]), "")


def _intact(folder: str, listed: dict[str, str]) -> dict[str, str]:
    """What a card lists, of the formats whose files are all as it says."""
    present = {storage.relative(address, folder) for address in storage.find(folder)}
    damaged = {
        _format_of(name)
        for name, crc32c in listed.items()
        if name not in present or storage.checksum(storage.join(folder, name)) != crc32c
    }
    return {name: crc32c for name, crc32c in listed.items() if _format_of(name) not in {"", *damaged}}


def _remove(folder: str) -> None:
    """Removes an export, its card first: what is left of a folder without one is not an export."""
    found = [storage.relative(address, folder) for address in storage.find(folder)]
    for name in [CARD, *(name for name in found if _format_of(name))]:
        storage.delete(storage.join(folder, name))


def _publish(scratch: str, folder: str) -> dict[str, str]:
    """Writes the files below a local folder into an export's; returns their crc32c by path."""
    paths, written = [path for path in Path(scratch).rglob("*") if path.is_file()], {}
    # A folder is a SavedModel once it has its saved_model.pb: that is written last.
    for path in sorted(paths, key=lambda path: (path.suffix == ".pb", path)):
        name, data = path.relative_to(scratch).as_posix(), path.read_bytes()
        storage.overwrite(storage.join(folder, name), data)
        written[name] = storage.crc32c(data)
    return written


def _write_keras(model: keras.Model, folder: str) -> None:
    model.save(os.path.join(folder, MODEL))


def _write_saved_model(model: keras.Model, folder: str) -> None:
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serve", *_named(model))
    archive.write_out(os.path.join(folder, SAVED_MODEL), verbose=False)


def _write_onnx(model: keras.Model, folder: str) -> None:
    try:
        import tf2onnx
    except ImportError:
        raise UserError("ONNX export needs tf2onnx: pip install 'pconv[onnx]'") from None

    def convert_select(graph, node, *_):
        node.type = "Where"  # tf2onnx would multiply and add, but 0 * NaN is NaN

    predict, signature = _named(model)
    proto, _ = tf2onnx.convert.from_function(
        tf.function(predict, input_signature=signature),
        input_signature=signature,
        opset=OPSET,
        custom_op_handlers={"SelectV2": (convert_select, [])},
    )
    for value in (*proto.graph.input, *proto.graph.output):
        for name, size in zip(("batch", "height", "width"), value.type.tensor_type.shape.dim, strict=False):
            size.dim_param = name
    Path(folder, ONNX).write_bytes(proto.SerializeToString())


def _named(model: keras.Model):
    """Prediction with named inputs and output, and its signature."""
    signature = [tf.TensorSpec((None, None, None, c), tf.float32, name) for name, c in (("image", 3), ("mask", 1))]
    return lambda image, mask: {"output": model([image, mask], training=False)}, signature
