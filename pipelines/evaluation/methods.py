"""The networks that are compared: where each comes from, and how it fills a round of pairs.

RUN              newest checkpoint of a training run
RUN@best         its best checkpoint; RUN@400 that of step 400
FILE.keras       an exported network, with its card.json beside it
starter          the model that comes with this package
NAME=...         any of these, under a name of its own

What exists under the whole text is meant by it, whatever signs it has: runs/me@work, lr=0.1.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.transforms.model_handler import Pair, one_of_few
from trainer import storage
from trainer.checkpoints import LATEST
from trainer.errors import UserError, is_outage
from trainer.inference import pins, predict

Output = np.ndarray | Exception  # an image with its holes filled, uint8 [height, width, 3], or why there is none


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network, fixed at launch.

    Attributes:
        name: in tables.
        pin: the checkpoint or the exported file.
        run: folder of the training run, if it comes from one.
    """

    name: str
    pin: predict.ModelPin
    run: str | None = None

    def load(self, batch_size: int | None = None) -> predict.Model:
        """The network."""
        return predict.load_model(self.pin, batch_size=batch_size)


def find_networks(texts: Sequence[str]) -> list[Network]:
    """The networks that ``--run`` names, in the forms above. A single one without a name of its own is ``network``.

    Raises:
        UserError: a network does not exist, or two have the same name.
    """
    found: list[Network] = []
    for text in texts:
        name, address, which = _split(text)
        if which and (address.endswith(".keras") or pins.is_starter(address)):
            raise UserError(f"--run: expected {address} alone: an export has no checkpoints. Received @{which}.")
        network = _find(address, which)
        network = dataclasses.replace(network, name=name or (network.name if len(texts) > 1 else "network"))
        if network.name in [other.name for other in found]:
            raise UserError(f"--run: expected different names (NAME=ADDRESS). Received {network.name!r} twice.")
        found.append(network)
    return found


def _split(text: str) -> tuple[str, str, str]:
    """Name, address and checkpoint in ``[NAME=]ADDRESS[@CHECKPOINT]``; name and checkpoint may be empty.

    An address may have both signs as well: what is there under the whole text is not split.
    """
    named = re.match(r"([\w.-]+)=(.+)", text)
    readings = [("", text), *([(named[1], named[2])] if named else [])]
    for name, address in readings:
        for place, which in (address, ""), _split_checkpoint(address):
            if storage.is_there(storage.normalize(place)):
                return name, place, which
    return name, *_split_checkpoint(address)  # for the error


def _split_checkpoint(address: str) -> tuple[str, str]:
    run, _, which = address.rpartition("@")
    return (run, which) if run and "/" not in which else (address, "")


def _find(address: str, which: str) -> Network:
    if pins.is_starter(address):
        return Network(name=address, pin=pins.starter())
    return _find_export(address) if address.endswith(".keras") else _find_run(address, which)


def _find_run(address: str, which: str) -> Network:
    run = storage.normalize(address)
    pin = predict.find_model(run, which or LATEST)
    name = posixpath.basename(run) + (f"@{which}" if which else "")
    return Network(name=name, run=run, pin=pin)


def _find_export(address: str) -> Network:
    address = storage.normalize(address)
    name = posixpath.splitext(posixpath.basename(address))[0]
    return Network(name=name, pin=predict.find_export(address))


def fill_round(pairs: Sequence[Pair], model: predict.Model) -> list[Output]:
    """One output for each pair; a pair that fails, fails alone.

    Batches are made of this list only, so they are the same wherever it is computed.
    """
    if not pairs:
        return []
    try:
        with one_of_few():
            return list(predict.inpaint_batch([pair.image for pair in pairs], [pair.mask for pair in pairs], model))
    except Exception as error:
        if is_outage(error):
            raise
        return [error] if len(pairs) == 1 else [output for pair in pairs for output in fill_round([pair], model)]
