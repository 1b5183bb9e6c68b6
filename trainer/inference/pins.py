"""Which network is meant: a checkpoint of a run, an exported file or the starter model, fixed once at launch.

Whoever only launches a job needs no TensorFlow: this module imports none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, JsonValue

from trainer import checkpoints, runs, storage
from trainer.checkpoints import pointers
from trainer.config import TrainConfig
from trainer.documents import Crc32c, Form, Text
from trainer.errors import UserError
from trainer.storage import recognize

MODEL, CARD = "model.keras", "card.json"  # files of an export

STARTER = "starter"  # address of the model that comes with this package, wherever that is installed
STARTER_WEIGHTS = Path(__file__).parents[1] / "assets" / "starter.npz"  # kernels in float16, by variable path
STARTER_CARD = STARTER_WEIGHTS.with_suffix(".json")  # in words: starter.md


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is read of an export's card.json.

    Attributes:
        weights: ``ema`` or ``raw``; cards of before there was the choice have none.
        files: crc32c by path; cards of before have none.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")

    config: TrainConfig
    checkpoint_crc32c: Crc32c | None = None
    weights: Text = "raw"
    metrics: dict[str, JsonValue] = field(default_factory=dict)  # copied only; a term of the loss may be NaN
    files: dict[str, Crc32c] = field(default_factory=dict)


CARD_FORM: Form[Card] = Form("the card of an exported network", Card)


@dataclass(frozen=True, kw_only=True)
class ModelPin:
    """A network, fixed once at launch, and the config it was trained with.

    Attributes:
        checkpoint: address and checksum of a checkpoint or an exported ``.keras`` file, or `STARTER` and that of its
            weights.
    """

    checkpoint: checkpoints.Pin
    config: TrainConfig


def find_model(run: str, which: str | int | None = None) -> ModelPin:
    """A checkpoint of a run, with its own config, else the run's.

    Args:
        which: ``latest``, ``best`` or the number of a step; by default the best if there is one, else the latest.

    Raises:
        UserError: the folder is not a run, or the run has no such checkpoint.
    """
    config = runs.read_config(run)
    if which is None:
        best = pointers.read(run, checkpoints.BEST)
        which = checkpoints.BEST if best is not None and best.checkpoint is not None else checkpoints.LATEST
    try:
        pin = checkpoints.find(run, which)
    except UserError:
        if recognize.look(run).kind == "checkpoint":  # with a config of its own
            raise runs.explain_missing(run) from None
        raise
    return ModelPin(checkpoint=pin, config=checkpoints.load_checkpoint(pin, ()).config or config)


def find_export(address: str) -> ModelPin:
    """An exported network: a ``.keras`` file with its card beside it, or the folder of both.

    Raises:
        UserError: one of them is missing or invalid.
    """
    model = address if address.endswith(".keras") else storage.join(address, MODEL)
    if not storage.exists(model):
        thing = recognize.look(address)
        if thing.kind == "nothing":
            raise storage.NotFound(f"{model} does not exist (expected an exported .keras file, or its folder)")
        run = address if thing.kind == "run" else thing.whole
        advice = f"--run {run} takes a training run" if run else "trainer.export --format keras writes one"
        raise UserError(f"{address} is {thing.what}. Expected an exported .keras file, or its folder ({advice}).")
    card = storage.join(model.rpartition("/")[0], CARD)
    found = CARD_FORM.read_if_any(card)
    if found is None:
        raise UserError(f"{model} has no card: {card} does not exist")
    return ModelPin(checkpoint=checkpoints.Pin(address=model, crc32c=storage.checksum(model)), config=found.config)


def starter() -> ModelPin:
    """The starter model: see ``trainer/assets/starter.md`` for what it was trained on and what it is not for."""
    card = CARD_FORM.parse(STARTER_CARD.read_bytes(), str(STARTER_CARD))
    return ModelPin(
        checkpoint=checkpoints.Pin(address=STARTER, crc32c=card.files[STARTER_WEIGHTS.name]), config=card.config
    )


def is_starter(text: str) -> bool:
    """Whether an option means the starter model. What lies at that name here comes first, as a run or an export did."""
    return text == STARTER and not storage.is_there(storage.normalize(text))


def find_given(text: str) -> ModelPin:
    """The network of an option ``--model``: `starter`, or what `find_export` finds; raises as that does."""
    return starter() if is_starter(text) else find_export(storage.normalize(text))
