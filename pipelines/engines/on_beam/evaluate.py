"""The evaluation's transforms on Apache Beam, around the functions of `pipelines.evaluation`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, RunInference

from pipelines.evaluation import gallery, pairing
from pipelines.evaluation.distances import look_at_round, measure
from pipelines.evaluation.file_pairs import FilePairs, facts_of, make_plan, read_round
from pipelines.evaluation.job import Job, write_report
from pipelines.evaluation.methods import Network, Output, fill_round
from pipelines.evaluation.rounds import (
    Weights,
    decode_round,
    fill_with,
    mask_key,
    place_image,
    place_mask,
    read_file,
    read_images,
    read_masks,
    score_round,
    to_pairs,
)
from pipelines.evaluation.scoreboard import Board, board_of, merge_into
from pipelines.transforms.model_handler import Pair
from pipelines.transforms.report_progress import ReportProgress
from trainer.images import rgb
from trainer.inference import predict
from trainer.storage.names import to_bytes


def build(pipeline: beam.Pipeline, job: Job) -> None:
    """Adds the whole job to ``pipeline``."""
    data = job.data
    if isinstance(data, FilePairs):
        rounds, plan = pipeline | MakeFileRounds(data)
    else:
        rounds, plan = pipeline | MakeRounds(
            mask_shards=data.masks.shards,
            image_shards=data.images.shards if data.images else (),
            image_files=(data.image_files, data.selected.base),
            places=data.places,
            num_images=data.num_images,
            seed=job.seed,
            per_cell=job.per_cell,
            max_pixels=job.max_pixels,
        )
    filled = rounds | FillRounds(job.networks, job.baselines, job.batch_size)
    scored = [item | f"Score_{name}" >> beam.FlatMap(score_round, name, job.lpips) for name, item in filled.items()]
    rows = scored | beam.Flatten() | "Progress" >> beam.ParDo(ReportProgress("scores"))
    pairs = rows | "ByPair" >> beam.Map(_key_by_pair) | beam.GroupByKey() | beam.Values()
    distances = filled | MeasureDistances(job.fid) if job.fid else None
    board = pairs | "Tally" >> beam.CombineGlobally(TallyRows(job.reference))
    all_rows = rows | "AllRows" >> beam.combiners.ToList()
    chosen = all_rows | "Choose" >> beam.Map(gallery.choose_pairs, job.reference)
    shown = (
        rounds
        | "KeepChosen" >> beam.FlatMap(gallery.keep_chosen, beam.pvalue.AsSingleton(chosen))
        | "FillChosen" >> FillRounds(job.networks, job.baselines, job.batch_size)
    )
    pictures = [
        item | f"Draw_{name}" >> beam.FlatMap(gallery.draw_round, name, name == job.reference)
        for name, item in shown.items()
    ]
    (
        all_rows
        | "WriteReport"
        >> beam.Map(
            write_report,
            job,
            *(beam.pvalue.AsSingleton(one) for one in (plan, board, chosen)),
            beam.pvalue.AsIter(pictures | "AllPictures" >> beam.Flatten()),
            beam.pvalue.AsDict(distances) if distances else None,
        )
    )


class MakeRounds(beam.PTransform):
    """From a pipeline to the decoded rounds, and the plan they follow.

    Args:
        mask_shards: all shards of the masks' split.
        image_shards: all shards of the images' split; or
        image_files: addresses, and the folder that names are relative to.
        places: by image position its place, from `pairing.order_images`.
        num_images: number of images, which take turns.
        max_pixels: of an image.
    """

    def __init__(
        self,
        mask_shards,
        places,
        num_images,
        seed,
        per_cell,
        image_shards=(),
        image_files=((), ""),
        max_pixels=rgb.MAX_PIXELS,
    ):
        super().__init__()
        self._max_pixels = max_pixels
        self._mask_shards, self._image_shards, self._image_files = mask_shards, image_shards, image_files
        self._places, self._num_images, self._seed, self._per_cell = places, num_images, seed, per_cell

    def _read_images(self, pipeline):
        if self._image_shards:
            shards = pipeline | "ImageShards" >> beam.Create(self._image_shards)
            return shards | "ReadImages" >> beam.FlatMap(read_images, self._places)
        addresses, base = self._image_files
        used = [(position, to_bytes(address)) for position, address in enumerate(addresses) if position in self._places]
        return (
            pipeline | "ImageFiles" >> beam.Create(used) | "ReadImages" >> beam.Map(read_file, base, self._max_pixels)
        )

    def expand(self, pipeline):
        masks = pipeline | "MaskShards" >> beam.Create(self._mask_shards) | "ReadMasks" >> beam.FlatMap(read_masks)
        plan = (
            masks
            | "MaskKeys" >> beam.Map(mask_key)
            | "AllKeys" >> beam.combiners.ToList()
            | "Plan" >> beam.Map(pairing.plan_pairs, self._seed, self._per_cell)
        )
        planned = beam.pvalue.AsSingleton(plan)
        placed = {
            "images": self._read_images(pipeline)
            | "PlaceImages" >> beam.FlatMap(place_image, self._places, self._num_images, planned),
            "masks": masks | "PlaceMasks" >> beam.FlatMap(place_mask, planned),
        }
        rounds = placed | "Join" >> beam.CoGroupByKey() | "Decode" >> beam.Map(decode_round, self._max_pixels)
        return rounds | "Spread" >> beam.Reshuffle(), plan


class MakeFileRounds(beam.PTransform):
    """From a pipeline to the decoded rounds, and the plan they follow, as `MakeRounds`."""

    def __init__(self, pairs: FilePairs):
        super().__init__()
        self._pairs = pairs

    def expand(self, pipeline):
        entries = pipeline | "Pairs" >> beam.Create(self._pairs.entries) | "SpreadPairs" >> beam.Reshuffle()
        rounds = entries | "ReadPairs" >> beam.Map(read_round, self._pairs.settings)
        plan = rounds | beam.FlatMap(facts_of) | "AllFacts" >> beam.combiners.ToList() | "Plan" >> beam.Map(make_plan)
        return rounds, plan


class FillRounds(beam.PTransform):
    """From rounds to one PCollection of `FilledRound` per method, by name."""

    def __init__(self, networks: Iterable[Network], baselines: Iterable[str], batch_size: int | None):
        super().__init__()
        self._networks, self._baselines, self._batch_size = list(networks), list(baselines), batch_size

    def expand(self, rounds):
        inputs = rounds | "ToPairs" >> beam.Map(to_pairs)
        filled = {}
        for network in self._networks:
            handler: KeyedModelHandler = KeyedModelHandler(RoundHandler(network, self._batch_size))
            filled[network.name] = inputs | f"Fill_{network.name}" >> RunInference(handler)
        for name in self._baselines:
            filled[name] = inputs | f"Fill_{name}" >> beam.Map(fill_with, name)
        return filled


class RoundHandler(ModelHandler[Sequence[Pair], list, predict.Model]):
    """`fill_round` for RunInference; each element is one round."""

    def __init__(self, network: Network, batch_size: int | None):
        super().__init__()
        self._network, self._batch_size = network, batch_size

    def load_model(self) -> predict.Model:
        return self._network.load(self._batch_size)

    def run_inference(
        self, batch: Sequence[Sequence[Pair]], model: predict.Model, inference_args: dict[str, Any] | None = None
    ) -> Iterable[list[Output]]:
        return [fill_round(pairs, model) for pairs in batch]

    def batch_elements_kwargs(self) -> dict[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": 1}

    def get_metrics_namespace(self) -> str:
        return "pconv"


class TallyRows(beam.CombineFn):
    """Merges `board_of` every pair's rows."""

    def __init__(self, reference: str):
        self._reference = reference

    def create_accumulator(self) -> Board:
        return {}

    def add_input(self, board: Board, rows: Iterable[Mapping]) -> Board:
        return merge_into(board, board_of(rows, self._reference))

    def merge_accumulators(self, boards: Iterable[Board]) -> Board:
        total: Board = {}
        for board in boards:
            merge_into(total, board)
        return total

    def extract_output(self, board: Board) -> Board:
        return board


class MeasureDistances(beam.PTransform):
    """From PCollections of `FilledRound` by method's name to (method, distances)."""

    def __init__(self, weights: Weights):
        super().__init__()
        self._weights = weights

    def expand(self, filled):
        features = [
            item | f"Look_{name}" >> beam.FlatMap(look_at_round, name, self._weights) for name, item in filled.items()
        ]
        return features | beam.Flatten() | "ByMethod" >> beam.GroupByKey() | "Measure" >> beam.Map(measure)


def _key_by_pair(row: dict) -> tuple[int, dict]:
    return row["pair"], row
