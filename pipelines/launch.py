"""Launching Beam jobs: option parsing (ours, then Beam's), the default runner, and one-line errors."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.runners.runner import PipelineResult

from pipelines import remote, worker_processes
from trainer import stopping, storage
from trainer.command import SOME_REJECTED, ArgumentParser, explain_surplus
from trainer.data import finished, folders, kept, manifest
from trainer.data.finished import Expected
from trainer.errors import Outage, UserError, outage_in, user_error_in
from trainer.storage import claims
from trainer.storage.claims import Claim

# DirectRunner tries to download another runner first, and so behaves differently with a network
# and without; this one runs in the process (docs: beam.apache.org/documentation/runners/direct).
DEFAULT_RUNNER = "FnApiRunner"

# Of a dataset: the files that a job of another split, or one that was killed, may have left.
_SHARD = re.compile(r"([^/]+)-\d{5,}-of-\d{5,}\.tfrecord")
_OURS = re.compile(
    rf"(?:{re.escape(kept.FOLDER)}/)?{_SHARD.pattern}(?:\.json|\.\w+\.\d+\.piece)?|"
    rf"{manifest.REJECTS}/[^/]+\.jsonl|manifest\.json|contact_sheet\.png"
)
DATASET_FILES = (manifest.MANIFEST, manifest.shard_name("train", 0, 1), "contact_sheet.png")
# Runners whose jobs get a thread of their own: an interrupt then finds the main thread here, and not in a library that
# would catch it. The others start programs, which they end with the interpreter, and ask for the main thread.
_ENDS_WITH_US = ("FnApiRunner", "PortableRunner")
# Seconds in which a job says what is wrong with it after one of its worker processes has died.
_GATHER_S = 2.0

# Beam's RunInference cannot measure memory where PyTorch is missing, and warns on every load.
_NOISE = re.compile(r"Resource module is not available|No semi_persistent_directory found")


def disable_flush_timer() -> None:
    """Stops Beam's in-process runner from flushing its data streams by a timer, which loses elements.

    Where the runner feeds other processes, Beam 2.77 flushes each stream from a second thread every 1,000 ms, and what
    is written between that thread's ``get()`` and its ``clear()`` is lost: 13,000 to 27,000 of 44,800 elements of
    4.6 kB at 5 ms, at times up to 3,000 of 60,000 masks at 1,000 ms. 0 leaves flushing to the writer alone.
    """
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0


def dismiss_late_workers() -> None:
    """Makes Beam's in-process runner send home worker processes that start after the job has failed.

    When a job ends, Beam 2.77 tells the workers that have connected by then that there is no more work, but waits for
    all of them to exit: a job in several processes that failed before the last one was up waited forever.
    """

    def close(self: worker_handlers.ControlConnection) -> None:
        self.push(worker_handlers.BeamFnControlServicer._DONE_MARKER)
        with worker_handlers.ControlConnection._lock:
            if self._state == worker_handlers.BeamFnControlServicer.STARTED_STATE:
                self._read_thread.join()
            self._state = worker_handlers.BeamFnControlServicer.DONE_STATE

    worker_handlers.ControlConnection.close = close  # type: ignore[method-assign]  # replaced on purpose


def add_options(parser: ArgumentParser) -> None:
    """Adds the options that all jobs have."""
    parser.add_argument(
        "--no-wait",
        action="store_true",
        help="print the id of a job that runs on a service, such as Dataflow, and end; the job is done when its "
        "manifest.json (of evaluate, metrics.json) is there",
    )


def parse_options(parser: ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, PipelineOptions]:
    """Splits ``argv`` into the job's options and Beam's.

    Raises:
        UserError: an option is unknown to both (Beam alone would drop it with a warning), or Beam cannot make a
            pipeline of its options: the runner is unknown, or lacks a required option.
    """
    add_options(parser)
    parser.epilog = "Options of Apache Beam (--runner, --direct_num_workers, --region ...) may follow."
    ours, rest = parser.parse_known_args(argv)
    require_known(argv, rest, parser)
    options = PipelineOptions(rest)
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = DEFAULT_RUNNER
    if standard.runner == "PortableRunner" and not options.view_as(PortableOptions).job_endpoint:
        raise UserError(
            "--runner PortableRunner: expected --job_endpoint: HOST:PORT, or embed to start one in this process"
        )
    if remote.has_workers_elsewhere(options) and any(part.partition("=")[0] == "--billing-project" for part in argv):
        raise UserError(
            "--billing-project: workers that are elsewhere would not get it. Set PCONV_BILLING_PROJECT in their image "
            "and in this environment"
        )
    ours.no_wait = ours.no_wait or bool(standard.no_wait_until_finish)  # Beam's name for it
    if ours.no_wait and not remote.outlives_us(options):
        raise UserError(
            "--no-wait: expected a runner whose jobs outlive the command, such as DataflowRunner. "
            f"Received {standard.runner}."
        )
    try:
        with stopping.temporary_files_in_scratch():
            beam.Pipeline(options=options)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--runner {standard.runner}: {error}") from None
    return ours, options


def require_known(argv: Sequence[str], rest: Sequence[str], parser: ArgumentParser) -> None:
    """Raises `UserError` for one of ``rest`` that Beam does not know or cannot parse; ``parser`` has the job's own."""
    beams = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for kind in dict.fromkeys(PipelineOptions.__subclasses__()):
        kind._add_argparse_args(beams)  # type: ignore[arg-type]  # declared for a private subclass of the parser
    try:
        _, unknown = beams.parse_known_args(rest)
    except (argparse.ArgumentError, SystemExit) as error:
        raise UserError(f"{error} ({parser.prog})") from None
    if unknown and (reason := explain_surplus(argv, unknown[0], [parser, beams])):
        parser.error(reason)
    if unknown:
        names = [option for action in [*parser._actions, *beams._actions] for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown option {unknown[0]}.{hint} ({parser.prog} --help lists the options)")


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Whether a log record is none of noise, a lost connection, a traceback of which one line is enough."""
    text, error = record.getMessage(), record.exc_info[1] if record.exc_info else None
    if _NOISE.search(text) or isinstance(error, grpc.RpcError):
        return False
    return not any(raised and _in_one_line(raised) for raised in (RuntimeError(text), error))


def _in_one_line(error: BaseException) -> Exception | None:
    """The outage or the `UserError` that an engine has wrapped into ``error``; None for a bug."""
    return outage_in(error) or user_error_in(error)


class _Job(threading.Thread):
    """Builds and runs a pipeline; with ``wait`` until it has finished.

    Attributes:
        ends: gets an item when the job is over, and one for each of its worker processes that dies: a sentence.
        over: whether it is.
        result: the job, once it has been started.
        error: what the job failed with, if it did.
    """

    def __init__(self, options: PipelineOptions, build: Callable[[beam.Pipeline], None], wait: bool):
        super().__init__(name="job", daemon=True)
        self._options, self._build, self._wait = options, build, wait
        self.ends: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.over = False
        self.result: PipelineResult | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            pipeline = beam.Pipeline(options=self._options)
            self._build(pipeline)
            self.result = remote.start(pipeline, self._options)
            if self._wait:
                remote.wait(self.result, remote.outlives_us(self._options))
        except BaseException as error:
            self.error = error
        finally:
            self.over = True
            self.ends.put(None)

    def wait(self) -> str | None:
        """Waits until the job is over; the sentence of a worker process that died before."""
        death = self.ends.get()
        if death:
            # Perhaps the job has an error of its own, and that is why.
            with contextlib.suppress(queue.Empty):
                while self.ends.get(timeout=_GATHER_S):
                    pass
        return death


def run_pipeline(options: PipelineOptions, build: Callable[[beam.Pipeline], None], wait: bool = True) -> None:
    """Builds a pipeline, runs it, and waits for it to finish unless ``wait`` is false.

    Raises:
        UserError: the job failed because of something the user can fix.
        Outage: it failed because a store or a disk did, because a permission was lost, or because a worker process was
            killed. The runner has tried the work again, if it does so (the in-process runner does not).
        LeftRunning: the user has interrupted this command, and the job goes on.
    """
    disable_flush_timer()
    dismiss_late_workers()
    logging.basicConfig()  # as the first record would
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_worth_logging)
    job = _Job(options, build, wait)
    with stopping.temporary_files_in_scratch(), worker_processes.managed(job.ends.put):
        if options.view_as(StandardOptions).runner in _ENDS_WITH_US:
            job.start()
        else:
            job.run()
        try:
            death = job.wait()
        except KeyboardInterrupt:
            remote.leave(job.result, options)
            raise
        finally:
            if not job.over:
                stopping.abandon_threads()
    error = job.error or (Outage(death) if death and not job.over else None)
    if error is None:
        return
    if isinstance(error, KeyboardInterrupt):
        remote.leave(job.result, options)
    if found := _in_one_line(error):
        raise found from None
    raise Outage(death) if death else error


def require_apart(output: str, inputs: Mapping[str, str | None], names: Iterable[str] = DATASET_FILES) -> None:
    """Raises `UserError` if what a job writes would be among its inputs, of a second run at the latest.

    Args:
        output: address of the output folder.
        inputs: by option, what was given for it; a file, a folder or a glob.
        names: of files that the job writes there.
    """
    for option, address in inputs.items():
        selected = storage.select(address) if address else None
        if selected and any(selected.holds(storage.join(output, name)) for name in names):
            raise UserError(f"--output: expected a folder that is not in {option} {address}. Received {output}.")


def require_written(address: str) -> None:
    """Raises `Outage` if a job that its runner calls done has not written the file that it ends with."""
    if not storage.exists(address):
        raise Outage(f"the job is done, says its runner, but has not written {address}: the workers' logs may say why")


def report_dataset(output: str, kind: str, hint: str = "") -> int:
    """Says what a job that is done has written, and `report_rejects`."""
    require_written(storage.join(output, manifest.MANIFEST))
    print(f"{manifest.load_manifest(output, kind).counts['records']} {kind}s in {output}{hint}")
    return report_rejects(output, kind)


def report_rejects(output: str, kind: str) -> int:
    """Says on stderr how many inputs a finished dataset could not use; returns the command's exit code."""
    counts = manifest.load_manifest(output, kind).counts
    if not counts["rejects"]:
        return 0
    where = storage.join(output, manifest.REJECTS)
    print(f"{counts['rejects']} of {counts['inputs']} inputs rejected, see {where}", file=sys.stderr)
    return SOME_REJECTED


def claim_dataset(
    output: str, overwrite: bool, splits: Iterable[str] = (), expected: Expected | None = None
) -> Claim | None:
    """Claims the folder ``output`` for a dataset that is to be written; removes an existing one if asked to.

    Args:
        output: address of the folder.
        overwrite: whether a dataset that is there is to be replaced.
        splits: of the dataset; what else is removed are the shards and rejects of those that are there.
        expected: what the job makes, to compare a dataset that is there with.

    Returns:
        The claim; None if the dataset is complete.

    Raises:
        UserError: the folder is not writable, has a link where files are written, is claimed by another job, or
            holds another dataset or something else.
    """
    storage.require_writable(output)
    for name in (manifest.REJECTS, kept.FOLDER):
        storage.require_confined(storage.join(output, name))
    if expected is not None:
        folders.require_kind(output, folders.DATASETS[expected.kind])
    if not overwrite and manifest.has_manifest(output) and (expected is None or _is_complete(output, expected)):
        print(f"{output} is already complete, nothing to do (use --overwrite to rebuild)", file=sys.stderr)
        kept.forget(output)  # of a job that was killed while it did so
        return None
    claim = claims.take(output, replaces=overwrite)
    storage.sweep(output, lambda name: bool(_OURS.fullmatch(name)))
    if overwrite:
        found = [storage.relative(address, output) for address in storage.find(output)]
        known = {*splits, *_splits_there(output, found, expected)}
        rejects = {f"{manifest.REJECTS}/{split}.jsonl" for split in known}
        # Listed before: nothing in the list is of a job that has started later.
        claims.require(claim)
        # The manifest goes first: a half-emptied folder is not a dataset.
        for name in [manifest.MANIFEST, *found]:
            shard = _SHARD.fullmatch(name)
            if name == manifest.MANIFEST or (shard and shard[1] in known) or name in rejects:
                storage.delete(storage.join(output, name))
        kept.forget(output)
    elif there := kept.count(output):
        print(f"{output}: a job that did not end has left {there} shards; they are kept if they fit", file=sys.stderr)
    return claim


def _is_complete(output: str, expected: Expected) -> bool:
    """Whether there is nothing to do for a dataset that is there; damaged files of it are removed.

    Raises:
        UserError: it was made with other options.
    """
    there = manifest.load_manifest(output, expected.kind)
    finished.require_same(output, there, expected)
    if damaged := finished.damaged_files(output, there):
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        print(f"{output}: made again, for they are missing or damaged: {damaged[0]}{more}", file=sys.stderr)
        with claims.held(claims.take(output, replaces=True)):
            for name in [manifest.MANIFEST, *damaged]:
                storage.delete(storage.join(output, name))
        return False
    if finished.is_outdated(output, there, expected):
        print(
            f"{output} is complete, but its inputs may have changed since: comparing it with what they give now "
            "(--overwrite replaces it)",
            file=sys.stderr,
        )
        return False
    return True


def _splits_there(output: str, found: Iterable[str], expected: Expected | None) -> set[str]:
    """Splits of the dataset in a folder: those of its manifest or, of one that has none, of all shards found there."""
    with contextlib.suppress(UserError):
        if expected is not None:
            return {shard.split for shard in manifest.load_manifest(output, expected.kind).shards}
    return {shard[1] for name in found if (shard := _SHARD.fullmatch(name))}
