"""A run made of a network that another implementation trained: its checkpoint of step 0, its export and its config."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from trainer import checkpoints, presets, storage, weight_files
from trainer.errors import UserError
from trainer.inference import export_formats
from trainer.model import published
from trainer.model.unet import build_unet

SOURCES = ("pconv-keras", "naoto0804")


def read_network(source: str, address: str) -> published.Imported:
    """The network in a weights file of one of `SOURCES`.

    Raises:
        UserError: the file is missing or is none of that implementation.
    """
    data = storage.read(address)
    try:
        if source == "pconv-keras":
            return published.from_pconv_keras(weight_files.read_keras_h5(data, address))
        checkpoint = weight_files.read_torch(data, address)
        state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
        if not isinstance(state, dict) or not all(isinstance(array, np.ndarray) for array in state.values()):
            raise UserError('expected a checkpoint with a state dict "model". Received something else')
        return published.from_naoto0804(state)
    except UserError as error:
        raise UserError(str(error) if address in str(error) else f"{address}: {error}") from None


def write_run(imported: published.Imported, run: str) -> int:
    """Writes the run, its config last; returns the number of parameters.

    The config is the paper's preset with the network's own `unet`; the optimizer is as training would start with.

    Raises:
        UserError: an array is missing, superfluous or misshapen for a network of its kind.
    """
    config = dataclasses.replace(presets.PRESETS["paper"], unet=imported.config)
    model = build_unet(config.unet, dtype=config.precision, seed=config.seed)
    checkpoints.assign_variables(model.variables, imported.variables)
    optimizer = keras.optimizers.Adam(config.initial.learning_rate, name="adam")  # paths begin with it
    optimizer.build(model.trainable_variables)
    variables = {
        "model": checkpoints.read_variables(model.variables),
        "optimizer": checkpoints.read_variables(optimizer.variables),
    }
    state = {"step": 0, "phase": config.phase_at(0), "examples": 0}
    pin = checkpoints.save_checkpoint(run, variables, state, config.checkpoint.keep, config=config)
    export_formats.export_model(run, config, checkpoints.load_checkpoint(pin, ("model",)), {})
    storage.create(storage.join(run, "config.json"), presets.to_json(config))
    return model.count_params()
