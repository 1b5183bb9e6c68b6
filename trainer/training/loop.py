"""The training loop of one worker: restore, step, report, validate, save."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from trainer import checkpoints, storage
from trainer.checkpoints import pointers
from trainer.checkpoints.files import State
from trainer.checkpoints.saver import Saver
from trainer.config import TrainConfig
from trainer.data import batches as data
from trainer.errors import UserError
from trainer.inference.export_formats import export_model
from trainer.metrics.intervals import interval_tag
from trainer.model import losses, unet, vgg
from trainer.runs import summarized_step, write_summary
from trainer.tensorboard import read_scalars
from trainer.training.devices import divide_batch, make_strategy
from trainer.training.monitor import (
    CheckpointSaved,
    CheckpointUnreadable,
    Exported,
    FiniteWatch,
    Meter,
    Monitor,
    PreemptionNotice,
    Report,
    RetentionFailed,
    Started,
    StepDone,
    SummaryWritten,
)
from trainer.training.preemption import Notice
from trainer.training.step import (
    LossScale,
    StepFunction,
    StepResult,
    WeightAverage,
    learning_rate_at,
    make_sum,
    make_train_step,
)
from trainer.training.validation import HeldOut, Validated


def train(
    config: TrainConfig,
    images: str,
    masks: str,
    run: str,
    *,
    worker: int,
    workers: int,
    devices: int = 1,
    report: Report,
    held_out: HeldOut | None = None,
    get_notice: Callable[[], float | None] = lambda: None,
) -> dict[str, float]:
    """Trains from the newest checkpoint of ``run`` to the config's last step; returns the last loss terms.

    Args:
        images, masks: addresses of the two datasets.
        run: address of the run's folder; worker 0 writes checkpoints, logs, the export and the summary into it.
        worker, workers: index of this worker and their number. All must call this with the same config.
        devices: of this process, among which a worker that is alone divides its batch (see `devices`).
        report: called with the events of `monitor`; by workers other than 0 for skipped steps only.
        held_out: what to validate on.
        get_notice: returns the seconds until a machine is taken away, None while none is to be. A checkpoint is saved
            at once, and training waits to be ended. All workers call it together, every ``log_every`` steps.

    Raises:
        UserError: the loss is not finite, the checkpoint does not fit, an example cannot be read, there is no GPU.
    """
    if workers != config.scaling.workers:
        raise ValueError(f"workers: expected {config.scaling.workers}, as in the config. Received {workers}.")
    if not config.total_steps:
        raise ValueError("config: expected steps. Received epochs (see presets.resolve_epochs).")
    strategy = make_strategy(config.scaling.device, devices, workers, config.scaling.resolved_collective)
    state = TrainState.build(config, strategy)
    with strategy.scope():
        features = None
        if losses.needs_features(config.loss):
            features = vgg.build_features(config.loss.vgg, dtype=config.precision)
    with contextlib.ExitStack() as stack:
        saver = stack.enter_context(Saver(run, config)) if worker == 0 else None
        pin = _restore(state, config, run, worker, strategy, report)
        monitor = Monitor(config, run, strategy, worker, report, held_out, state.step)
        stack.callback(monitor.close)
        if worker == 0:
            parameters = state.model.count_params()
            report(Started(step=state.step, total_steps=config.total_steps, parameters=parameters))
        writer = _Writer(config, run, saver, pin, report, state.step) if saver else None
        if _lacks_summary(config, run, worker, strategy, state.step):
            # An earlier process was killed between its last checkpoint and its summary.
            monitor.rescore(state.step, state.inference_weights())
        batches = _read_batches(config, images, masks, worker, state.step)
        loop = _Loop(config, worker, strategy, state, features, monitor, writer, report, get_notice)
        return loop.run_steps(iter(batches))


@dataclass(eq=False)
class TrainState:
    """What a checkpoint holds.

    Attributes:
        average: None if the config asks for no EMA.
        loss_scale: None unless training computes in float16.
        step: optimizer steps done.
        skipped: steps among them that were skipped because they were not finite.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    average: WeightAverage | None
    loss_scale: LossScale | None
    step: int = 0
    skipped: int = 0

    @classmethod
    def build(cls, config: TrainConfig, strategy: tf.distribute.Strategy) -> TrainState:
        """The state before the first step."""
        with strategy.scope():
            model = unet.build_unet(config.unet, dtype=config.precision, seed=config.seed)
            rate = config.initial.learning_rate
            optimizer = keras.optimizers.Adam(rate, name="adam")  # part of its variables' names
            optimizer.build(model.trainable_variables)
        average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        return cls(model, optimizer, average, LossScale() if config.precision == "mixed_float16" else None)

    def restore(self, checkpoint: checkpoints.Checkpoint, config: TrainConfig) -> None:
        """Sets everything from a checkpoint; raises `UserError` if it does not fit."""
        targets = {checkpoints.MODEL: self.model.variables, checkpoints.OPTIMIZER: self.optimizer.variables}
        checkpoints.restore_variables(checkpoint, config, targets)
        if self.average:  # it starts here if the checkpoint was saved without
            self.average.restore(checkpoints.inference_weights(checkpoint).arrays)
        if self.loss_scale and "loss_scale" in checkpoint.state:
            self.loss_scale.restore(checkpoint.state["loss_scale"])
        self.step, self.skipped = checkpoint.state["step"], checkpoint.state.get("skipped", 0)

    def readers(self) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
        """What reads each part of a checkpoint: its arrays by variable path."""
        found = {
            checkpoints.MODEL: lambda: checkpoints.read_variables(self.model.variables),
            checkpoints.OPTIMIZER: lambda: checkpoints.read_variables(self.optimizer.variables),
        }
        return found | ({checkpoints.EMA: self.average.arrays} if self.average else {})

    def inference_weights(self) -> dict[str, np.ndarray]:
        """The weights that validation judges, by variable path: the EMA where there is one."""
        readers = self.readers()
        return readers[checkpoints.inference_part(readers)]()

    def facts(self, config: TrainConfig, phase: str) -> State:
        """The values of a checkpoint's state.json."""
        found: State = {"step": self.step, "phase": phase, "examples": self.step * config.global_batch_size}
        if self.loss_scale:
            found["loss_scale"] = self.loss_scale.state()
        if self.skipped:
            found["skipped"] = self.skipped
        return found


def _restore(
    state: TrainState, config: TrainConfig, run: str, worker: int, strategy: tf.distribute.Strategy, report: Report
) -> checkpoints.Pin | None:
    """Restores the newest checkpoint that can be read, if there is any; all workers must find the same one."""
    share = make_sum(strategy)
    share(np.zeros(1))  # nobody looks before worker 0 keeps other writers out
    found = checkpoints.load_newest(run)
    if found:
        state.restore(found.checkpoint, config)
        for address, why in found.skipped if worker == 0 else ():
            report(CheckpointUnreadable(address=found.checkpoint.pin.address, skipped=address, why=why))
    steps = np.zeros(config.scaling.workers)
    steps[worker] = state.step
    if len(set(everyones := share(steps).tolist())) > 1:
        raise RuntimeError(f"workers found checkpoints of different steps: {everyones}")
    return found.checkpoint.pin if found else None


def _lacks_summary(config: TrainConfig, run: str, worker: int, strategy: tf.distribute.Strategy, step: int) -> bool:
    """Whether all steps are done and the run's summary does not tell of them; all workers get worker 0's answer."""
    if step < config.total_steps:
        return False
    lacks = worker == 0 and summarized_step(run) != step
    return bool(make_sum(strategy)(np.array([float(lacks)]))[0])


def _read_batches(config: TrainConfig, images: str, masks: str, worker: int, step: int) -> tf.data.Dataset:
    """Batches of this worker from step number ``step`` on: target, mask, filenames, mask indices."""
    return data.training_batches(
        images,
        masks,
        config.data,
        image_size=config.unet.image_size,
        batch_size=config.per_worker_batch_size,
        seed=config.seed,
        worker=worker,
        workers=config.scaling.workers,
        start=step * config.global_batch_size,
        keys=True,
    )


class _Loop:
    """One worker's steps.

    Args:
        features: the perceptual network, if the loss needs it.
        writer: worker 0's; the others have None.
    """

    def __init__(
        self,
        config: TrainConfig,
        worker: int,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        features: keras.Model | None,
        monitor: Monitor,
        writer: _Writer | None,
        report: Report,
        get_notice: Callable[[], float | None],
    ):
        self.config, self.worker, self.strategy, self.state, self.features = config, worker, strategy, state, features
        self.monitor, self.writer, self.report = monitor, writer, report
        self.notice = Notice(get_notice)
        self.meter = Meter(config.global_batch_size, config.total_steps)
        self.watch = FiniteWatch(worker, config.skip_nonfinite, state.skipped, report)

    def run_steps(self, batches: Iterator) -> dict[str, float]:
        """Trains to the last step; returns its loss terms."""
        state, last = self.state, self.config.total_steps
        phase, terms = "", {}
        while state.step < last:
            if self.config.phase_at(state.step) != phase:
                phase = self.config.phase_at(state.step)
                train_step = self.make_step(phase)
            state.optimizer.learning_rate.assign(learning_rate_at(self.config, state.step))
            batch = self.meter.next(batches)
            result = train_step(*divide_batch(self.strategy, *batch[:2]))
            state.step += 1
            self.watch.follow(state.step, result, batch)
            if state.step % self.config.log_every == 0 or state.step == last:
                terms = self.show(phase, result)
            if self.saves_now():
                self.save(phase, batch)
            if self.writer:
                self.writer.report_saved()
        if self.writer:
            self.writer.finish(state, terms, self.meter.seconds, self.monitor.validated)
        return terms

    def make_step(self, phase: str) -> StepFunction:
        """The step function of a phase."""
        config, state = self.config, self.state
        unet.freeze_encoder_bn(state.model, getattr(config, phase).freeze_encoder_bn)
        return make_train_step(
            self.strategy,
            state.model,
            state.optimizer,
            self.features,
            config.loss,
            clip_norm=config.clip_norm,
            average=state.average,
            loss_scale=state.loss_scale,
            scaling=config.scaling,
        )

    def show(self, phase: str, result: StepResult) -> dict[str, float]:
        """Reports the step just done; returns its loss terms."""
        self.watch.check()
        state = self.state
        terms = {name: float(value) for name, value in result.terms.items()}
        scalars = {"optimizer/learning_rate": learning_rate_at(self.config, state.step - 1)}
        scalars["optimizer/gradient_norm"] = float(result.gradient_norm)
        if state.loss_scale:
            scalars["optimizer/loss_scale"] = float(state.loss_scale.value)
        speed, total = self.meter.read(state.step), self.config.total_steps
        done = StepDone(step=state.step, total_steps=total, phase=phase, terms=terms, speed=speed)
        self.monitor.show_step(done, scalars)
        return terms

    def saves_now(self) -> bool:
        """Whether a checkpoint is due: every validated step has one, so that the best of them can be kept."""
        step = self.state.step
        regular = step % self.config.checkpoint.every == 0 or step == self.config.total_steps
        return self.is_preempted() or regular or self.monitor.validates(step)

    def is_preempted(self) -> bool:
        """Whether a notice that a machine will be taken away has come at this step; true once."""
        if self.state.step % self.config.log_every or not self.notice.comes():
            return False
        if self.worker == 0:
            self.report(PreemptionNotice(step=self.state.step))
        return True

    def save(self, phase: str, batch: tuple) -> None:
        """Validates if it is time to, then saves."""
        state, score = self.state, None
        self.watch.check()
        state.skipped = self.watch.skipped
        weights = state.inference_weights()
        if self.monitor.validates(state.step):
            paused = time.monotonic()
            score = self.monitor.validate(state.step, weights)
            self.meter.exclude(time.monotonic() - paused)
        # Reading variables needs no other worker; the others wait for worker 0 in the next step.
        if self.writer:
            self.monitor.draw_batch(state.step, weights, *batch[:2])
            self.writer.save(state, phase, score)
            if self.notice.came and state.step < self.config.total_steps:
                self.writer.report_saved(wait=True)
                self.notice.wait_for_the_end()


class _Writer:
    """Worker 0's writing into the run's folder: checkpoints, the export, the summary.

    Args:
        pin: the checkpoint that training resumed from.
        begin: steps done when this process began.
    """

    def __init__(
        self, config: TrainConfig, run: str, saver: Saver, pin: checkpoints.Pin | None, report: Report, begin: int
    ):
        self._config, self._run, self._saver, self._report, self._begin = config, run, saver, report, begin
        self._latest = pin

    def save(self, state: TrainState, phase: str, score: checkpoints.Score | None) -> None:
        variables = {part: read() for part, read in state.readers().items()}
        self._saver.save(variables, state.facts(self._config, phase), score)

    def report_saved(self, wait: bool = False) -> None:
        """Reports the checkpoints that were completed since the last call; with ``wait``, all that were begun."""
        if wait:
            self._saver.wait()
        for saved in self._saver.finished():
            self._latest = saved.pin
            self._report(
                CheckpointSaved(step=saved.step, address=saved.pin.address, best=saved.best, seconds=saved.seconds)
            )
        if why := self._saver.retention_error():
            self._report(RetentionFailed(why=why))

    def finish(self, state: TrainState, terms: dict, seconds: float, validated: Validated | None) -> None:
        """Exports the network and writes the summary, unless that tells of the last step already.

        Args:
            terms: the last loss terms; none if this process took no step, for they are in the logs of the one that did.
            seconds: that this process trained.
            validated: the last validation of this process.
        """
        self.report_saved(wait=True)
        if self._latest is None:
            raise RuntimeError("expected a checkpoint of the last step")
        steps = state.step - self._begin
        summarized = not steps and summarized_step(self._run) == state.step
        if not steps and not summarized:
            terms = _read_terms(self._run, state.step)
        folder = export_model(self._run, self._config, checkpoints.load_for_inference(self._latest), terms)
        self._report(Exported(step=state.step, address=folder))
        if summarized:
            return
        cells = {interval_tag(bucket): cell for bucket, cell in validated.cells.items()} if validated else None
        best = pointers.read(self._run, pointers.BEST)
        if best and best.checkpoint is None:  # of a pointer that was found broken
            best = None
        facts = {
            "step": state.step,
            "steps_of_this_process": steps,
            "seconds_of_this_process": seconds,
            "images_per_second": steps * self._config.global_batch_size / seconds if steps else None,
            "terms": terms,
            "last_validation": {"step": validated.step, "cells": cells} if validated else None,
            "best_validation": {"step": best.step, "metric": best.metric, "value": best.value} if best else None,
            "skipped_steps": state.skipped,
        }
        files = {storage.relative(file, folder): storage.checksum(file) for file in storage.find(folder)}
        pins = {"latest": self._latest, "best": best.pin(self._run) if best else None}
        self._report(SummaryWritten(address=write_summary(self._run, pins, folder, files, facts)))


def _read_terms(run: str, step: int) -> dict[str, float]:
    """The loss terms of a step as an earlier process logged them; none if its logs do not have them."""
    try:
        logged = read_scalars(run, step)
    except UserError:
        return {}
    return {tag.removeprefix("loss/"): value for tag, value in logged.items() if tag.startswith("loss/")}
