"""What each training worker runs: restore, step, report, save.

`train` is the whole program on one worker; `train_loop_per_worker` is what Ray calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from trainer import checkpoints, data, features, presets, unet
from trainer.config import TrainConfig
from trainer.exports import export_model
from trainer.step import learning_rate_at, make_train_step

Report = Callable[[dict], None]


def train_loop_per_worker(job: dict[str, Any]) -> None:
    """Entry of a Ray Train worker.

    Args:
        job: ``config`` (JSON of a `TrainConfig`), ``images``, ``masks`` and ``run`` (addresses), and
            ``events``, a ``ray.util.queue.Queue`` for the events of `train`.
    """
    import ray.train

    config = presets.from_json(job["config"])
    # Without this every worker of a host would start a thread for each of the host's cores.
    tf.config.threading.set_intra_op_parallelism_threads(config.scaling.cpus_per_worker)
    tf.config.threading.set_inter_op_parallelism_threads(config.scaling.cpus_per_worker)
    context = ray.train.get_context()
    terms = train(
        config,
        job["images"],
        job["masks"],
        job["run"],
        worker=context.get_world_rank(),
        workers=context.get_world_size(),
        report=job["events"].put,
    )
    ray.train.report(terms)


def train(
    config: TrainConfig, images: str, masks: str, run: str, *, worker: int, workers: int, report: Report
) -> dict:
    """Trains from the newest checkpoint of ``run`` to the config's last step; returns the last loss terms.

    Args:
        images, masks: addresses of the two datasets.
        run: address of the run's folder; worker 0 writes checkpoints and the export into it.
        worker, workers: which of how many workers this is. All must call this with the same config.
        report: worker 0 calls it with a dict per event: ``started``, ``step``, ``checkpoint``, ``export``.
    """
    if workers != config.scaling.workers:
        raise ValueError(f"workers: expected {config.scaling.workers}, as in the config. Received {workers}.")
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = unet.build_unet(config.unet, dtype=config.precision, seed=config.seed)
        optimizer = keras.optimizers.Adam(config.initial.learning_rate, name="adam")  # part of its variables' names
        optimizer.build(model.trainable_variables)
        perceptual = None
        if config.loss.needs_features:
            perceptual = features.build_features(config.loss.vgg, dtype=config.precision)

    step, pin = 0, checkpoints.find_latest(run)
    if pin:
        checkpoint = checkpoints.load_checkpoint(pin)
        step = checkpoint.state["step"]
        checkpoints.assign_variables(model.variables, checkpoint.variables["model"])
        checkpoints.assign_variables(optimizer.variables, checkpoint.variables["optimizer"])
    if worker == 0:
        report({"event": "started", "step": step, "steps": config.total_steps, "parameters": model.count_params()})

    batches = iter(
        data.training_batches(
            images,
            masks,
            config.data,
            image_size=config.unet.image_size,
            batch_size=config.per_worker_batch_size,
            seed=config.seed,
            worker=worker,
            workers=workers,
            start=step * config.global_batch_size,
        )
    )
    terms: dict = {}
    phase, train_step = None, None
    meter = _Meter(config.global_batch_size)
    while step < config.total_steps:
        if config.phase_at(step) != phase:
            phase = config.phase_at(step)
            unet.freeze_encoder_bn(model, getattr(config, phase).freeze_encoder_bn)
            train_step = make_train_step(strategy, model, optimizer, perceptual, config.loss)
        optimizer.learning_rate.assign(learning_rate_at(config, step))
        target, mask = meter.wait_for(batches)
        terms = train_step(target, mask)
        step += 1
        if worker == 0 and (step % config.log_every == 0 or step == config.total_steps):
            terms = {name: float(value) for name, value in terms.items()}
            report({"event": "step", "step": step, "phase": phase, "terms": terms, **meter.read(step)})
        if step % config.checkpoint.every == 0 or step == config.total_steps:
            # Reading variables is a local affair; the other workers wait for worker 0 in the next step.
            if worker == 0:
                variables = {
                    "model": checkpoints.read_variables(model.variables),
                    "optimizer": checkpoints.read_variables(optimizer.variables),
                }
                state = {"step": step, "phase": phase, "examples": step * config.global_batch_size}
                pin = checkpoints.save_checkpoint(run, variables, state, config.checkpoint.keep)
                report({"event": "checkpoint", "step": step, "address": pin.address})
    if worker == 0:
        folder = export_model(run, config, checkpoints.load_checkpoint(pin, ("model",)), terms)
        report({"event": "export", "step": step, "address": folder})
    return {name: float(value) for name, value in terms.items()}


class _Meter:
    """Rate of training and share of time spent waiting for data, since the last reading."""

    def __init__(self, examples_per_step: int):
        self._examples = examples_per_step
        self._step: int | None = None
        self._since = time.monotonic()
        self._waited = 0.0

    def wait_for(self, batches: Iterator):
        begin = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - begin
        return batch

    def read(self, step: int) -> dict:
        now = time.monotonic()
        steps = step - self._step if self._step is not None else 0
        seconds = now - self._since
        # The first reading contains tracing: it gives no rate.
        rate = steps * self._examples / seconds if steps else None
        reading = {"images_per_second": rate, "data_wait": self._waited / seconds}
        self._step, self._since, self._waited = step, now, 0.0
        return reading
