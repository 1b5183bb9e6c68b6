"""Creates a run from a network that is trained already: another implementation's, or the starter model.

    python -m trainer.import_weights --from pconv-keras weights.26-1.07.h5 --run gs://B/runs/peer
    python -m trainer.import_weights --from naoto0804 1000000.pth --run gs://B/runs/peer
    python -m trainer.import_weights --from starter --run gs://B/runs/mine

`pconv-keras` reads weights of MathiasGruber/PConv-Keras, `naoto0804` checkpoints of
naoto0804/pytorch-inpainting-with-partial-conv, `starter` the small model that comes with this package. The run holds
them as a checkpoint of step 0, from which trainer.train goes on with the options that are printed, and as an export,
for pipelines.inpaint and pipelines.evaluate. Nothing in the file is executed.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer import checkpoints, presets, runs, storage, weight_files
from trainer.checkpoints.files import State
from trainer.command import ArgumentParser, quiet_imports, run_command
from trainer.errors import UserError
from trainer.inference import pins

if TYPE_CHECKING:
    from trainer.config import UNetConfig
    from trainer.model.published import Imported

# And the preset with whose other settings each is trained on.
SOURCES = {"pconv-keras": "paper", "naoto0804": "paper", pins.STARTER: "demo"}


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m trainer.import_weights", description=__doc__)
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=SOURCES,
        help="the implementation that wrote them, or starter, which needs no file",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="the weights (local or in a bucket)")
    parser.add_argument("--run", required=True, help="folder for the new run")
    return parser


def read_network(source: str, address: str | None) -> Imported:
    """The network in a weights file of one of `SOURCES`, or the starter model.

    Raises:
        UserError: the file is missing or not of that implementation.
    """
    from trainer.model import published

    if address is None:
        from trainer.inference import predict

        pin = pins.starter()
        return published.Imported(pin.config.unet, predict.read_starter(pin.checkpoint.crc32c), ())
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


def write_run(imported: Imported, preset: str, run: str) -> int:
    """Writes the run, its config last; returns the number of parameters.

    The config is the preset with the network's own `unet`; the optimizer's state is that of a new training.

    Raises:
        UserError: an array is missing, unexpected or misshapen for the network of that config.
    """
    import keras

    from trainer.inference import export_formats
    from trainer.model.unet import build_unet

    config = dataclasses.replace(presets.PRESETS[preset], unet=imported.config)
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


def options_of(config: UNetConfig, preset: str) -> str:
    """The options of trainer.train for a network of a config, as a shell takes them."""
    before, after = dataclasses.asdict(presets.PRESETS[preset].unet), dataclasses.asdict(config)
    changed = {key: value for key, value in after.items() if value != before[key]}
    texts = [
        f"unet.{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for key, value in changed.items()
    ]
    return shlex.join(["--preset", preset, *(part for text in texts for part in ("--set", text))])


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    source, run = arguments.source, storage.normalize(arguments.run)
    address = storage.normalize(arguments.file) if arguments.file else None
    if (address is None) != (source == pins.STARTER):
        expected = "no file with --from starter, which is in this package" if address else "a file of weights"
        raise UserError(f"FILE: expected {expected}. Received {arguments.file or 'none'}.")
    if storage.find(run):
        raise UserError(f"--run: expected a new folder. Received {run}, which holds files.")
    with quiet_imports():
        import trainer.inference.export_formats  # noqa: F401  (TensorFlow, for both functions below)
    imported = read_network(source, address)
    name = address or "the starter model"
    checkpoints.require_finite(imported.variables, name)
    storage.require_writable(run)
    parameters = write_run(imported, SOURCES[source], run)
    print(f"{run}: a network of {imported.config.depth} levels and {parameters:,} parameters from {name}")
    same = ("it computes what the other does, up to rounding",) if address else ()
    for note in imported.notes or same:
        print(f"note: {note}")
    print(f"trained on by: trainer.train --run {shlex.quote(run)} {options_of(imported.config, SOURCES[source])} ...")
    return 0


if __name__ == "__main__":
    run_command(main)
