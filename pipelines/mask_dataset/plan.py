"""The plan of a mask dataset: from the job's options to the specification of every mask."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from masks.coverage import RATIO_BUCKETS
from masks.sampling import MIXTURE, MaskSpec
from trainer import storage
from trainer.errors import UserError

SPLITS = ("train", "val", "test")
# Border rules that --stratify cycles through: the paper's test set has equally many masks of each.
BORDER_CLASSES = ("none", "touch")
# Section 4.2 of the paper: 1,000 masks for each of the six intervals and the two border classes.
TEST_SETS = {"paper": {"count": 12_000, "size": 512, "split": "test", "stratify": True}}


@dataclass(frozen=True)
class Plan:
    """Mask ``index`` of ``count`` follows ``specs[index % len(specs)]``; their shards are named after ``split``."""

    specs: tuple[MaskSpec, ...]
    count: int
    split: str

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families that draw the masks; the same for all specifications."""
        return self.specs[0].families


def make_plan(options: argparse.Namespace) -> Plan:
    """The plan for the job's ``options``.

    Raises:
        UserError: an option is missing, contradicts another, or asks for impossible masks.
    """
    _apply_test_set(options)
    _check(options)
    intervals = _parse_interval(options.hole_ratio) or RATIO_BUCKETS
    borders = BORDER_CLASSES if options.stratify else (options.border or "any",)
    cells = [(interval, border) for border in borders for interval in intervals]
    if options.stratify and options.count % len(cells):
        near = max(1, round(options.count / len(cells))) * len(cells)
        raise UserError(
            f"--count: expected a multiple of {len(cells)} with --stratify, so that every interval and border class "
            f"gets equally many, for example {near}. Received {options.count}."
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
    """Fills in what ``--test-set`` stands for, and the defaults of options that are not given."""
    preset = TEST_SETS.get(options.test_set, {})
    defaults = {"count": None, "size": 512, "split": "train", "stratify": False}
    for name, default in defaults.items():
        given = getattr(options, name)
        missing = given is None or given is False
        if name in preset and not missing and given != preset[name]:
            raise UserError(f"--test-set {options.test_set}: leave out --{name}, which it sets to {preset[name]}.")
        setattr(options, name, preset.get(name, default) if missing else given)


def _check(options: argparse.Namespace) -> None:
    """Raises `UserError` for options that are missing, out of range, or contradict each other."""
    for name in ("count", "num_shards"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected 1 or more. Received {value}.")
    if options.count is None:
        raise UserError("--count is missing: the number of masks. --test-set sets it, too.")
    if options.stratify and (options.hole_ratio or options.border):
        raise UserError("--stratify takes all intervals and border classes: leave out --hole-ratio and --border.")
    if bool(options.weights) != (options.generator == MIXTURE):
        raise UserError("--weights: expected with, and only with, --generator mixture.")


def _parse_interval(text: str | None) -> tuple[tuple[float, float], ...]:
    """The interval in LOW,HIGH, as the only one; none at all for None."""
    if text is None:
        return ()
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--hole-ratio: expected LOW,HIGH. Received {text!r}.") from None
    return ((low, high),)


def _parse_weights(text: str | None) -> tuple[tuple[str, float], ...]:
    try:
        pairs = [part.split("=") for part in text.split(",")] if text else []
        return tuple((family.strip(), float(weight)) for family, weight in pairs)
    except ValueError:
        raise UserError(f"--weights: expected FAMILY=NUMBER,... Received {text!r}.") from None


def parameters_of(plan: Plan, options: argparse.Namespace) -> dict:
    """The plan as the manifest's ``parameters``; addresses are absolute, whichever folder the job was started in."""
    given = {name: getattr(options, name) for name in ("hole", "hole_label", "threshold", "max_pixels")}
    given |= _addresses(options)
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
        "sources": {name: value for name, value in given.items() if value is not None},
    }


def _addresses(options: argparse.Namespace) -> dict[str, str]:
    """Where the sources are, by option."""
    given = {name: getattr(options, name) for name in ("mask_files", "frames", "stills")}
    return {name: storage.normalize(address) for name, address in given.items() if address}


def places_of(options: argparse.Namespace) -> list[str]:
    """The files and folders that the sources are in."""
    return [storage.select(address).place for address in _addresses(options).values()]
