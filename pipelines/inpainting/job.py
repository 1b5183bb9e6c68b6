"""One inpainting job, whatever engine runs it.

lists -> pages -> shares -> resolve --> chunks -> read -> load ---> fill ---> write -+-> books
                            settle                 |       |  no hole: as it is ^     |
                              +-- finished, rejects+-------+--------------------------+
lists of outputs and of books, once all that is written -> shares -> merge -> reports -> manifest

What travels between workers are pages of names and chunks of items; the records stay in the books (`books`). What is
done to a page, a share or an item are functions of the modules beside this one, which `pipelines.engines` wires.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.inpainting import loading, outputs
from pipelines.inpainting.books import Books, Line
from pipelines.inpainting.inputs import Item, Sources
from pipelines.inpainting.loading import Files, Settings, Task
from pipelines.inpainting.packs import Packed, Packer
from pipelines.inpainting.reports import Reporting
from pipelines.inpainting.resume import Resuming
from pipelines.transforms.model_handler import BATCH_PIXELS, Filled, FillModelHandler
from trainer.images import EXTENSIONS
from trainer.storage.claims import Claim

READING: dict[str, Any] = {"threads": 4, "max_in_flight": 4}  # of `InFlight`, for `Inpainting.read`


def pixels_of(result: tuple[Task, Filled | Exception]) -> int:
    """What an output weighs until it is written."""
    _, filled = result
    return filled.pixels[..., 0].size if isinstance(filled, Filled) else 1


WRITING: dict[str, Any] = {"weigh": pixels_of, "max_in_flight": BATCH_PIXELS}  # for `Inpainting.write`


@dataclass(frozen=True, kw_only=True)
class Inpainting:
    """One job.

    Attributes:
        sources: where the images are.
        settings: how they are read and written.
        handler: the network.
        replaces: whether existing outputs may be replaced, see `outputs.claim_output`.
        reporting: the output folder's books, the claim on it, and what the manifest says.
        pack_bytes: of a pack, at most about; None writes each output as a file of its own.
    """

    sources: Sources
    settings: Settings
    handler: FillModelHandler
    replaces: bool
    reporting: Reporting
    pack_bytes: int | None = None

    @property
    def books(self) -> Books:
        return self.reporting.books

    @property
    def claim(self) -> Claim | None:
        return self.reporting.claim

    @property
    def resuming(self) -> Resuming:
        """What resolving a share depends on."""
        return Resuming(
            sources=self.sources,
            books=self.books,
            extension=EXTENSIONS[self.settings.format],
            needs_mask=self.settings.holes is None,
            packs=self.pack_bytes is not None,
        )

    def read(self, item: Item) -> Iterator[Files | Line]:
        """`loading.read_item`."""
        return loading.read_item(item, self.settings)

    def write(self, result: tuple[Task, Filled | Exception]) -> Iterator[Line]:
        """`outputs.write_result`."""
        return outputs.write_result(result, self.settings, self.books.output, self.replaces, self.claim)

    def encode(self, result: tuple[Task, Filled | Exception]) -> Iterator[Packed | Line]:
        """`outputs.pack_result`."""
        return outputs.pack_result(result, self.settings)

    def packer(self, digits: int) -> Packer:
        """Of a bundle's outputs; ``digits``: of a share."""
        assert self.pack_bytes is not None
        return Packer(self.books, self.claim, digits, self.pack_bytes)
