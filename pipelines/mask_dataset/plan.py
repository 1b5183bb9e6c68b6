"""What the mask job is asked for: from its options to the specification of every mask."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

from masks.coverage import RATIO_BUCKETS
from masks.families import FAMILIES
from masks.sampling import MIXTURE, MaskSpec
from pipelines.mask_dataset.sources import THRESHOLD, SourceFile, SourceOptions, list_sources
from pipelines.transforms.rejects import Reject
from trainer.errors import UserError

SPLITS = ("train", "val", "test")
# Border rules that --stratify asks for in turns: the paper's test set has as many masks of each.
BORDER_CLASSES = ("none", "touch")
# Section 4.2 of the paper: 1,000 masks for each of the six intervals and the two border classes.
TEST_SETS = {"paper": {"count": 12_000, "size": 512, "split": "test", "stratify": True}}
# Where each kind of source comes from.
_FLAGS = {"mask": "--mask-files", "frames": "--frames", "still": "--stills"}


@dataclass(frozen=True)
class Plan:
    """Mask ``index`` of ``count`` follows ``specs[index % len(specs)]``; their shards are named after ``split``."""

    specs: tuple[MaskSpec, ...]
    count: int
    split: str


def make_plan(options: argparse.Namespace) -> Plan:
    """The plan of the job's ``options``.

    Raises:
        UserError: an option is missing, contradicts another, or asks for masks that cannot be.
    """
    _apply_test_set(options)
    for name in ("count", "num_shards"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected 1 or more. Received {value}.")
    if options.split not in SPLITS:
        raise UserError(f"--split: expected one of {SPLITS}. Received {options.split!r}.")
    if options.count is None:
        raise UserError("--count: expected the number of masks, or --test-set. Received neither.")
    if options.stratify and (options.hole_ratio or options.border):
        raise UserError("--stratify takes all intervals and border classes: leave out --hole-ratio and --border.")
    if bool(options.weights) != (options.generator == MIXTURE):
        raise UserError("--weights: expected with, and only with, --generator mixture.")

    intervals = _parse_interval(options.hole_ratio) or RATIO_BUCKETS
    borders = BORDER_CLASSES if options.stratify else (options.border or "any",)
    cells = [(interval, border) for border in borders for interval in intervals]
    if options.stratify and options.count % len(cells):
        near = max(1, round(options.count / len(cells))) * len(cells)
        raise UserError(
            f"--count: expected a multiple of {len(cells)} with --stratify, so that each interval and border class "
            f"has as many; {near} would do. Received {options.count}."
        )
    try:
        specs = tuple(
            MaskSpec(
                generator=options.generator,
                height=options.size,
                width=options.size,
                hole_ratio=interval,
                border=border,
                # No seed of one split is a seed of another.
                seed=len(SPLITS) * options.seed + SPLITS.index(options.split),
                margin=options.margin,
                weights=_parse_weights(options.weights),
            )
            for interval, border in cells
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    return Plan(specs, options.count, options.split)


def _apply_test_set(options: argparse.Namespace) -> None:
    """Fills in what ``--test-set`` stands for, and the defaults where it is not given."""
    if options.test_set is not None and options.test_set not in TEST_SETS:
        raise UserError(f"--test-set: expected one of {tuple(TEST_SETS)}. Received {options.test_set!r}.")
    preset = TEST_SETS.get(options.test_set, {})
    defaults = {"count": None, "size": 512, "split": "train", "stratify": False}
    for name, default in defaults.items():
        given = getattr(options, name)
        left_out = given is None or given is False
        if name in preset and not left_out and given != preset[name]:
            raise UserError(f"--test-set {options.test_set}: leave out --{name}, which it sets to {preset[name]}.")
        setattr(options, name, preset.get(name, default) if left_out else given)


def _parse_interval(text: str | None) -> list[tuple[float, float]] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--hole-ratio: expected LOW,HIGH. Received {text!r}.") from None
    return [(low, high)]


def _parse_weights(text: str | None) -> tuple[tuple[str, float], ...]:
    try:
        pairs = [part.split("=") for part in text.split(",")] if text else []
        return tuple((family.strip(), float(weight)) for family, weight in pairs)
    except ValueError:
        raise UserError(f"--weights: expected FAMILY=NUMBER,... Received {text!r}.") from None


def find_files(options: argparse.Namespace, plan: Plan) -> tuple[list[SourceFile], SourceOptions, list[Reject]]:
    """The files that the plan's families start from, how to read them, and rejects for those that are of no kind.

    Raises:
        UserError: an option is missing, contradicts another, or matches no file.
    """
    needed = {kind for family in plan.specs[0].families for kind in FAMILIES[family].source_kinds}
    given = {"mask": options.mask_files, "frames": options.frames, "still": options.stills}
    for family in plan.specs[0].families:
        kinds = FAMILIES[family].source_kinds
        if kinds and not any(given[kind] for kind in kinds):
            raise UserError(f"--generator {family}: expected {' or '.join(_FLAGS[kind] for kind in kinds)}.")
    for kind, address in given.items():
        if address and kind not in needed:
            raise UserError(f"{_FLAGS[kind]}: none of {', '.join(plan.specs[0].families)} starts from such files.")
    if bool(options.mask_files) != bool(options.hole):
        raise UserError("--hole: expected with, and only with, --mask-files: black or white, the colour of holes.")
    threshold = THRESHOLD if options.threshold is None else options.threshold
    reading = SourceOptions(hole=options.hole, threshold=threshold, side=options.size)
    if not needed:
        return [], reading, []
    found, unmatched = list_sources(mask_files=options.mask_files, frames=options.frames, stills=options.stills)
    if not found:
        first = unmatched[0]
        raise UserError(f"expected files that masks can start from. Received {first.source}: {first.error}")
    return found, reading, [dataclasses.replace(one, split=plan.split) for one in unmatched]


def parameters_of(plan: Plan, options: argparse.Namespace) -> dict:
    """The plan as the manifest's ``parameters``."""
    names = ("mask_files", "hole", "threshold", "frames", "stills")
    first = plan.specs[0]
    return {
        "generator": first.generator,
        "weights": dict(first.weights),
        "height": first.height,
        "width": first.width,
        "hole_ratio": list(dict.fromkeys(spec.hole_ratio for spec in plan.specs)),
        "border": list(dict.fromkeys(spec.border for spec in plan.specs)),
        "margin": first.margin,
        "mask_seed": first.seed,
        "count": plan.count,
        "split": plan.split,
        "sources": {name: getattr(options, name) for name in names if getattr(options, name) is not None},
    }
