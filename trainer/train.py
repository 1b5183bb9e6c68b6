"""Trains the network on Ray workers, or continues a run that was interrupted.

    python -m trainer.train --preset demo --images gs://B/imagenet --masks gs://B/masks --run gs://B/runs/a

The run's folder keeps the resolved config, checkpoints, logs for TensorBoard, exports and a summary. The same
command continues the run from its newest checkpoint, with the same number of workers or another. --dry-run
shows what would be done.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer import presets, storage
from trainer.command import ArgumentParser, quiet_imports, run_command
from trainer.config import TrainConfig
from trainer.errors import UserError

# What a run may change when it continues: none of these alter what a step computes.
_FREE = ("scaling.", "checkpoint.", "validation.", "log_every", "skip_nonfinite")


def parse_arguments(argv: Sequence[str]):
    parser = ArgumentParser(prog="python -m trainer.train", description=__doc__)
    parser.add_argument("--preset", required=True, help=f"the config to start from: {', '.join(presets.PRESETS)}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replaces one value of the config; repeatable"
    )
    parser.add_argument("--images", required=True, help="dataset of image records (local folder or gs://)")
    parser.add_argument("--masks", required=True, help="dataset of mask records of unet.image_size")
    parser.add_argument("--val-images", help="dataset to validate on (default: split validation.split of --images)")
    parser.add_argument("--val-masks", help="dataset to validate on (default: split validation.split of --masks)")
    parser.add_argument("--run", required=True, help="the run's folder: made, or continued")
    parser.add_argument(
        "--allow-config-change",
        action="append",
        default=[],
        metavar="KEY",
        help="a key whose value may differ from the run's config.json; repeatable",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be done and check all addresses; start nothing"
    )
    parser.add_argument("--address", help="Ray cluster to join (default: workers on this machine)")
    parser.add_argument("--verbose", action="store_true", help="show the log of Ray and of the workers")
    return parser.parse_args(argv)


def resolve_config(preset: str, assignments: Sequence[str]) -> TrainConfig:
    if preset not in presets.PRESETS:
        raise UserError(f"--preset: expected one of {sorted(presets.PRESETS)}. Received {preset!r}.")
    try:
        return presets.override(presets.PRESETS[preset], assignments)
    except ValueError as error:
        raise UserError(str(error)) from None


def compare_config(run: str, config: TrainConfig, allowed: Sequence[str]) -> object:
    """Refuses to continue a run with another config; returns the generation of its ``config.json``.

    Raises:
        UserError: naming the keys that differ and are not ``allowed`` to.
    """
    ours = presets.flatten(config)
    if unknown := set(allowed) - ours.keys():
        raise UserError(f"--allow-config-change: unknown key {sorted(unknown)[0]!r}. Valid keys: {', '.join(ours)}.")
    address = storage.join(run, "config.json")
    data, generation = storage.read_versioned(address)
    if data is None:
        return generation
    try:
        theirs = presets.flatten(presets.from_json(data))
    except ValueError as error:
        raise UserError(f"{address} is not a config: {error}") from None
    changed = [k for k in ours if ours[k] != theirs[k] and k not in allowed and not k.startswith(_FREE)]
    if changed:
        listed = ", ".join(f"{key} is {theirs[key]}, asked for {ours[key]}" for key in changed)
        raise UserError(f"{run} was started with another config: {listed}. --allow-config-change KEY permits it.")
    return generation


def settle_config(run: str, config: TrainConfig, allowed: Sequence[str]) -> None:
    """Writes ``config.json`` of a new run, or of one that continues with permitted changes; see `compare_config`."""
    generation = compare_config(run, config, allowed)
    address, data = storage.join(run, "config.json"), presets.to_json(config)
    if storage.read_versioned(address)[0] != data:
        storage.replace(address, data, generation)


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    config = resolve_config(arguments.preset, arguments.set)
    images, masks, run = (storage.normalize(a) for a in (arguments.images, arguments.masks, arguments.run))
    val_images, val_masks = (a and storage.normalize(a) for a in (arguments.val_images, arguments.val_masks))
    with quiet_imports():
        from trainer.checkpoints.restore import load_newest
        from trainer.data.batches import check_datasets
        from trainer.model.vgg import load_weights
        from trainer.training.validation import find_held_out
    size = config.unet.image_size
    image_count, mask_count = check_datasets(images, masks, config.data, size, workers=config.scaling.workers)
    held_out, validation = find_held_out(config.validation, size, images, masks, val_images, val_masks)
    config = presets.resolve_epochs(config, image_count)
    if config.loss.needs_features:
        load_weights(config.loss.vgg)
    storage.require_writable(run)
    compare_config(run, config, arguments.allow_config_change)
    if arguments.dry_run:
        from trainer.training import dry_run

        used = {"images": ("image", images), "masks": ("mask", masks)}
        checks = [(images, "image", config.data.split), (masks, "mask", config.data.split)]
        if held_out:
            used |= {"val images": ("image", held_out.images), "val masks": ("mask", held_out.masks)}
            split = config.validation.split
            checks += [(held_out.images, "image", split), (held_out.masks, "mask", split)]
        print("\n".join(dry_run.describe_plan(config, used, validation)))
        for check in checks:
            print(dry_run.check_shards(*check))
        print(dry_run.check_writable(run))
        found = load_newest(run)
        print(f"continues  after step {found.checkpoint.state['step']}" if found else "starts     at step 0")
        return 0
    settle_config(run, config, arguments.allow_config_change)
    print(
        f"{image_count} images, {mask_count} masks; {config.scaling.workers} workers x "
        f"{config.per_worker_batch_size} examples, {config.precision}; {validation}",
        flush=True,
    )
    from trainer.training.ray_workers import run_on_ray

    job = {"images": images, "masks": masks, "run": run, "held_out": held_out}
    run_on_ray(config, job, arguments.address, arguments.verbose)
    return 0


if __name__ == "__main__":
    run_command(main)
