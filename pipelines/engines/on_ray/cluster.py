"""The Ray that a job runs on: one of this machine alone, or a cluster that is joined; and what its parts may use."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.engines.on_ray.rows import Failure, from_table
from trainer import stopping
from trainer.command import BILLING_PROJECT, quiet_imports
from trainer.config import ScalingConfig
from trainer.errors import UserError
from trainer.training.ray_session import check_cluster, check_place, open_session

BLOCK_BYTES = 32 << 20  # of images that travel together; one that is larger travels alone
# Of this machine's memory for images that travel; by itself Ray takes 30 % of it, however few cores there are.
_STORE_BYTES, _STORE_BYTES_OF_A_CORE = 512 << 20, 128 << 20
# A machine whose network fails sends no word of its tasks. By default Ray asks for a sign of life after 5 minutes, and
# waits 2 minutes for it; its servers refuse to be asked more often than once a minute.
_KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": 70_000, "RAY_grpc_client_keepalive_timeout_ms": 20_000}
# For how long a process that has nothing to do is kept. By default Ray ends those that are more than a machine's cores
# after a second, but of what reads and writes several fit on a core: nearly each task would load all modules anew. On a
# host of one core 64 images of 512 x 512 took 15 s with this; without it, 128 took more than 200.
_KEPT = {"RAY_idle_worker_killing_time_threshold_ms": 60_000}
# Of the C library, whose heap by itself comes to keep blocks of up to 32 MB: a process that fills images of 100
# megapixels took 2.0 GB at most, 1.7 with this.
_ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": str(16 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}
_MOST_THREADS = 8  # of a network on a CPU: more of them compute no faster together than several networks do


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a job is to run.

    Attributes:
        address: of a Ray cluster; None starts a Ray on this machine.
        gpus_per_actor: of each process that computes with a network; None is one if there are any.
        device: where networks compute, one of `trainer.inference.DEVICES`.
    """

    address: str | None
    gpus_per_actor: float | None
    device: str = "auto"

    @classmethod
    def find(cls, options: argparse.Namespace, device: str = "auto") -> Cluster:
        """Of the command's options; asks an address whether a cluster answers there.

        Raises:
            UserError: none does, or it is not clear where to run.
        """
        if device == "cpu" and options.gpus_per_actor:
            raise UserError("--gpus-per-actor: cannot be combined with --device cpu")
        # TensorFlow's servers, which need a network that is trusted, are training's alone.
        address = check_place(options.address, ScalingConfig(workers=1), trusted_network=False)
        if address is not None and "://" in address:
            raise UserError(f"--address: expected HOST:PORT or auto, for Ray Data takes no client. Received {address}.")
        if address is not None:
            check_cluster(address)
        return cls(address=address, gpus_per_actor=options.gpus_per_actor, device=device)


class Parts(NamedTuple):
    """What parts of a job use, so that one of each fits on every machine.

    Attributes:
        task_cpus: of a task that reads or writes.
        actor_cpus, actor_gpus: of an actor, which computes with a network.
        threads: of a network on a CPU.
        actors: how many fit on the machines that there are.
    """

    task_cpus: float
    actor_cpus: float
    actor_gpus: float
    threads: int
    actors: int

    @classmethod
    def of(cls, machines: list[dict[str, float]], gpus_per_actor: float | None, device: str) -> Parts:
        """For machines of these resources, of which the smallest decides; of one or two cores if there are none yet.

        On a CPU a network's threads are as many as cores, though it is counted as half of them or a little less: those
        that read and write wait for storage most of the time, and an actor that starts again on another machine is to
        find room there, or what was sent to it waits forever.
        """
        machines = [machine for machine in machines if machine.get("CPU")]
        if gpus_per_actor is None:
            gpus_per_actor = float(device != "cpu" and any(machine.get("GPU") for machine in machines))
        able = [machine for machine in machines if machine.get("GPU", 0) >= gpus_per_actor]
        sizes = {machine["CPU"] for machine in able or machines}
        threads = min([_MOST_THREADS, *(sizes or {2.0})])
        sizes = sizes or {1.0, 2.0}
        task_cpus = min(1.0, min(sizes) / 5)
        if gpus_per_actor:
            rooms = [(machine["CPU"], int(machine["GPU"] / gpus_per_actor + 1e-9)) for machine in able]
            actor_cpus = min([task_cpus, *((size - task_cpus) / room for size, room in rooms)])
            actors = sum(room for _, room in rooms)
        else:
            tried = [threads * permille / 1000 for permille in (*range(500, 199, -1), *range(501, 800))]
            actor_cpus = next((cpus for cpus in tried if _leaves_room(cpus, task_cpus, sizes)), tried[0])
            actors = sum(int(machine["CPU"] / threads * 3 / 2) for machine in able)
        return cls(task_cpus, actor_cpus, gpus_per_actor, max(1, int(threads)), max(1, actors))

    def prepare_devices(self) -> None:
        """Has TensorFlow compute on an actor's share of its machine; before it is first used in the process."""
        from trainer.training.devices import prepare_devices

        if 0 < self.actor_gpus < 1:  # several processes have a GPU, of which one would take all memory
            os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        prepare_devices("gpu" if self.actor_gpus else "cpu", 1, self.threads)


def _leaves_room(actor_cpus: float, task_cpus: float, sizes: Iterable[float]) -> bool:
    """Whether a task fits beside as many actors as a machine of any of these sizes takes.

    After a machine is lost, Ray starts its actors again on others: on one that was full of them no task would ever run,
    and the actors would wait for what it was to read.
    """
    units = 10_000  # of a core: Ray counts no finer
    actor, task = round(actor_cpus * units), round(task_cpus * units)
    return all(size >= actor + task and size % actor >= task for size in (round(cores * units) for cores in sizes))


@contextlib.contextmanager
def joined(cluster: Cluster) -> Iterator[Parts]:
    """Starts or joins Ray; at the end what was started is gone.

    Raises:
        UserError: Ray cannot be started or joined; or what a task raised.
        Outage: what a task raised, or a process of Ray's is gone that the job cannot do without.
    """
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    store = min(int(0.3 * memory), _STORE_BYTES + cores * _STORE_BYTES_OF_A_CORE)
    local: dict[str, Any] = {"num_cpus": cores, "object_store_memory": store}
    if cluster.device == "cpu":
        local["num_gpus"] = 0
    # Of this process: Ray's core would print that actors which are started again need what Ray Data gives them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name, milliseconds in (_KEEPALIVE | _KEPT).items():
        os.environ.setdefault(name, str(milliseconds))
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3"} | _ALLOCATION
    variables |= {name: os.environ[name] for name in (BILLING_PROJECT,) if name in os.environ}
    with contextlib.ExitStack() as stack:
        with _hushed():
            stack.enter_context(open_session(cluster.address, local, False, variables))
        with quiet_imports():
            import ray
            import ray.data

        _configure(ray.data)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        try:
            yield Parts.of(machines, cluster.gpus_per_actor, cluster.device)
        except ray.exceptions.RayError as error:
            failure = Failure.of(error)
            if failure.kind != "bug" or isinstance(error, ray.exceptions.RayTaskError):
                raise failure.error() from None
            line = str(error).strip().partition("\n")[0]
            raise Failure("outage", f"Ray: {type(error).__name__}: {line}").error() from None


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps to itself what Ray's core says on stderr of the level above; what is wrong it raises."""
    terminal = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        with stopping.tidying(stderr=terminal):
            yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nothing)


def remote(what: Any, **options: Any) -> Any:
    """A function or a class to be run by Ray, with options."""
    import ray

    return ray.remote(what).options(**options)


def results(reference: Any) -> Iterator[Any]:
    """The values of a block that Ray Data has made; none if it was lost since. Raises what a task has failed with."""
    import ray

    try:
        table = ray.get(reference)
    except ray.exceptions.RayError:
        return
    for result in from_table(table):
        if isinstance(result, Failure):
            raise result.error()
        yield result


def _configure(data: Any) -> None:
    """Makes Ray Data quiet, and lets it go on without blocks that were lost: the job makes them again itself."""
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None
    context.target_max_block_size = BLOCK_BYTES
    context.max_errored_blocks = -1
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its log file is another kind
            handler.setLevel(logging.CRITICAL)
