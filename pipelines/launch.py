"""How every job starts: our options first, Beam's after them, one line for what goes wrong."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import logging
import re
import sys
from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from trainer import datasets, storage
from trainer.command import ArgumentParser, UserError

# DirectRunner tries to download another runner first, and so behaves differently with a network
# and without; this one runs in the process (docs: beam.apache.org/documentation/runners/direct).
DEFAULT_RUNNER = "FnApiRunner"


def code_version() -> str:
    return importlib.metadata.version("pconv")


def parse_options(parser: ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, PipelineOptions]:
    """Splits ``argv`` into the job's options and Beam's.

    Raises:
        UserError: an option that neither knows; Beam alone would drop it with a warning.
    """
    parser.epilog = "Options of Apache Beam (--runner, --direct_num_workers, --region ...) may follow."
    ours, rest = parser.parse_known_args(argv)
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for kind in dict.fromkeys(PipelineOptions.__subclasses__()):
        kind._add_argparse_args(known)
    try:
        _, unknown = known.parse_known_args(rest)
    except (argparse.ArgumentError, SystemExit) as error:
        raise UserError(f"{error} ({parser.prog})") from None
    if unknown:
        names = [option for action in [*parser._actions, *known._actions] for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown option {unknown[0]}.{hint} ({parser.prog} --help lists the options)")
    options = PipelineOptions(rest)
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = DEFAULT_RUNNER
    return ours, options


def run_pipeline(options: PipelineOptions, build: Callable[[beam.Pipeline], None]) -> None:
    """Builds and runs a pipeline to its end.

    Raises:
        UserError: the job failed because of something the user can put right.
    """
    # Beam's RunInference cannot measure memory where PyTorch is missing, and says so on every load.
    logging.getLogger().addFilter(lambda record: "Resource module is not available" not in record.getMessage())
    try:
        pipeline = beam.Pipeline(options=options)
        build(pipeline)
        pipeline.run().wait_until_finish()
    except Exception as error:
        # Runners wrap what a worker raised into text, so its class has to be looked for there.
        found = re.findall(r"(?:UserError|NotFound|Corrupt): (.+?)(?: \[while running|\\n|\n|$)", str(error))
        if isinstance(error, UserError) or not found:
            raise
        raise UserError(found[-1].strip("'\"")) from None


def claim_dataset(output: str, overwrite: bool) -> bool:
    """Whether a dataset has yet to be written to the folder ``output``; empties it first if asked to.

    Raises:
        UserError: the folder cannot be written to.
    """
    storage.require_writable(output)
    if overwrite:
        # The manifest goes first: a half-emptied folder is not a dataset.
        storage.delete(storage.join(output, datasets.MANIFEST))
        for address in storage.find(output):
            name = storage.relative(address, output)
            if name.endswith(".tfrecord") or name.startswith("rejects/"):
                storage.delete(address)
    elif datasets.has_manifest(output):
        print(f"{output} is finished already; nothing to do (--overwrite writes it again)", file=sys.stderr)
        return False
    return True
