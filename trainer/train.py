"""Trains the network on Ray workers, or continues a run that was interrupted.

    python -m trainer.train --preset demo --images gs://B/imagenet --masks gs://B/masks --run gs://B/runs/a

The run's folder holds the resolved config, checkpoints, TensorBoard logs, what was printed, exports and a summary.
The same command continues the run from its newest checkpoint, with the same number of workers or another; a run that
is complete is left alone. With another config, or on other records, only what --allow-config-change names may differ.
--dry-run shows what would be done.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from trainer import presets, runs, storage
from trainer.command import ArgumentParser, quiet_imports, run_command
from trainer.config import ScalingConfig, TrainConfig
from trainer.data import folders
from trainer.errors import ConfigChanged, UserError
from trainer.model.precision import find_policy
from trainer.storage import recognize
from trainer.training.ray_session import TENSORFLOW_PORTS, check_cluster, check_place

if TYPE_CHECKING:
    from trainer.training.validation import HeldOut


_NO_RUNS = ("dataset", "shards", "checkpoint", "export")  # in which no run may begin


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m trainer.train", description=__doc__)
    parser.add_argument("--preset", required=True, choices=presets.PRESETS, help="the config to start from")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one value of the config; repeatable"
    )
    parser.add_argument("--images", required=True, help="dataset of image records (local or in a bucket)")
    parser.add_argument("--masks", required=True, help="dataset of mask records of unet.image_size")
    parser.add_argument("--val-images", help="dataset to validate on (default: split validation.split of --images)")
    parser.add_argument("--val-masks", help="dataset to validate on (default: split validation.split of --masks)")
    parser.add_argument("--run", required=True, help="the run's folder; created, or continued")
    parser.add_argument(
        "--allow-config-change",
        action="append",
        default=[],
        metavar="KEY",
        choices=[*presets.flatten(presets.PRESETS["paper"]), *runs.DATASETS],
        help="a key whose value may differ from the run's config.json, or images or masks, which may be others than in "
        "its data.json; repeatable",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be done and check all addresses; start nothing"
    )
    parser.add_argument(
        "--address",
        help="Ray cluster to join, HOST:PORT or auto (default: this machine alone, in one process, on loopback)",
    )
    parser.add_argument(
        "--trusted-network",
        action="store_true",
        help="the network between the cluster's machines is private; several workers need it, for TensorFlow's servers "
        f"in them ask for no password (ports {TENSORFLOW_PORTS[0]} to {TENSORFLOW_PORTS[-1]})",
    )
    parser.add_argument("--verbose", action="store_true", help="show the logs of Ray and of the workers")
    return parser


class Plan(NamedTuple):
    """A training that has been checked and can start.

    Attributes:
        images, masks, run: addresses.
        address: of the Ray cluster to train on; None for this machine.
        image_count, mask_count: records to train on.
        held_out: what to validate on, if anything.
        validation: a sentence about it.
        earlier: workers that the run had before; None if it is new.
    """

    config: TrainConfig
    images: str
    masks: str
    run: str
    address: str | None
    image_count: int
    mask_count: int
    held_out: HeldOut | None
    validation: str
    earlier: int | None

    @property
    def readers(self) -> int:
        """Processes that read the datasets."""
        return self.config.scaling.workers if self.address else 1


def check(arguments: argparse.Namespace) -> Plan:
    """Resolves the config and checks everything the training will use, before Ray starts.

    Raises:
        UserError: a value, dataset, weights file or the run's folder is not as it should be.
    """
    config = presets.resolve_config(arguments.preset, arguments.set)
    address = check_place(arguments.address, config.scaling, arguments.trusted_network)
    if address is not None:
        check_cluster(address)
    images, masks, run = (storage.normalize(a) for a in (arguments.images, arguments.masks, arguments.run))
    val_images, val_masks = (a and storage.normalize(a) for a in (arguments.val_images, arguments.val_masks))
    with quiet_imports():
        from trainer.data.batches import check_datasets, fit_streams
        from trainer.model.losses import needs_features
        from trainer.model.vgg import load_weights
        from trainer.training.validation import find_held_out
    _check_run(run, (images, masks, val_images, val_masks))
    folders.require_kind(run, folders.RUN)
    size, earlier = config.unet.image_size, runs.find_config(run)
    if not config.data.streams:  # a run keeps its order of examples
        streams = earlier.data.streams if earlier else fit_streams(images, masks, config.data, _numbers(config.scaling))
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, streams=streams))
    image_count, mask_count = check_datasets(images, masks, config.data, size, workers=config.scaling.workers)
    held_out, validation = find_held_out(config.validation, size, images, masks, val_images, val_masks)
    config = presets.resolve_epochs(config, image_count)
    if needs_features(config.loss):
        load_weights(config.loss.vgg)
    storage.require_writable(run)
    try:
        runs.compare_config(run, config, arguments.allow_config_change)
    except ConfigChanged as error:
        raise UserError(f"{error} --allow-config-change KEY permits it.") from None
    workers = earlier.scaling.workers if earlier else None
    return Plan(config, images, masks, run, address, image_count, mask_count, held_out, validation, workers)


def _numbers(scaling: ScalingConfig) -> list[int]:
    """How many workers there may be, the wanted number last."""
    return [*range(scaling.min_workers or scaling.workers, scaling.workers + 1)]


def _check_run(run: str, datasets: Collection[str | None]) -> None:
    """Raises `UserError` for a folder that holds something else, or is a part of a run."""
    thing = recognize.look(run)
    if run in datasets or thing.kind in _NO_RUNS or thing.whole:
        raise UserError(f"--run: expected a new folder, or the folder of a run. Received {run}, {thing.what}.")


def records_of(plan: Plan) -> dict[str, runs.Records]:
    """The records to train on, for the run's data.json."""
    split = plan.config.data.split
    kinds = {"images": (plan.images, "image"), "masks": (plan.masks, "mask")}
    return {name: runs.Records.of(address, kind, split) for name, (address, kind) in kinds.items()}


def check_data(plan: Plan, allowed: Collection[str]) -> None:
    """Raises `UserError` unless the records to train on are the run's, if it has any, or ``allowed`` to be others."""
    if not storage.exists(storage.join(plan.run, runs.DATA)):
        return
    try:
        runs.compare_data(plan.run, records_of(plan), allowed)
    except ConfigChanged as error:
        raise UserError(f"{error} --allow-config-change images (or masks) permits it.") from None


def show_plan(plan: Plan) -> None:
    """Prints the config, data, memory and starting step of a training; checks every shard and the run's folder."""
    from trainer.checkpoints.restore import load_newest
    from trainer.training import dry_run

    used = {"images": ("image", plan.images), "masks": ("mask", plan.masks)}
    split = plan.config.data.split
    checks = [(plan.images, "image", split), (plan.masks, "mask", split)]
    if held_out := plan.held_out:
        used |= {"val images": ("image", held_out.images), "val masks": ("mask", held_out.masks)}
        split = plan.config.validation.split
        checks += [(held_out.images, "image", split), (held_out.masks, "mask", split)]
    print("\n".join(dry_run.describe_plan(plan.config, used, plan.validation)))
    print("\n".join(dry_run.describe_reads(plan.config, plan.images, plan.masks, plan.readers)))
    if change := describe_change(plan):
        print(f"workers    {change}")
    for folder, kind, split in checks:
        print(dry_run.check_shards(folder, kind, split))
    storage.try_writing(plan.run)
    print(f"writable   {plan.run}")
    found = load_newest(plan.run)
    print(f"continues  after step {found.checkpoint.state['step']}" if found else "starts     at step 0")


def describe_change(plan: Plan) -> str | None:
    """What it costs that a run continues with another number of workers, if it does."""
    from trainer.training import dry_run

    if plan.earlier in (None, plan.config.scaling.workers) or not plan.address:
        return None
    return dry_run.describe_change(plan.config, plan.images, plan.masks, plan.earlier, plan.readers)


def main(argv: Sequence[str]) -> int:
    arguments = parser().parse_args(argv)
    plan = check(arguments)
    check_data(plan, arguments.allow_config_change)
    if arguments.dry_run:
        show_plan(plan)
        return 0
    if is_complete(plan):
        print(f"training is complete: step {plan.config.total_steps} of {plan.config.total_steps} in {plan.run}")
        return 0
    config = plan.config
    runs.settle_config(plan.run, config, arguments.allow_config_change)
    runs.settle_data(plan.run, records_of(plan), arguments.allow_config_change)
    with runs.RunLog(plan.run) as log:
        train(plan, arguments.verbose, log)
    return 0


def is_complete(plan: Plan) -> bool:
    """Whether the run has all steps, in a checkpoint that can be read, an export and a summary."""
    steps = plan.config.total_steps
    if not runs.is_exported(plan.run, steps):
        return False
    from trainer.checkpoints.restore import load_newest

    found = load_newest(plan.run)
    return found is not None and not found.skipped and found.checkpoint.state["step"] == steps


def train(plan: Plan, verbose: bool, log: runs.RunLog) -> None:
    """Trains on Ray."""
    config = plan.config
    many = "workers" if plan.address else f"{config.scaling.device} devices"
    times = f" x {config.accumulate} parts of a step" if config.accumulate > 1 else ""
    precision = find_policy(config.precision, config.scaling.device)
    if plan.address:  # whose machines may compute what this one does not
        precision = config.precision
    elif precision != config.precision:
        precision += " as this processor has no instructions for bfloat16"
    log.show(
        f"{plan.image_count} images, {plan.mask_count} masks; {config.scaling.workers} {many} x "
        f"{config.per_worker_batch_size} examples{times}, {precision}; {plan.validation}"
    )
    if change := describe_change(plan):
        log.show(change)
    with quiet_imports():
        from trainer.training.ray_workers import run_on_ray

    job = {"images": plan.images, "masks": plan.masks, "run": plan.run, "held_out": plan.held_out}
    run_on_ray(config, job, plan.address, verbose, log)


if __name__ == "__main__":
    run_command(main)
