"""Training on Ray: starts the workers, follows their events, ends the run on an error that the user must fix."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import tensorflow as tf

from trainer import presets
from trainer.command import BILLING_PROJECT, quiet_imports
from trainer.config import ScalingConfig, TrainConfig
from trainer.errors import Outage, UserError, is_full_disk, outage_in, user_error_in
from trainer.runs import RunLog
from trainer.training.devices import prepare_devices
from trainer.training.dry_run import describe_change
from trainer.training.loop import train
from trainer.training.progress.events import Pace, WorkerError, WorkersMissing
from trainer.training.progress.metrics import Metrics
from trainer.training.ray_session import open_session

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
            `HeldOut` or None), ``devices`` (how many compute in this process) and ``events``, a
            ``ray.util.queue.Queue`` for the pickled events of `loop.train`.
    """
    import ray.train
    from ray.util.metrics import Gauge

    context, config, devices = ray.train.get_context(), presets.from_json(job["config"]), job["devices"]
    prepare_devices(config.scaling.device, devices, config.scaling.cpus_per_worker)
    # There may be fewer than were asked for: as many as the cluster has room for, scaling.min_workers at least.
    job_scaling = config.scaling
    scaling = dataclasses.replace(job_scaling, workers=context.get_world_size(), min_workers=0)
    config = dataclasses.replace(config, scaling=scaling)
    cv2.setNumThreads(1)  # the reader makes as many batches at a time as there are threads
    if scaling.xla:
        # Parts of the step: compiled as a whole it would have to contain the exchange between workers.
        tf.config.optimizer.set_jit("autoclustering")
    worker = context.get_world_rank()

    metrics = Metrics(job["run"], worker, Gauge)

    def report(event) -> None:
        metrics.record(event)
        # As bytes: to unpack an event the queue's process would import TensorFlow, and hold 791 MB instead of 123.
        if not isinstance(event, Pace):
            job["events"].put(pickle.dumps(event))

    try:
        if worker == 0 and devices == 1 and scaling.workers < (asked := job_scaling.workers):
            report(WorkersMissing(cost=describe_change(config, job["images"], job["masks"], asked, scaling.workers)))
        with _removing_generated_code():
            terms = train(
                config,
                job["images"],
                job["masks"],
                job["run"],
                worker=worker,
                workers=scaling.workers,
                devices=devices,
                report=report,
                held_out=job["held_out"],
                get_notice=_seconds_left,
            )
    except Exception as error:
        failure = describe_failure(error)
        # What would fail again ends the training: whoever started the workers need not retry.
        if failure.final:
            report(WorkerError(worker=worker, message=str(failure.error), outage=isinstance(failure.error, Outage)))
        if failure.error is error:
            raise
        raise failure.error from None
    finally:
        metrics.close()
    ray.train.report(terms)


def _seconds_left() -> float | None:
    """Seconds until a machine of this group is taken away; None while none is to be. All workers call it together."""
    import ray.train

    notice = ray.train.get_preemption_info()
    if notice is None:
        return None
    # Without a deadline nobody knows; Ray Train then waits for two minutes.
    return max(0.0, notice.deadline_ms / 1000 - time.time()) if notice.deadline_ms else 0.0


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a worker stopped: an error that can be sent to another process, and whether a retry would meet it again."""

    error: Exception
    final: bool


def describe_failure(error: Exception) -> Failure:
    """What to tell of an error in a worker; a client's own exceptions may be of no use in another process.

    A `UserError` and a full disk are final. An `Outage` has been waited for, and may be over when workers start again.
    """
    line = " ".join(f"{type(error).__name__}: {error}".split())
    if is_full_disk(error):
        return Failure(outage_in(error) or Outage(line), final=True)
    if found := user_error_in(error):
        return Failure(found, final=True)
    if outage := outage_in(error):
        return Failure(outage, final=False)
    try:
        arrives = str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:  # the classes of Google's client take other arguments than they keep
        arrives = False
    return Failure(error if arrives else Outage(line), final=False)


@contextlib.contextmanager
def _removing_generated_code() -> Iterator[None]:
    """Removes the files that TensorFlow's AutoGraph makes: it would at the exit of Python, which Ray's workers omit."""
    try:
        yield
    finally:
        for name, module in list(sys.modules.items()):
            if name.startswith("__autograph_generated_file") and module.__file__:
                with contextlib.suppress(OSError):
                    os.unlink(module.__file__)


def run_on_ray(config: TrainConfig, job: dict[str, Any], address: str | None, verbose: bool, log: RunLog) -> None:
    """Runs `train_loop_per_worker` on Ray workers and prints its events.

    On this machine there is one worker, with as many devices as ``scaling.workers`` says: its batch is divided among
    them as it would be among workers, and no port is opened for TensorFlow. On a cluster each worker has one.

    Workers that die are restarted as often as ``scaling.max_failures`` allows; an error that the user must fix ends
    the run at once.

    Args:
        job: what the workers get besides the config.
        address: of a Ray cluster; None starts a worker on this machine.
        log: shows the events, and keeps what a cluster's workers print.

    Raises:
        UserError: the workers failed for a reason the user can fix.
        Outage: a store or a disk failed for longer than the workers wait.
    """
    environment = {"TF_CPP_MIN_LOG_LEVEL": "0" if verbose else "3"} | _ALLOCATION
    environment |= {name: os.environ[name] for name in (BILLING_PROJECT,) if name in os.environ}
    scaling = config.scaling
    local = {"num_cpus": scaling.workers * scaling.cpus_per_worker}
    # Said, not found out: a worker that then finds none can tell why.
    local["num_gpus"] = scaling.workers if scaling.device == "gpu" else 0
    with open_session(address, local, verbose, environment, log.add) as scratch:
        with quiet_imports():
            import ray
            from ray.util.queue import Queue
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On this process's node: on a worker's it would be lost with that node, and the run with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        devices, workers = (scaling.workers, 1) if address is None else (1, scaling.workers)
        job = {**job, "config": presets.to_json(config), "devices": devices, "events": events}
        fit = _Fit(scaling, job, scratch)
        # In a thread: Ray waits for all workers, also where they wait for one that has given up.
        threading.Thread(target=fit, daemon=True).start()
        _follow(events, fit, workers, log)


class _Fit:
    """Runs Ray Train's trainer, in a thread of its own.

    Attributes:
        done: set when training is over.
        error: what it failed with; None if it succeeded.
    """

    def __init__(self, scaling: ScalingConfig, job: dict[str, Any], scratch: str):
        self._scaling, self._job, self._scratch = scaling, job, scratch
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
        from ray.train import FailureConfig, RunConfig
        from ray.train import ScalingConfig as RayScalingConfig
        from ray.train.tensorflow import TensorflowTrainer

        from trainer.training.progress.failures import TellFailures
        from trainer.training.tensorflow_cluster import ClusterConfig

        scaling, devices = self._scaling, self._job["devices"]
        workers: int | tuple[int, int] = scaling.workers // devices
        if scaling.min_workers and devices == 1:
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_ELASTIC_WAIT_S))
            workers = (scaling.min_workers, scaling.workers)
        resources = {"CPU": scaling.cpus_per_worker * devices}
        # Ray's own bookkeeping only; checkpoints and exports go to the run's folder by themselves.
        return TensorflowTrainer(
            train_loop_per_worker,
            train_loop_config=self._job,
            tensorflow_config=ClusterConfig(),
            scaling_config=RayScalingConfig(
                # Ray's own class for V2 takes the pair; the name it exports is annotated with the older one.
                num_workers=workers,  # type: ignore[arg-type]
                use_gpu=scaling.device == "gpu",
                resources_per_worker=resources | ({"GPU": devices} if scaling.device == "gpu" else {}),
            ),
            run_config=RunConfig(
                name="pconv",
                storage_path=self._scratch,
                failure_config=FailureConfig(max_failures=scaling.max_failures),
                callbacks=[TellFailures(self._job["events"])],  # type: ignore[list-item]  # as above
            ),
        )


def _follow(events, fit: _Fit, workers: int, log: RunLog) -> None:
    """Shows events until training is over.

    Raises:
        UserError: a worker reported what the user must fix.
        Outage: a worker reported a full disk, or the last attempt met an outage.
    """
    messages: dict[int, str] = {}
    kind: type[Exception] = UserError
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
            log.show(str(event))
            continue
        if not messages:
            gather_until = time.monotonic() + _GATHER_S
            kind = Outage if event.outage else UserError
        messages[event.worker] = event.message
    if messages:
        raise kind(_join(messages))
    if fit.error is not None:
        raise user_error_in(fit.error) or outage_in(fit.error) or fit.error from None


def _join(messages: dict[int, str]) -> str:
    """The workers' messages as one line; a common beginning is said once."""
    distinct = list(dict.fromkeys(messages[worker] for worker in sorted(messages)))
    common = os.path.commonprefix(distinct).rpartition("; ")[0]
    return "; ".join([distinct[0], *(text.removeprefix(common).lstrip("; ") for text in distinct[1:])])
