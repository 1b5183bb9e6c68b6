"""How often a bucket's store asks its server for the same thing: until an answer can be believed.

What may be wrong, and for how long it is asked again:

    no answer, 5xx, 408, 409, 429, a body or a list cut short, bytes that differ from their checksum    120 s
    401, 403, credentials that cannot be renewed: of a bucket that has answered such requests before     30 s
                                                  of one that has not, which is how wrong use looks       3 s
    404 of a bucket, or of an object that a caller expects                                               3 s
    404 where an object may be absent                                                            asked twice
    412 of an upload: unless the object there is another                                               120 s
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

# What an exception of a client says: that there is nothing (404), that it may not be asked (401, 403), something else
# that is believed, nothing at all, or something that only a client without an answer raises, or a bug.
Kind = Literal["absent", "refused", "answered", "unanswered", "odd"]
# What to make of a 404.
Absence = Literal["doubted", "twice", "believed"]

_OUTAGE, _LOST, _DOUBT, _TWICE = 120.0, 30.0, 3.0, 0.0  # seconds, see above
_PAUSE = 0.25  # seconds until a request is repeated, at most; twice that the next time, up to 8
_LEAST = 3  # answers before one is believed, however long each took

# (address of a bucket, verb) that this process was allowed: to ``read``, ``list``, ``write`` or ``delete``.
_allowed: set[tuple[str, str]] = set()


class Damaged(Exception):
    """An answer that cannot be right; of the kind ``unanswered``."""


def repeat(
    place: tuple[str, str],
    send: Callable[[], T],
    kind_of: Callable[[BaseException], Kind],
    ours: Callable[[Exception, float], Exception],
    absence: Absence,
) -> T:
    """What ``send()`` returns, called again while it may be wrong: see the module's table.

    Args:
        place: address of the bucket, and verb: what must be allowed.
        kind_of: what an exception says.
        ours: this project's error for the last exception, after so many seconds.

    Raises:
        NotFound, Denied, Conflict: what the last answer says.
        Outage: there was no answer, or none that can be right.
    """
    from tenacity import Retrying, retry_if_exception, wait_random_exponential

    begin = time.monotonic()
    pause = wait_random_exponential(multiplier=_PAUSE, min=_PAUSE / 2, max=8)
    seen: dict[float, tuple[int, float]] = {}  # how many answers that are doubted for so long, and when the first came
    limit = 0.0  # of the last answer

    def is_doubted(error: BaseException) -> bool:
        nonlocal limit
        found = _patience(kind_of(error), absence, place in _allowed)
        if found is None:
            return False
        limit = found
        count, first = seen.get(limit, (0, time.monotonic()))
        seen[limit] = count + 1, first
        return True

    def left() -> float:
        return seen[limit][1] + limit - time.monotonic()

    def is_over(_: RetryCallState) -> bool:
        return seen[limit][0] >= (2 if limit == _TWICE else _LEAST) and left() <= 0

    def wait(state: RetryCallState) -> float:
        return min(pause(state), max(left(), 0.0))

    retrying = Retrying(retry=retry_if_exception(is_doubted), stop=is_over, wait=wait, reraise=True)
    try:
        answer = retrying(send)
    except Exception as error:
        raise ours(error, time.monotonic() - begin) from None
    _allowed.add(place)
    return answer


def _patience(kind: Kind, absence: Absence, was_allowed: bool) -> float | None:
    """Seconds for which a request is repeated that ended so; None if that is to be believed."""
    if kind == "absent":
        return {"doubted": _DOUBT, "twice": _TWICE, "believed": None}[absence]
    if kind == "refused":
        return _LOST if was_allowed else _DOUBT
    return {"unanswered": _OUTAGE, "odd": _DOUBT, "answered": None}[kind]
