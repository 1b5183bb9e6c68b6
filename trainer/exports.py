"""A trained network as one ``.keras`` file with a model card beside it.

    RUN/exports/step-00000400/model.keras   loads with ``keras.saving.load_model`` after ``import trainer.layers``
                              card.json     step, examples, checkpoint it was made from, loss terms, config
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile

from trainer import checkpoints, storage
from trainer.config import TrainConfig
from trainer.unet import build_unet

MODEL, CARD = "model.keras", "card.json"


def export_model(run: str, config: TrainConfig, checkpoint: checkpoints.Checkpoint, metrics: dict) -> str:
    """Writes the export of ``checkpoint`` unless it is there already; returns its folder.

    The network is stored in float32 and takes any multiple of ``config.unet.stride`` as input size.
    """
    folder = storage.join(run, "exports", f"step-{checkpoint.state['step']:08d}")
    model = build_unet(config.unet, dtype="float32")
    checkpoints.assign_variables(model.variables, checkpoint.variables["model"])
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, MODEL)
        model.save(path)
        with open(path, "rb") as file:
            _create_once(storage.join(folder, MODEL), file.read())
    card = {
        **checkpoint.state,
        "checkpoint": storage.relative(checkpoint.pin.address, run),
        "checkpoint_crc32c": checkpoint.pin.crc32c,
        "metrics": metrics,
        "config": dataclasses.asdict(config),
        "input": "image [B, H, W, 3] in [0, 1]; mask [B, H, W, 1], 1 = valid; "
        f"H and W multiples of {config.unet.stride}",
    }
    _create_once(storage.join(folder, CARD), json.dumps(card, indent=1, sort_keys=True).encode())
    return folder


def _create_once(address: str, data: bytes) -> None:
    try:
        storage.create(address, data)
    except storage.AlreadyExists:
        pass
