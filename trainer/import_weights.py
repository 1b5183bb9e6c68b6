"""Creates a run from a network that another implementation trained.

    python -m trainer.import_weights --from pconv-keras weights.26-1.07.h5 --run gs://B/runs/peer
    python -m trainer.import_weights --from naoto0804 1000000.pth --run gs://B/runs/peer

`pconv-keras` reads weights of MathiasGruber/PConv-Keras, `naoto0804` checkpoints of
naoto0804/pytorch-inpainting-with-partial-conv. The run holds them as a checkpoint of step 0 and as an
export, for pipelines.inpaint and pipelines.evaluate. Nothing in the file is executed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer import checkpoints, presets, runs, storage, weight_files
from trainer.checkpoints.files import State
from trainer.command import ArgumentParser, quiet_imports, run_command
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.model.published import Imported

SOURCES = ("pconv-keras", "naoto0804")


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m trainer.import_weights", description=__doc__)
    parser.add_argument(
        "--from", dest="source", required=True, choices=SOURCES, help="the implementation that wrote them"
    )
    parser.add_argument("file", metavar="FILE", help="the weights (local or in a bucket)")
    parser.add_argument("--run", required=True, help="folder for the new run")
    return parser


def read_network(source: str, address: str) -> Imported:
    """The network in a weights file of one of `SOURCES`.

    Raises:
        UserError: the file is missing or not of that implementation.
    """
    from trainer.model import published

    data = weight_files.fetch(address)
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


def write_run(imported: Imported, run: str) -> int:
    """Writes the run, its config last; returns the number of parameters.

    The config is the paper's preset with the network's own `unet`; the optimizer's state is that of a new training.

    Raises:
        UserError: an array is missing, unexpected or misshapen for the network of that config.
    """
    import keras

    from trainer.inference import export_formats
    from trainer.model.unet import build_unet

    config = dataclasses.replace(presets.PRESETS["paper"], unet=imported.config)
    model = build_unet(config.unet, dtype=config.precision, seed=config.seed)
    checkpoints.assign_variables(model.variables, imported.variables)
    optimizer = keras.optimizers.Adam(config.initial.learning_rate, name="adam")  # paths begin with it
    optimizer.build(model.trainable_variables)
    variables = {
        checkpoints.MODEL: checkpoints.read_variables(model.variables),
        checkpoints.OPTIMIZER: checkpoints.read_variables(optimizer.variables),
    }
    state: State = {"step": 0, "phase": config.phase_at(0), "examples": 0}
    pin = checkpoints.save_checkpoint(run, variables, state, config.checkpoint.keep, config=config)
    export_formats.export_model(run, config, checkpoints.load_for_inference(pin), {})
    runs.settle_config(run, config)
    return model.count_params()


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    address, run = storage.normalize(arguments.file), storage.normalize(arguments.run)
    if storage.find(run):
        raise UserError(f"--run: expected a new folder. Received {run}, which holds files.")
    with quiet_imports():
        import trainer.inference.export_formats  # noqa: F401  (TensorFlow, for both functions below)
    imported = read_network(arguments.source, address)
    checkpoints.require_finite(imported.variables, address)
    storage.require_writable(run)
    parameters = write_run(imported, run)
    print(f"{run}: a network of {imported.config.depth} levels and {parameters:,} parameters from {address}")
    for note in imported.notes or ("it computes what the other does, up to rounding",):
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    run_command(main)
