"""Makes a run of a network that another implementation trained.

    python -m trainer.import_weights --from pconv-keras weights.26-1.07.h5 --run gs://B/runs/peer
    python -m trainer.import_weights --from naoto0804 1000000.pth --run gs://B/runs/peer

`pconv-keras` reads weights of MathiasGruber/PConv-Keras, `naoto0804` checkpoints of
naoto0804/pytorch-inpainting-with-partial-conv. The run holds them as a checkpoint of step 0 and as an
export, for pipelines.inpaint and pipelines.evaluate. Nothing in the file is executed.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer import storage
from trainer.command import ArgumentParser, quiet_imports, run_command
from trainer.errors import UserError


def parse_arguments(argv: Sequence[str]):
    parser = ArgumentParser(prog="python -m trainer.import_weights", description=__doc__)
    parser.add_argument("--from", dest="source", required=True, metavar="pconv-keras|naoto0804", help="whose they are")
    parser.add_argument("file", metavar="FILE", help="the weights (local or gs://)")
    parser.add_argument("--run", required=True, help="folder for the new run")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    with quiet_imports():
        from trainer import imports
    if arguments.source not in imports.SOURCES:
        raise UserError(f"--from: expected one of {imports.SOURCES}. Received {arguments.source!r}.")
    address, run = storage.normalize(arguments.file), storage.normalize(arguments.run)
    if storage.find(run):
        raise UserError(f"--run: expected a new folder. Received {run}, which holds files.")
    imported = imports.read_network(arguments.source, address)
    storage.require_writable(run)
    parameters = imports.write_run(imported, run)
    print(f"{run}: a network of {imported.config.depth} levels and {parameters:,} parameters from {address}")
    for note in imported.notes or ("it computes what the other does, up to rounding",):
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    run_command(main)
