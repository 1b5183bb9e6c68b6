"""Which engine runs a job: the options that choose it, and how a command starts either."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.engines import BEAM, ENGINES, RAY
from trainer import storage
from trainer.command import ArgumentParser, quiet_imports
from trainer.errors import UserError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipelines.engines.on_ray.cluster import Cluster
    from pipelines.evaluation.job import Job
    from pipelines.inpainting.job import Inpainting


def add_options(parser: ArgumentParser) -> None:
    """Adds the options of jobs that run on either engine."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=BEAM,
        help="what runs the job: Apache Beam, with its own options (default: in this process), or Ray, on this machine "
        "or on a cluster",
    )
    parser.add_argument(
        "--address", help="with --engine ray: cluster to join, HOST:PORT or auto (default: this machine alone)"
    )
    parser.add_argument(
        "--gpus-per-actor",
        type=_gpus,
        metavar="N",
        help="with --engine ray: GPUs of each process that computes with the network, such as 1, 0.5 or 0 (default: 1 "
        "if the cluster has any)",
    )


def _gpus(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not (number == int(number) if number >= 1 else number >= 0):  # as Ray has it: parts of one, or whole ones
        raise argparse.ArgumentTypeError(f"expected 0, a part of 1, or a whole number. Received {text}.")
    return number


@dataclass(frozen=True)
class OnBeam:
    """Runs jobs on Apache Beam.

    Attributes:
        options: Beam's.
        waits: whether to wait for the end of a job that could go on without this process.
    """

    options: PipelineOptions
    waits: bool

    def inpaint(self, job: Inpainting) -> None:
        """Runs an inpainting job, to its end if this engine waits."""
        with quiet_imports():
            from pipelines import launch, remote
            from pipelines.engines.on_beam.inpaint import InpaintFiles
            from pipelines.inpainting.inputs import MANIFEST

        if not remote.outlives_us(self.options):
            job.handler.prepare()
        launch.run_pipeline(self.options, lambda pipeline: pipeline | InpaintFiles(job), wait=self.waits)
        if self.waits:
            launch.require_written(storage.join(job.books.output, MANIFEST))

    def evaluate(self, job: Job) -> None:
        """Runs an evaluation, to its end if this engine waits."""
        with quiet_imports():
            from pipelines import launch
            from pipelines.engines.on_beam.evaluate import build
            from pipelines.evaluation.job import METRICS

        launch.run_pipeline(self.options, lambda pipeline: build(pipeline, job), wait=self.waits)
        if self.waits:
            launch.require_written(storage.join(job.output, METRICS))


@dataclass(frozen=True)
class OnRay:
    """Runs jobs on Ray.

    Attributes:
        cluster: where.
    """

    cluster: Cluster
    waits: bool = True

    def inpaint(self, job: Inpainting) -> None:
        """Runs an inpainting job to its end."""
        with quiet_imports():
            from pipelines.engines.on_ray.inpaint import inpaint

        inpaint(job, self.cluster)

    def evaluate(self, job: Job) -> None:
        """Runs an evaluation to its end."""
        with quiet_imports():
            from pipelines.engines.on_ray.evaluate import evaluate

        evaluate(job, self.cluster)


def parse_options(parser: ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, OnBeam | OnRay]:
    """Splits ``argv`` into the job's options and the engine's.

    Raises:
        UserError: an option is unknown, or is the other engine's; or the engine cannot be had as it was asked for.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--engine", nargs="?")
    if first.parse_known_args(argv)[0].engine == RAY:
        ours, rest = parser.parse_known_args(argv)
        if rest:
            raise _surplus(parser, argv, rest)
        with quiet_imports():
            from pipelines.engines.on_ray.cluster import Cluster
        return ours, OnRay(Cluster.find(ours, getattr(ours, "device", "auto")))
    with quiet_imports():
        from pipelines import launch
    ours, options = launch.parse_options(parser, argv)
    for name in ("address", "gpus_per_actor"):
        if getattr(ours, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: expected with --engine ray, of which it is an option")
    return ours, OnBeam(options, waits=not ours.no_wait)


def _surplus(parser: ArgumentParser, argv: Sequence[str], rest: Sequence[str]) -> UserError:
    """The error of options that are not the job's, with ``--engine ray``."""
    name = rest[0].partition("=")[0]
    if name == "--no-wait":
        return UserError(
            "--no-wait: expected without --engine ray, whose jobs end with their command: `ray job submit --no-wait` "
            "leaves the command to the cluster"
        )
    with quiet_imports():
        from pipelines import launch
    launch.require_known(argv, rest, parser)
    return UserError(f"{name}: expected without --engine ray, for it is an option of Apache Beam")
