"""Rejects: inputs that could not be used, each with the stage that failed and the reason.

What is an input's own fault: its bytes cannot be decoded or matched, it is gone, may not be read alone of all, is a
folder, or needs more memory than there is. What is not: a store that does not answer, a permission or credentials that
are missing, a disk that is full or fails, too many open files. These (`trainer.errors.is_outage`) are repeated by the
storage, then pass through `blame` whatever it catches: the runner tries the bundle again, and then the job fails.

try:
    with blame(item.image, "read"):
        data = storage.read(item.image)
    with blame(item.image, "decode"):
        image = decode(data)
except Rejected as lost:
    yield beam.pvalue.TaggedOutput(REJECTED, lost.reject)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator

from trainer.errors import Outage, UserError, is_outage
from trainer.storage.names import printable

REJECTED = "rejected"  # tag of the output that rejects leave a transform by
FAULTS = (ValueError, UserError, OSError, MemoryError)  # what reading and decoding a bad input raise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reject:
    """An input that could not be used, and why.

    Attributes:
        source: the input's address; bytes of it that are not UTF-8 are ``\\xNN``, see `names.printable`.
        stage: what failed: ``read``, ``decode``, ``match`` ...
        error: class and message in one line.
        split: the part of the dataset it would have been in.
        member: its name in ``source``, where that is an archive.
    """

    source: str
    stage: str
    error: str
    split: str = ""
    member: str = ""


def reject(source: str, stage: str, error: BaseException, split: str = "", member: str = "") -> Reject:
    """The `Reject` of an input whose ``stage`` raised ``error``."""
    text = printable(" ".join(f"{type(error).__name__}: {error}".split()))
    return Reject(source=printable(source), stage=stage, error=text, split=split, member=printable(member))


def reject_name(address: str) -> Reject:
    """The `Reject` of a file whose name is not UTF-8: Beam's coders take no other text."""
    return reject(address, "match", ValueError("expected a path in UTF-8"))


class Rejected(Exception):
    """An input cannot be used; raised by `blame`. ``reject`` says which and why, ``__cause__`` is the original."""

    def __init__(self, found: Reject):
        super().__init__(found)
        self.reject = found

    def __str__(self) -> str:
        return f"{self.reject.source}: {self.reject.stage}: {self.reject.error}"


@contextlib.contextmanager
def blame(
    source: str,
    stage: str,
    faults: type[Exception] | tuple[type[Exception], ...] = FAULTS,
    split: str = "",
    member: str = "",
) -> Iterator[None]:
    """Blames an input for the errors raised inside: they become `Rejected`. Of nested blames the innermost counts.

    Args:
        source, stage, split, member: of the `Reject`.
        faults: exceptions that are the input's own fault; others pass through, so that the runner tries again.

    Raises:
        Rejected: the input is to blame.
        Outage: nobody is, see `is_outage`.
    """
    try:
        yield
    except (Rejected, Outage):
        raise
    except faults as error:
        if is_outage(error):
            raise Outage(f"{source}: {error}") from error
        raise Rejected(reject(source, stage, error, split, member)) from error


def reject_lines(rejects: Iterable[Reject]) -> bytes:
    """JSON lines in source order."""
    ordered = sorted(rejects, key=lambda r: (r.source, r.member, r.stage, r.error))
    return b"".join(json.dumps(dataclasses.asdict(r), sort_keys=True).encode() + b"\n" for r in ordered)
