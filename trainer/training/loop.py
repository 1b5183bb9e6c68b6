"""What each training worker runs: restore, step, report, validate, save.

`train` is the whole program on one worker; `train_loop_per_worker` is what Ray calls.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf

from trainer import checkpoints, presets, storage
from trainer.checkpoints import pointers
from trainer.checkpoints.saver import Saver
from trainer.config import TrainConfig
from trainer.data import batches as data
from trainer.errors import user_error_in
from trainer.inference.export_formats import export_model
from trainer.metrics.intervals import interval_tag
from trainer.model import unet, vgg
from trainer.runs import write_summary
from trainer.training.ema import WeightAverage
from trainer.training.finite import FiniteWatch
from trainer.training.loss_scale import LossScale
from trainer.training.meter import Meter
from trainer.training.monitor import Observer
from trainer.training.sharing import make_sum
from trainer.training.step import StepFunction, StepResult, learning_rate_at, make_train_step
from trainer.training.validation import HeldOut

Report = Callable[[dict], None]


def train_loop_per_worker(job: dict[str, Any]) -> None:
    """Entry of a Ray Train worker.

    Args:
        job: ``config`` (JSON of a `TrainConfig`), ``images``, ``masks`` and ``run`` (addresses), ``held_out`` (a
            `HeldOut` or None) and ``events``, a ``ray.util.queue.Queue`` for the events of `train`.
    """
    import ray.train

    context, config = ray.train.get_context(), presets.from_json(job["config"])
    # There may be fewer than were asked for: as many as the cluster has room for, scaling.min_workers at least.
    scaling = dataclasses.replace(config.scaling, workers=context.get_world_size(), min_workers=0)
    config = dataclasses.replace(config, scaling=scaling)
    # Without this every worker of a host would start a thread for each of the host's cores.
    tf.config.threading.set_intra_op_parallelism_threads(config.scaling.cpus_per_worker)
    tf.config.threading.set_inter_op_parallelism_threads(config.scaling.cpus_per_worker)
    cv2.setNumThreads(1)  # the reader makes as many batches at a time as there are threads
    if config.scaling.xla:
        # Parts of the step: compiled as a whole it would have to hold the exchange between workers.
        tf.config.optimizer.set_jit("autoclustering")
    report = job["events"].put
    where = {"worker": context.get_world_rank(), "workers": scaling.workers}
    addresses = (job["images"], job["masks"], job["run"])
    try:
        notice = ray.train.get_preemption_info
        terms = train(config, *addresses, **where, report=report, held_out=job["held_out"], get_notice=notice)
    except Exception as error:
        # What the user has to put right would come again: whoever started the workers need not try it again.
        if found := user_error_in(error):
            report({"event": "error", "worker": where["worker"], "message": str(found)})
        raise
    ray.train.report(terms)


def train(
    config: TrainConfig,
    images: str,
    masks: str,
    run: str,
    *,
    worker: int,
    workers: int,
    report: Report,
    held_out: HeldOut | None = None,
    get_notice: Callable[[], object | None] = lambda: None,
) -> dict:
    """Trains from the newest checkpoint of ``run`` to the config's last step; returns the last loss terms.

    Args:
        images, masks: addresses of the two datasets.
        run: address of the run's folder; worker 0 writes checkpoints, logs, the export and the summary into it.
        worker, workers: which of how many workers this is. All must call this with the same config.
        report: worker 0 calls it with a dict per event (see `events`); the others for steps left out.
        held_out: what to validate on.
        get_notice: what it returns is not None once a machine is about to be taken away; that is saved for at
            once. All workers call it together, every ``log_every`` steps.

    Raises:
        UserError: the loss is not finite, the checkpoint does not fit, an example cannot be read.
    """
    if workers != config.scaling.workers:
        raise ValueError(f"workers: expected {config.scaling.workers}, as in the config. Received {workers}.")
    if not config.total_steps:
        raise ValueError("config: expected steps. Received epochs (see presets.resolve_epochs).")
    training = _Training(config, run, worker, report, get_notice)
    with contextlib.ExitStack() as stack:
        training.restore(stack)
        observer = Observer(config, run, training.strategy, worker, report, held_out, training.step)
        stack.callback(observer.close)
        return training.run_steps(images, masks, observer)


class _Training:
    """One worker's share of a run."""

    def __init__(self, config: TrainConfig, run: str, worker: int, report: Report, get_notice: Callable):
        self.config, self.run, self.worker, self.report = config, run, worker, report
        self.get_notice, self.noticed = get_notice, False
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        with self.strategy.scope():
            self.model = unet.build_unet(config.unet, dtype=config.precision, seed=config.seed)
            rate = config.initial.learning_rate
            self.optimizer = keras.optimizers.Adam(rate, name="adam")  # part of its variables' names
            self.optimizer.build(self.model.trainable_variables)
            self.features = None
            if config.loss.needs_features:
                self.features = vgg.build_features(config.loss.vgg, dtype=config.precision)
        self.loss_scale = LossScale() if config.precision == "mixed_float16" else None
        self.average: WeightAverage | None = None
        self.saver: Saver | None = None
        self.saved: checkpoints.Pin | None = None
        self.step = 0

    # State

    def restore(self, stack: contextlib.ExitStack) -> None:
        """Goes back to the newest checkpoint; worker 0 becomes the run's only writer until ``stack`` is closed."""
        if self.worker == 0:
            self.saver = stack.enter_context(Saver(self.run, self.config))
        share = make_sum(self.strategy)
        share(np.zeros(1))  # nobody looks before worker 0 keeps other writers out
        found = checkpoints.load_newest(self.run)
        state: dict = {}
        if found:
            state, self.saved = found.checkpoint.state, found.checkpoint.pin
            self.step = state["step"]
            targets = {checkpoints.MODEL: self.model.variables, checkpoints.OPTIMIZER: self.optimizer.variables}
            checkpoints.restore_variables(found.checkpoint, self.config, targets)
            for address, why in found.skipped if self.worker == 0 else ():
                self.report({"event": "fallback", "address": self.saved.address, "skipped": address, "why": why})
        steps = np.zeros(self.config.scaling.workers)
        steps[self.worker] = self.step
        if len(set(everyones := share(steps).tolist())) > 1:
            raise RuntimeError(f"workers found checkpoints of different steps: {everyones}")
        if self.config.ema_decay:
            self.average = WeightAverage(self.model, self.config.ema_decay)
            if found and checkpoints.EMA in found.checkpoint.variables:
                self.average.restore(found.checkpoint.variables[checkpoints.EMA])
        if self.loss_scale and "loss_scale" in state:
            self.loss_scale.restore(state["loss_scale"])
        self.watch = FiniteWatch(self.worker, self.config.skip_nonfinite, state.get("skipped", 0), self.report)

    def save(self, phase: str, score: pointers.Score | None) -> None:
        variables = {part: read() for part, read in self.parts().items()}
        state = {"step": self.step, "phase": phase, "examples": self.step * self.config.global_batch_size}
        if self.loss_scale:
            state["loss_scale"] = self.loss_scale.state()
        if self.watch.skipped:
            state["skipped"] = self.watch.skipped
        self.saver.save(variables, state, score)

    def report_saved(self) -> None:
        for saved in self.saver.finished() if self.saver else ():
            self.saved = saved.pin
            facts = {"step": saved.step, "address": saved.pin.address, "best": saved.best, "seconds": saved.seconds}
            self.report({"event": "checkpoint", **facts})

    def parts(self) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
        """What reads each part of a checkpoint: its arrays by variable path."""
        found = {
            checkpoints.MODEL: lambda: checkpoints.read_variables(self.model.variables),
            checkpoints.OPTIMIZER: lambda: checkpoints.read_variables(self.optimizer.variables),
        }
        return found | ({checkpoints.EMA: self.average.arrays} if self.average else {})

    def best_weights(self) -> dict[str, np.ndarray]:
        """The weights that validation judges and that everyone computes with."""
        parts = self.parts()
        return parts[checkpoints.inference_part(parts)]()

    # Steps

    def run_steps(self, images: str, masks: str, observer: Observer) -> dict:
        """Trains to the last step; returns its loss terms."""
        config, begin, last = self.config, self.step, self.config.total_steps
        if self.worker == 0:
            counts = {"parameters": self.model.count_params(), "steps": last}
            self.report({"event": "started", "step": begin, **counts})
        batches = iter(self.read_batches(images, masks))
        meter = Meter(config.global_batch_size, last)
        phase, train_step, terms = None, None, {}
        while self.step < last:
            if config.phase_at(self.step) != phase:
                phase = config.phase_at(self.step)
                unet.freeze_encoder_bn(self.model, getattr(config, phase).freeze_encoder_bn)
                train_step = self.make_step()
            rate = learning_rate_at(config, self.step)
            self.optimizer.learning_rate.assign(rate)
            batch = meter.next(batches)
            result = train_step(*batch[:2])
            self.step += 1
            self.watch.follow(self.step, result, batch)
            at_end = self.step == last
            if at_end or self.step % config.log_every == 0:
                self.watch.look()
                terms = {name: float(value) for name, value in result.terms.items()}
                if self.worker == 0:
                    observer.show_step(self.step, phase, terms, meter.read(self.step), self.scalars(rate, result))
            validates = observer.validates(self.step)
            # Every validated step is saved, so that the best of them is there to be kept.
            if self.notices() or at_end or validates or self.step % config.checkpoint.every == 0:
                self.watch.look()
                paused = time.monotonic()
                score = observer.validate(self.step, self.best_weights()) if validates else None
                if validates:
                    meter.leave_out(time.monotonic() - paused)
                # Reading variables is a local affair; the other workers wait for worker 0 in the next step.
                if self.worker == 0:
                    observer.draw_batch(self.step, self.best_weights(), *batch[:2])
                    self.save(phase, score)
            self.report_saved()
        if self.worker == 0:
            self.finish(begin, meter.seconds, terms, observer.validated)
        return terms

    def notices(self) -> bool:
        """Whether it is known since this step that a machine will be taken away."""
        if self.noticed or self.step % self.config.log_every:
            return False
        self.noticed = self.get_notice() is not None
        if self.noticed and self.worker == 0:
            self.report({"event": "notice", "step": self.step})
        return self.noticed

    def read_batches(self, images: str, masks: str) -> tf.data.Dataset:
        config = self.config
        return data.training_batches(
            images,
            masks,
            config.data,
            image_size=config.unet.image_size,
            batch_size=config.per_worker_batch_size,
            seed=config.seed,
            worker=self.worker,
            workers=config.scaling.workers,
            start=self.step * config.global_batch_size,
            keys=True,
        )

    def make_step(self) -> StepFunction:
        extras = {"clip_norm": self.config.clip_norm, "average": self.average, "loss_scale": self.loss_scale}
        parts = (self.model, self.optimizer, self.features, self.config.loss)
        return make_train_step(self.strategy, *parts, **extras)

    def scalars(self, rate: float, result: StepResult) -> dict[str, float]:
        found = {"optimizer/learning_rate": rate, "optimizer/gradient_norm": float(result.gradient_norm)}
        if self.loss_scale:
            found["optimizer/loss_scale"] = float(self.loss_scale.value)
        return found

    def finish(self, begin: int, seconds: float, terms: dict, validated: dict | None) -> None:
        """Exports the network and writes the summary."""
        self.saver.wait()
        self.report_saved()
        checkpoint = checkpoints.load_for_inference(self.saved)
        folder = export_model(self.run, self.config, checkpoint, terms)
        self.report({"event": "export", "step": self.step, "address": folder})
        if self.step == begin:  # it was finished before
            return
        if validated:
            cells = {interval_tag(bucket): cell for bucket, cell in validated["cells"].items()}
            validated = {"step": validated["step"], "cells": cells}
        best = pointers.read(self.run, pointers.BEST)
        if best and best.checkpoint is None:  # of a pointer that was found broken
            best = None
        facts = {
            "step": self.step,
            "steps_of_this_process": self.step - begin,
            "seconds_of_this_process": seconds,
            "images_per_second": (self.step - begin) * self.config.global_batch_size / seconds,
            "terms": terms,
            "last_validation": validated,
            "best_validation": {"step": best.step, "metric": best.metric, "value": best.value} if best else None,
            "skipped_steps": self.watch.skipped,
        }
        files = {storage.relative(file, folder): storage.checksum(file) for file in storage.find(folder)}
        pins = {"latest": self.saved, "best": best.pin(self.run) if best else None}
        self.report({"event": "summary", "address": write_summary(self.run, pins, folder, files, facts)})
