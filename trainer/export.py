"""Exports a checkpoint of a run for other programs: .keras, TensorFlow SavedModel, ONNX.

    python -m trainer.export --run gs://B/runs/a --format saved_model,onnx
    python -m trainer.export --run gs://B/runs/a --checkpoint 4000 --format onnx --output exported

All files hold the weights that validation judged: the moving average (EMA) if the run keeps one. card.json beside them
says which they are, of which checkpoint, and the crc32c of each file: those that still have it are kept, others are
written again. ONNX needs the package tf2onnx (pip install 'pconv[onnx]').
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer import storage
from trainer.command import ArgumentParser, quiet_imports, run_command
from trainer.errors import UserError
from trainer.inference import EXPORT_FORMATS
from trainer.storage import recognize

if TYPE_CHECKING:
    from trainer.inference.pins import Card


def _formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in EXPORT_FORMATS]:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(EXPORT_FORMATS)}. Received {unknown[0]!r}.")
    return names


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m trainer.export", description=__doc__)
    parser.add_argument("--run", required=True, help="folder of the training run")
    parser.add_argument(
        "--format",
        type=_formats,
        default=["keras"],
        help=f"{', '.join(EXPORT_FORMATS)}, or several separated by commas (default keras)",
    )
    parser.add_argument(
        "--checkpoint", help="checkpoint of the run: best, latest or a step (default: best if there is one)"
    )
    parser.add_argument("--output", help="folder for the files (default: the run's exports/step-...)")
    return parser


def read_card(folder: str, crc32c: str, own: bool) -> Card | None:
    """The model card in a folder, None if it has none.

    Args:
        crc32c: of the checkpoint that is to be exported; the folder may hold an export of no other.
        own: whether the folder is the run's, where an export that was interrupted is completed.

    Raises:
        UserError: the folder holds something else.
    """
    from trainer.inference.export_formats import CARD, CARD_FORM

    card = CARD_FORM.read_if_any(storage.join(folder, CARD))
    if card is None:
        if not own and storage.find(folder):
            raise UserError(f"--output: expected a new folder. Received {folder}, which holds other files.")
        return None
    if card.checkpoint_crc32c != crc32c:
        raise UserError(f"{folder} holds the export of another checkpoint; --output puts this one into another folder")
    return card


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    with quiet_imports():
        from trainer import checkpoints
        from trainer.inference import export_formats
        from trainer.inference.predict import find_model
    run = storage.normalize(arguments.run)
    if arguments.output:
        recognize.require_folder("--output", storage.normalize(arguments.output))
    pin = find_model(run, arguments.checkpoint)
    checkpoint = checkpoints.load_for_inference(pin.checkpoint)
    own = export_formats.export_folder(run, checkpoint)
    card = read_card(own, pin.checkpoint.crc32c, own=True)
    folder = storage.normalize(arguments.output) if arguments.output else own
    there = card if folder == own else read_card(folder, pin.checkpoint.crc32c, own=False)
    kind = checkpoints.inference_weights(checkpoint).kind
    if there and there.weights != kind:
        # Cards without the field are of versions that exported raw weights where there was a moving average.
        raise UserError(
            f"{folder} holds an export that may be of other weights; --output puts this one into another folder"
        )
    storage.require_writable(run if folder == own else folder)
    storage.sweep(folder, lambda name: name.partition("/")[0] in export_formats.FILES)
    metrics = card.metrics if card else {}
    export_formats.export_model(run, pin.config, checkpoint, metrics, arguments.format, folder)
    print(f"{', '.join(arguments.format)} of step {checkpoint.state['step']} in {folder}")
    return 0


if __name__ == "__main__":
    run_command(main)
