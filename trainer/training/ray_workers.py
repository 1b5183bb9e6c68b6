"""Training on Ray: starts the workers, follows their events, ends the run on an error that the user must fix."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import queue
import tempfile
import threading
import time
from typing import Any

import cv2
import tensorflow as tf

from trainer import presets, stopping
from trainer.command import printable, quiet_imports
from trainer.config import TrainConfig
from trainer.errors import UserError, user_error_in
from trainer.training.loop import train
from trainer.training.monitor import WorkerError

# Workers that meet the same error report it within this time of the first.
_GATHER_S = 2.0
# How long Ray waits for machines before it counts them again: a lost one is still counted for up to 15 s.
_ELASTIC_WAIT_S = 20
# By default glibc returns a large tensor's memory to the kernel when it is freed, which clears and maps it again for
# the next one. Workers keep it: two of one core made 11.7 images/s that way, 11.1 without (one alone: 6.7 either way).
_ALLOCATION = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 26)}


def train_loop_per_worker(job: dict[str, Any]) -> None:
    """Entry of a Ray Train worker.

    Args:
        job: ``config`` (JSON of a `TrainConfig`), ``images``, ``masks`` and ``run`` (addresses), ``held_out`` (a
            `HeldOut` or None) and ``events``, a ``ray.util.queue.Queue`` for the pickled events of `loop.train`.
    """
    import ray.train

    context, config = ray.train.get_context(), presets.from_json(job["config"])
    # There may be fewer than were asked for: as many as the cluster has room for, scaling.min_workers at least.
    scaling = dataclasses.replace(config.scaling, workers=context.get_world_size(), min_workers=0)
    config = dataclasses.replace(config, scaling=scaling)
    # Without this every worker of a host would start a thread for each of the host's cores.
    tf.config.threading.set_intra_op_parallelism_threads(scaling.cpus_per_worker)
    tf.config.threading.set_inter_op_parallelism_threads(scaling.cpus_per_worker)
    cv2.setNumThreads(1)  # the reader makes as many batches at a time as there are threads
    if scaling.xla:
        # Parts of the step: compiled as a whole it would have to contain the exchange between workers.
        tf.config.optimizer.set_jit("autoclustering")
    worker = context.get_world_rank()

    def report(event) -> None:
        # As bytes: to unpack an event the queue's process would import TensorFlow, and hold 791 MB instead of 123.
        job["events"].put(pickle.dumps(event))

    try:
        terms = train(
            config,
            job["images"],
            job["masks"],
            job["run"],
            worker=worker,
            workers=scaling.workers,
            report=report,
            held_out=job["held_out"],
            get_notice=ray.train.get_preemption_info,
        )
    except Exception as error:
        # What the user must fix would fail again: whoever started the workers need not retry.
        if found := user_error_in(error):
            report(WorkerError(worker=worker, message=str(found)))
        raise
    ray.train.report(terms)


def run_on_ray(config: TrainConfig, job: dict[str, Any], address: str | None, verbose: bool) -> None:
    """Runs `train_loop_per_worker` on Ray workers and prints its events.

    Workers that die are restarted as often as ``scaling.max_failures`` allows; an error that the user must fix ends
    the run at once.

    Args:
        job: what the workers get besides the config.
        address: of a Ray cluster; None starts workers on this machine.

    Raises:
        UserError: the workers failed for a reason the user can fix.
    """
    with quiet_imports():
        import ray
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    scaling = config.scaling
    local: dict[str, Any] = {"num_cpus": scaling.workers * scaling.cpus_per_worker, "include_dashboard": False}
    environment = {"TF_CPP_MIN_LOG_LEVEL": "0" if verbose else "3"} | _ALLOCATION
    with stopping.own_handlers():
        ray.init(
            address=address,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
            runtime_env={"env_vars": environment},
            **({} if address else local),
        )
    # On this process's node: on a worker's it would be lost with that node, and the run with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    with tempfile.TemporaryDirectory(prefix="pconv-ray-", ignore_cleanup_errors=True) as scratch:
        fit = _Fit(config, {**job, "config": presets.to_json(config), "events": events}, scratch)
        # In a thread: Ray waits for all workers, also where they wait for one that has given up.
        threading.Thread(target=fit, daemon=True).start()
        try:
            _follow(events, fit, scaling.workers)
        finally:
            ray.shutdown()


class _Fit:
    """Runs Ray Train's trainer, in a thread of its own.

    Attributes:
        done: set when training is over.
        error: what it failed with; None if it succeeded.
    """

    def __init__(self, config: TrainConfig, job: dict[str, Any], scratch: str):
        self._config, self._job, self._scratch = config, job, scratch
        self.done = threading.Event()
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._trainer().fit()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def _trainer(self):
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.tensorflow import TensorflowTrainer

        scaling = self._config.scaling
        if scaling.min_workers:
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_ELASTIC_WAIT_S))
        workers = (scaling.min_workers, scaling.workers) if scaling.min_workers else scaling.workers
        # Ray's own bookkeeping only; checkpoints and exports go to the run's folder by themselves.
        return TensorflowTrainer(
            train_loop_per_worker,
            train_loop_config=self._job,
            scaling_config=ScalingConfig(
                # Ray's own class for V2 takes the pair; the name it exports is annotated with the older one.
                num_workers=workers,  # type: ignore[arg-type]
                use_gpu=scaling.device == "gpu",
                resources_per_worker={"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.device == "gpu" else {}),
            ),
            run_config=RunConfig(
                name="pconv",
                storage_path=self._scratch,
                failure_config=FailureConfig(max_failures=scaling.max_failures),
            ),
        )


def _follow(events, fit: _Fit, workers: int) -> None:
    """Prints events until training is over.

    Raises:
        UserError: a worker reported what the user must fix.
    """
    messages: dict[int, str] = {}
    gather_until = float("inf")
    while len(messages) < workers:
        over = fit.done.is_set()  # asked before the queue: everything reported by then is in it
        try:
            event = pickle.loads(events.get(timeout=0.5))
        except queue.Empty:
            if over or time.monotonic() >= gather_until:
                break
            continue
        if not isinstance(event, WorkerError):
            print(printable(str(event)), flush=True)
            continue
        if not messages:
            gather_until = time.monotonic() + _GATHER_S
        messages[event.worker] = event.message
    if messages:
        raise UserError(_join(messages))
    if fit.error is not None:
        raise user_error_in(fit.error) or fit.error from None


def _join(messages: dict[int, str]) -> str:
    """The workers' messages as one line; a common beginning is said once."""
    distinct = list(dict.fromkeys(messages[worker] for worker in sorted(messages)))
    common = os.path.commonprefix(distinct).rpartition("; ")[0]
    return "; ".join([distinct[0], *(text.removeprefix(common).lstrip("; ") for text in distinct[1:])])
