"""The evaluation on Ray, around the functions of `pipelines.evaluation`.

masks --> plan --> joined by round --> Evaluator --> rows, features --> board, chosen pairs --> report
images ------------^                   actors ------> pictures of the chosen ------------------^

Rounds go through Ray Data to actors which have all networks and score what they fill: rows are small, and the sums of
them the same in any order. A round that is lost with its process is evaluated again, alone: see `alone`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.util.metrics import Gauge

from pipelines.engines.on_ray import alone
from pipelines.engines.on_ray.cluster import Cluster, Parts, joined, remote, results
from pipelines.engines.on_ray.progress import JobProgress
from pipelines.engines.on_ray.rows import from_table, stage, to_table
from pipelines.evaluation import gallery, pairing
from pipelines.evaluation.distances import Features, look_at_round, measure
from pipelines.evaluation.file_pairs import Entry, FilePairs, facts_of, make_plan, read_round
from pipelines.evaluation.job import Data, Job, write_report
from pipelines.evaluation.methods import Output, fill_round
from pipelines.evaluation.rounds import (
    Facts,
    PlacedMask,
    Round,
    Shard,
    Source,
    decode_round,
    fill_with,
    mask_key,
    name_of,
    place_image,
    place_mask,
    read_file,
    read_images,
    read_masks,
    score_round,
    to_pairs,
)
from pipelines.evaluation.scoreboard import Board, board_of, merge_into
from pipelines.transforms.rejects import reject
from trainer.storage.names import to_bytes

_GROUPS = 64  # of rounds, which are joined together
_PIECES = 8  # of a table: an actor has two or three of these at a time
_FILES = 256  # of a task that places image files

Drawn = tuple[int, str, bytes]  # pair, method, JPEG


class Unread(NamedTuple):
    """An image file that whoever evaluates its round reads: position and address."""

    position: int
    address: bytes


class Piece(NamedTuple):
    """A round that is not decoded: its number, and its image and masks, or the files of its pair."""

    number: int
    content: dict[str, list] | Entry


class Scored(NamedTuple):
    """What is known of a round: facts of its pairs, rows, features by method."""

    number: int
    facts: list[Facts]
    rows: list[dict]
    features: list[tuple[str, Features]]


class Pictures(NamedTuple):
    """The pictures of the chosen pairs of a round."""

    number: int
    drawn: list[Drawn]


Tables = list[tuple[Any, list[int]]]  # references to tables of pieces, and the numbers of these


def evaluate(job: Job, cluster: Cluster) -> None:
    """Runs the job to its end: `job.FILES`.

    Raises:
        UserError: it failed because of something that the user can fix.
        Outage: a store, a disk or a process failed.
    """
    with joined(cluster) as parts:
        if isinstance(job.data, FilePairs):
            tables, plan = _tables_of_files(job.data), None
        else:
            tables, plan = _join(job.data, job, parts.task_cpus)
        rows, facts, features = list[dict](), list[Facts](), dict[str, list[Features]]()
        pairs: dict[int, list[int]] = {}  # by round
        with contextlib.closing(JobProgress("scores", job.output, Gauge)) as progress:
            for scored in _each(job, tables, parts, None):
                progress.add(len(scored.rows), rejects=sum("error" in row for row in scored.rows))
                rows += scored.rows
                facts += scored.facts
                pairs[scored.number] = [one.pair for one in scored.facts]
                for method, found in scored.features:
                    features.setdefault(method, []).append(found)
        chosen = gallery.choose_pairs(rows, job.reference)
        wanted = {number for number, mine in pairs.items() if not chosen.keys().isdisjoint(mine)}
        drawn = [one for pictures in _each(job, _only(tables, wanted), parts, chosen) for one in pictures.drawn]
    distances = dict(map(measure, features.items())) if job.fid else None
    plan = make_plan(sorted(facts)) if plan is None else plan
    write_report(rows, job, plan, _tally(rows, job.reference), chosen, drawn, distances)


def _tally(rows: Iterable[dict], reference: str) -> Board:
    by_pair: dict[int, list[dict]] = {}
    for row in rows:
        by_pair.setdefault(row["pair"], []).append(row)
    board: Board = {}
    for mine in by_pair.values():
        merge_into(board, board_of(mine, reference))
    return board


# Rounds


def _packed(pieces: Iterable[Piece]) -> Iterator[tuple[list[int], pa.Table]]:
    pieces = list(pieces)
    for start in range(0, len(pieces), _PIECES):
        mine = pieces[start : start + _PIECES]
        yield [piece.number for piece in mine], to_table(mine)


def _tables_of_files(pairs: FilePairs) -> Tables:
    return [(ray.put(table), numbers) for numbers, table in _packed(Piece(entry[0], entry) for entry in pairs.entries)]


def _only(tables: Tables, wanted: set[int]) -> Tables:
    """Tables of the wanted rounds alone."""
    mine = [reference for reference, numbers in tables if not wanted.isdisjoint(numbers)]
    pieces = (piece for reference in mine for piece in from_table(ray.get(reference)) if piece.number in wanted)
    return [(ray.put(table), numbers) for numbers, table in _packed(pieces)]


def _join(data: Data, job: Job, cpus: float) -> tuple[Tables, pairing.Plan]:
    """Tables of the rounds of records, and the plan they follow."""
    read = remote(_read_masks, num_returns=2, num_cpus=cpus)
    masks = [read.remote(shard) for shard in data.masks.shards]
    keys = [key for found in ray.get([keys for keys, _ in masks]) for key in found]
    plan = pairing.plan_pairs(keys, job.seed, job.per_cell)
    groups = max(1, min(_GROUPS, plan.rounds))
    plan_ref, places_ref = ray.put(plan), ray.put(data.places)
    options = {"num_returns": groups, "num_cpus": cpus}
    place = remote(_place_masks, **options)
    placed = [place.remote(records, plan_ref, groups) for _, records in masks]
    if data.images:
        run = remote(_place_images, **options)
        placed += [run.remote(one, places_ref, data.num_images, plan_ref, groups) for one in data.images.shards]
    else:
        used = [Unread(n, to_bytes(address)) for n, address in enumerate(data.image_files) if n in data.places]
        run = remote(_place_files, **options)
        for start in range(0, len(used), _FILES):
            mine = used[start : start + _FILES]
            placed.append(run.remote(mine, places_ref, data.num_images, plan_ref, groups))
    join = remote(_join_rounds, num_returns="streaming", num_cpus=cpus)
    columns = [[parts] if groups == 1 else parts for parts in placed]
    streams = [join.remote(*(parts[number] for parts in columns)) for number in range(groups)]
    return [(next(stream), ray.get(numbers)) for stream in streams for numbers in stream], plan


def _read_masks(shard: Shard) -> tuple[list[pairing.MaskKey], list[tuple[int, bytes]]]:
    found = list(read_masks(shard))
    return [mask_key(item) for item in found], found


def _place_masks(found: list[tuple[int, bytes]], plan: pairing.Plan, groups: int) -> list[list]:
    return _grouped((placed for item in found for placed in place_mask(item, plan)), groups)


def _place_images(shard: Shard, places: dict[int, int], num_images: int, plan: pairing.Plan, groups: int) -> list[list]:
    found = read_images(shard, places)
    return _grouped((placed for item in found for placed in place_image(item, places, num_images, plan)), groups)


def _place_files(
    used: list[Unread], places: dict[int, int], num_images: int, plan: pairing.Plan, groups: int
) -> list[list]:
    turns = (
        (turn, file) for file in used for turn in pairing.rounds_of(places[file.position], num_images, plan.rounds)
    )
    return _grouped(turns, groups)


def _grouped(placed: Iterable[tuple[int, Any]], groups: int) -> Any:
    found: list[list] = [[] for _ in range(groups)]
    for turn, one in placed:
        found[turn % groups].append((turn, one))
    return found if groups > 1 else found[0]


def _join_rounds(*parts: list[tuple[int, PlacedMask | Source | Unread]]) -> Iterator[Any]:
    """The numbers of a table of pieces, then the table, and so on."""
    contents: dict[int, dict[str, list]] = {}
    for turn, one in (found for part in parts for found in part):
        content = contents.setdefault(turn, {"images": [], "masks": []})
        content["masks" if isinstance(one, PlacedMask) else "images"].append(one)
    for numbers, table in _packed(Piece(turn, content) for turn, content in sorted(contents.items())):
        yield numbers
        yield table


# Evaluating


def _each(job: Job, tables: Tables, parts: Parts, chosen: Mapping[int, Any] | None) -> Iterator[Any]:
    """`Scored`, or `Pictures` of the ``chosen`` pairs, of each piece."""
    missing = {number for _, numbers in tables for number in numbers}
    if not missing:
        return
    job_ref = ray.put(job)
    pool = ActorPoolStrategy(
        min_size=1,
        max_size=max(parts.actors, 1000),
        initial_size=max(1, min(parts.actors, len(tables))),
        max_tasks_in_flight_per_actor=2,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of max_restarts, which Ray 2.64 is to name in another way
        made: Any = ray.data.from_arrow_refs([table for table, _ in tables])
        made = made.map_batches(
            _Evaluate,
            fn_constructor_args=(job_ref, parts, chosen),
            compute=pool,
            batch_format="pyarrow",
            batch_size=_PIECES,
            num_cpus=parts.actor_cpus,
            num_gpus=parts.actor_gpus or None,
            max_restarts=-1,
            max_task_retries=0,
        )
        for bundle in made.iter_internal_ref_bundles():
            for reference in bundle.block_refs:
                for result in results(reference):
                    missing.discard(result.number)
                    yield result
    if left := [piece for table, _ in _only(tables, missing) for piece in from_table(ray.get(table))]:
        for piece, result in alone.each_alone(Evaluator, (job_ref, parts, chosen), left, parts):
            yield result or _given_up(piece, job, chosen)


def _given_up(piece: Piece, job: Job, chosen: Mapping[int, Any] | None) -> Scored | Pictures:
    """Of a piece that kills its process: rows that say so."""
    if chosen is not None:
        return Pictures(piece.number, [])
    error = reject("", "fill", alone.killed()).error
    if isinstance(piece.content, dict):
        data: Any = job.data  # of a dataset of masks
        base, images = data.selected.base, piece.content["images"]
        names = [name_of(one.address, base) if isinstance(one, Unread) else one.name for one in images]
        content: Any = piece.content | {"images": [Source(name, b"", error) for name in names]}
    else:
        number, name, *_ = piece.content
        content = (number, name, None, error)
    decoded = _decode(Piece(piece.number, content), job)
    rows = [row for method in job.methods for row in score_round((decoded, []), method)]
    return Scored(piece.number, list(facts_of(decoded)), rows, [])


def _decode(piece: Piece, job: Job) -> Round:
    if isinstance(job.data, FilePairs):
        return read_round(piece.content, job.data.settings)  # type: ignore[arg-type]  # of files it is an entry
    content: Any = piece.content
    base = job.data.selected.base
    read = [read_file(one, base, job.max_pixels)[1] if isinstance(one, Unread) else one for one in content["images"]]
    return decode_round((piece.number, content | {"images": read}), job.max_pixels)


class Evaluator:
    """All methods of a job, in an actor.

    Args:
        job: the job.
        parts: what the actor may use.
        chosen: pairs whose pictures are wanted; None for scores.
    """

    def __init__(self, job: Job, parts: Parts, chosen: Mapping[int, Any] | None):
        self._job, self._parts, self._chosen = job, parts, chosen
        self._models: list[Any] | None = None

    def load(self) -> None:
        if self._models is None:
            self._parts.prepare_devices()
            self._models = [network.load(self._job.batch_size) for network in self._job.networks]

    def make(self, piece: Piece) -> Scored | Pictures:
        job, chosen, decoded = self._job, self._chosen, _decode(piece, self._job)
        if chosen is None:
            filled = self._fill(decoded)
            rows = [row for name, item in filled for row in score_round(item, name, job.lpips)]
            looked = [found for name, item in filled for found in look_at_round(item, name, job.fid)] if job.fid else []
            return Scored(piece.number, list(facts_of(decoded)), rows, looked)
        drawn = [
            picture
            for kept in gallery.keep_chosen(decoded, chosen)
            for name, item in self._fill(kept)
            for picture in gallery.draw_round(item, name, name == job.reference)
        ]
        return Pictures(piece.number, drawn)

    def _fill(self, decoded: Round) -> list[tuple[str, tuple[Round, list[Output]]]]:
        self.load()
        assert self._models is not None
        item = to_pairs(decoded)
        filled = [
            (network.name, (decoded, fill_round(item[1], model)))
            for network, model in zip(self._job.networks, self._models, strict=True)
        ]
        return filled + [(name, fill_with(item, name)) for name in self._job.baselines]


class _Evaluate:
    """`Evaluator` for tables."""

    def __init__(self, job_ref: Any, parts: Parts, chosen: Mapping[int, Any] | None):
        self._evaluator = Evaluator(ray.get(job_ref), parts, chosen)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        return stage(lambda pieces: map(self._evaluator.make, pieces), table)
