"""Trains the network on Ray workers, or continues a run that was interrupted.

    python -m trainer.train --preset demo --images gs://B/imagenet --masks gs://B/masks --run gs://B/runs/a

The run's folder keeps the resolved config, checkpoints and exports. The same command continues the
run from its newest checkpoint, with the same number of workers or another.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence

from trainer import presets, storage
from trainer.command import ArgumentParser, UserError, quiet_imports, run_command, user_error_in
from trainer.config import TrainConfig

# What a run may change when it continues: none of these alter what a step computes.
_FREE = ("scaling.", "checkpoint.", "log_every")


def parse_arguments(argv: Sequence[str]):
    parser = ArgumentParser(prog="python -m trainer.train", description=__doc__)
    parser.add_argument("--preset", required=True, help=f"the config to start from: {', '.join(presets.PRESETS)}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replaces one value of the config; repeatable"
    )
    parser.add_argument("--images", required=True, help="dataset of image records (local folder or gs://)")
    parser.add_argument("--masks", required=True, help="dataset of mask records of unet.image_size")
    parser.add_argument("--run", required=True, help="the run's folder: made, or continued")
    parser.add_argument(
        "--allow-config-change",
        action="append",
        default=[],
        metavar="KEY",
        help="a key whose value may differ from the run's config.json; repeatable",
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


def settle_config(run: str, config: TrainConfig, allowed: Sequence[str]) -> None:
    """Writes ``config.json`` of a new run; refuses to continue a run with another config.

    Raises:
        UserError: naming the keys that differ and are not ``allowed`` to.
    """
    ours = presets.flatten(config)
    if unknown := set(allowed) - ours.keys():
        raise UserError(f"--allow-config-change: unknown key {sorted(unknown)[0]!r}. Valid keys: {', '.join(ours)}.")
    address = storage.join(run, "config.json")
    data, generation = storage.read_versioned(address)
    if data is not None:
        try:
            theirs = presets.flatten(presets.from_json(data))
        except ValueError as error:
            raise UserError(f"{address} is not a config: {error}") from None
        changed = [k for k in ours if ours[k] != theirs[k] and k not in allowed and not k.startswith(_FREE)]
        if changed:
            listed = ", ".join(f"{key} is {theirs[key]}, asked for {ours[key]}" for key in changed)
            raise UserError(f"{run} was started with another config: {listed}. --allow-config-change KEY permits it.")
    if data != presets.to_json(config):
        storage.replace(address, presets.to_json(config), generation)


def run_on_ray(config: TrainConfig, job: dict, address: str | None, verbose: bool) -> None:
    """Runs `loop.train_loop_per_worker` on Ray workers and prints its events.

    Raises:
        UserError: the workers failed for a reason the user can put right, or more often than allowed.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.tensorflow import TensorflowTrainer
    from ray.util.queue import Queue

    from trainer.loop import train_loop_per_worker

    scaling = config.scaling
    local = {} if address else {"num_cpus": scaling.workers * scaling.cpus_per_worker, "include_dashboard": False}
    level = "info" if verbose else "error"
    environment = {"TF_CPP_MIN_LOG_LEVEL": "0" if verbose else "3"}
    ray.init(
        address=address,
        log_to_driver=verbose,
        logging_level=level.upper(),
        runtime_env={"env_vars": environment},
        **local,
    )
    events = Queue(actor_options={"num_cpus": 0})
    printer = threading.Thread(target=_print_events, args=(events,), daemon=True)
    printer.start()
    with tempfile.TemporaryDirectory(prefix="pconv-ray-") as scratch:
        # Ray's own bookkeeping only; checkpoints and exports go to the run's folder by themselves.
        trainer = TensorflowTrainer(
            train_loop_per_worker,
            train_loop_config={**job, "config": presets.to_json(config), "events": events},
            scaling_config=ScalingConfig(
                num_workers=scaling.workers,
                use_gpu=scaling.device == "gpu",
                resources_per_worker={"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.device == "gpu" else {}),
            ),
            run_config=RunConfig(
                name="pconv",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=scaling.max_failures),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            wrapped = [error, *getattr(error, "worker_failures", {}).values()]
            raise next(filter(None, map(user_error_in, wrapped)), error) from None
        finally:
            events.put({"event": "end"})
            printer.join(timeout=10)
            ray.shutdown()


def _print_events(events) -> None:
    steps = "?"
    while (event := events.get())["event"] != "end":
        if event["event"] == "started":
            steps = event["steps"]
            how = f"continues after step {event['step']}" if event["step"] else "starts"
            print(f"training {how} of {steps} steps, {event['parameters']:,} parameters", flush=True)
        elif event["event"] == "step":
            rate = event["images_per_second"]
            terms = "  ".join(f"{name} {value:.4f}" for name, value in event["terms"].items())
            speed = f"{rate:.1f} images/s  waiting for data {event['data_wait']:.0%}" if rate else "compiled"
            print(f"{event['phase']} step {event['step']}/{steps}  {terms}  {speed}", flush=True)
        else:
            print(f"{event['event']} {event['address']}", flush=True)


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    config = resolve_config(arguments.preset, arguments.set)
    images, masks, run = (storage.normalize(a) for a in (arguments.images, arguments.masks, arguments.run))
    with quiet_imports():
        from trainer.checkpoints import find_latest
        from trainer.data import check_datasets
        from trainer.vgg_weights import load_weights
    image_count, mask_count = check_datasets(images, masks, config.data, config.unet.image_size)
    if config.loss.needs_features:
        load_weights(config.loss.vgg)
    storage.require_writable(run)
    find_latest(run)  # a broken pointer is told before workers start
    settle_config(run, config, arguments.allow_config_change)
    print(
        f"{image_count} images, {mask_count} masks; {config.scaling.workers} workers x "
        f"{config.per_worker_batch_size} examples, {config.precision}",
        flush=True,
    )
    run_on_ray(config, {"images": images, "masks": masks, "run": run}, arguments.address, arguments.verbose)
    return 0


if __name__ == "__main__":
    run_command(main)
