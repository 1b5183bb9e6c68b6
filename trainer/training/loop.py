"""The training loop of one worker: restore, step, report, validate, save."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from trainer.checkpoints.saver import Saver
from trainer.config import TrainConfig
from trainer.data import batches as data
from trainer.model import losses, unet, vgg
from trainer.model.precision import find_policy
from trainer.runs import summarized_step
from trainer.training.devices import divide_batch, make_strategy
from trainer.training.preemption import Notice
from trainer.training.progress.events import Pace, PreemptionNotice, Report, Started, StepDone, Straggler
from trainer.training.progress.meter import Meter, OwnTime, find_straggler
from trainer.training.progress.monitor import Monitor
from trainer.training.progress.watch import FiniteWatch
from trainer.training.state.restoring import restore
from trainer.training.state.saving import Writer
from trainer.training.state.train_state import TrainState
from trainer.training.step import StepFunction, StepResult, learning_rate_at, make_sum, make_train_step
from trainer.training.validation import HeldOut


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
        report: called with the events of `progress.events`; by workers other than 0 for skipped steps and their pace.
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
            policy = find_policy(config.precision, config.scaling.device)
            features = vgg.build_features(config.loss.vgg, dtype=policy)
    with contextlib.ExitStack() as stack:
        saver = stack.enter_context(Saver(run, config)) if worker == 0 else None
        pin = restore(state, config, run, worker, strategy, report)
        monitor = Monitor(config, run, strategy, worker, report, held_out, state.step)
        stack.callback(monitor.close)
        if worker == 0:
            parameters = state.model.count_params()
            report(Started(step=state.step, total_steps=config.total_steps, parameters=parameters))
        writer = Writer(config, run, saver, pin, report, state.step) if saver else None
        if _lacks_summary(config, run, worker, strategy, state.step):
            # An earlier process was killed between its last checkpoint and its summary.
            monitor.rescore(state.step, state.inference_weights())
        batches = _read_batches(config, images, masks, worker, state.step)
        loop = _Loop(config, worker, strategy, state, features, monitor, writer, report, get_notice)
        return loop.run_steps(iter(batches))


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
        batch_size=config.per_worker_batch_size * config.accumulate,
        seed=config.seed,
        worker=worker,
        workers=config.scaling.workers,
        start=step * config.examples_per_step,
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
        writer: Writer | None,
        report: Report,
        get_notice: Callable[[], float | None],
    ):
        self.config, self.worker, self.strategy, self.state, self.features = config, worker, strategy, state, features
        self.monitor, self.writer, self.report = monitor, writer, report
        self.notice = Notice(get_notice)
        self.meter = Meter(config.examples_per_step, config.total_steps)
        self.own = OwnTime()
        self.sum = make_sum(strategy)
        self.watch = FiniteWatch(worker, config.skip_nonfinite, state.skipped, report)

    def run_steps(self, batches: Iterator) -> dict[str, float]:
        """Trains to the last step; returns its loss terms."""
        state, last = self.state, self.config.total_steps
        phase, terms = "", {}
        while state.step < last:
            if self.config.phase_at(state.step) != phase:
                phase = self.config.phase_at(state.step)
                train_step = self.make_step(phase)
                self.own.pause()
            state.optimizer.learning_rate.assign(learning_rate_at(self.config, state.step))
            batch = self.meter.next(batches)
            result = train_step(*divide_batch(self.strategy, *batch[:2]))
            state.step += 1
            self.watch.follow(state.step, result, batch)
            self.own.follow(result)
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
            accumulate=config.accumulate,
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
        own = self.own.read()
        self.report(Pace(worker=self.worker, speed=speed, own_seconds=own))
        slow = self.find_straggler(own)
        done = StepDone(step=state.step, total_steps=total, phase=phase, terms=terms, speed=speed, straggler=slow)
        self.monitor.show_step(done, scalars)
        return terms

    def find_straggler(self, own: float | None) -> Straggler | None:
        """Whom all workers waited for; they call this together, with what each measured itself."""
        if self.config.scaling.workers == 1:
            return None
        values = np.zeros(self.config.scaling.workers)
        values[self.worker] = np.nan if own is None else own
        return find_straggler(self.sum(values).tolist())

    def saves_now(self) -> bool:
        """Whether a checkpoint is due: every validated step has one, so that the best of them can be kept."""
        step = self.state.step
        regular = step % self.config.checkpoint.every == 0 or step == self.config.total_steps
        if self.is_preempted() or regular or self.monitor.validates(step):
            return True
        # By time worker 0 alone decides, for the others do nothing then. A step that is not finite all check together.
        return self.writer is not None and self.writer.is_due() and self.watch.is_sound()

    def is_preempted(self) -> bool:
        """Whether a notice that a machine will be taken away has come at this step; true once."""
        if self.state.step % self.config.log_every or not self.notice.comes():
            return False
        if self.worker == 0:
            self.report(PreemptionNotice(step=self.state.step))
        return True

    def save(self, phase: str, batch: tuple) -> None:
        """Validates if it is time to, then saves."""
        self.own.pause()
        state, score = self.state, None
        self.watch.check()
        state.skipped = self.watch.skipped
        weights = state.inference_weights()
        if self.monitor.validates(state.step):
            paused = time.monotonic()
            score = self.monitor.validate(state.step, weights)
            self.meter.exclude(paused := time.monotonic() - paused)
            if self.writer:
                self.writer.pause(paused)
        # Reading variables needs no other worker; the others wait for worker 0 in the next step.
        if self.writer:
            self.monitor.draw_batch(state.step, weights, *batch[:2])
            self.writer.save(state, phase, score)
            if self.notice.came and state.step < self.config.total_steps:
                self.writer.report_saved(wait=True)
                self.notice.wait_for_the_end()
