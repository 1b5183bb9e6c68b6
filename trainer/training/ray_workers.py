"""Runs the training loop on Ray workers and shows what they report."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time

from trainer import presets
from trainer.config import TrainConfig
from trainer.errors import UserError, user_error_in
from trainer.training.events import Describer

# Workers that meet the same error say so within this time of the first.
_GATHER_S = 2.0
# How long Ray waits for machines before it counts them again: a lost one is still counted for up to 15 s.
_ELASTIC_WAIT_S = 20
# By default glibc hands a large tensor's memory back to the kernel when it is freed, which clears and maps it anew for
# the next one. Workers keep it: two of one core made 11.7 images/s so, and 11.1 otherwise (one alone: 6.7 either way).
_ALLOCATION = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 26)}


def run_on_ray(config: TrainConfig, job: dict, address: str | None, verbose: bool) -> None:
    """Runs `loop.train_loop_per_worker` on Ray workers and prints its events.

    Workers that die are started again as often as ``scaling.max_failures`` allows; an error that the user has to
    put right ends the run at once.

    Args:
        job: what the workers get besides the config.
        address: of a Ray cluster; None starts workers on this machine.

    Raises:
        UserError: the workers failed for a reason the user can put right, or more often than allowed.
    """
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    scaling = config.scaling
    local = {} if address else {"num_cpus": scaling.workers * scaling.cpus_per_worker, "include_dashboard": False}
    level = "info" if verbose else "error"
    environment = {"TF_CPP_MIN_LOG_LEVEL": "0" if verbose else "3"} | _ALLOCATION
    ray.init(
        address=address,
        log_to_driver=verbose,
        logging_level=level.upper(),
        runtime_env={"env_vars": environment},
        **local,
    )
    # Beside this process: on a worker's node it would be lost with that node, and the run with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    with tempfile.TemporaryDirectory(prefix="pconv-ray-", ignore_cleanup_errors=True) as scratch:
        fit = _Fit(config, {**job, "config": presets.to_json(config), "events": events}, scratch)
        # Not in this thread: there Ray would wait for workers that wait for one which has given up.
        threading.Thread(target=fit, daemon=True).start()
        try:
            _follow(events, fit, scaling.workers)
        finally:
            ray.shutdown()


class _Fit:
    """Ray Train's part, for a thread of its own.

    Attributes:
        done: set when it is over.
        error: how it failed, if it did.
    """

    def __init__(self, config: TrainConfig, job: dict, scratch: str):
        self._config, self._job, self._scratch = config, job, scratch
        self.done, self.error = threading.Event(), None

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

        from trainer.training.loop import train_loop_per_worker

        scaling = self._config.scaling
        if scaling.min_workers:
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_ELASTIC_WAIT_S))
        # Ray's own bookkeeping only; checkpoints and exports go to the run's folder by themselves.
        return TensorflowTrainer(
            train_loop_per_worker,
            train_loop_config=self._job,
            scaling_config=ScalingConfig(
                num_workers=(scaling.min_workers, scaling.workers) if scaling.min_workers else scaling.workers,
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
    """Prints events until the training is over.

    Raises:
        UserError: a worker reported what the user has to put right.
    """
    describe = Describer()
    messages: dict[int, str] = {}
    gather_until = float("inf")
    while True:
        over = fit.done.is_set()  # asked before the queue: all that was reported by then is in it
        try:
            event = events.get(timeout=0.5)
        except queue.Empty:
            if messages and time.monotonic() >= gather_until:
                break
            if over:
                break
            continue
        if event["event"] != "error":
            print(describe(event), flush=True)
            continue
        if not messages:
            gather_until = time.monotonic() + _GATHER_S
        messages[event["worker"]] = event["message"]
        if len(messages) == workers:
            break
    if messages:
        raise UserError(_join(messages))
    if fit.error is not None:
        raise user_error_in(fit.error) or fit.error from None


def _join(messages: dict[int, str]) -> str:
    """One line of what the workers said; what they have in common at the beginning is said once."""
    distinct = list(dict.fromkeys(messages[worker] for worker in sorted(messages)))
    common = os.path.commonprefix(distinct).rpartition("; ")[0]
    return "; ".join([distinct[0], *(text.removeprefix(common).lstrip("; ") for text in distinct[1:])])
