"""Trying again while a store refuses: an outage of seconds must not end a training of days."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from trainer import storage

T = TypeVar("T")

_CLIENTS = {"google", "requests", "urllib3", "http"}  # what Google's client raises once it has given up
_FIRST, _LONGEST = 0.25, 8.0  # seconds between attempts; doubled each time, the actual wait drawn from the upper half


def _is_refusal(error: Exception) -> bool:
    """Whether another attempt may go better: not after an answer (`UserError`, `storage.Conflict`), nor after a bug."""
    return isinstance(error, OSError) or any(kind.__module__.split(".")[0] in _CLIENTS for kind in type(error).__mro__)


def persist(action: Callable[[], T], patience: float) -> T:
    """What ``action`` returns, which only calls `storage`; tried again while the store refuses.

    Google's client tries for 120 seconds by itself before it raises; that time counts.

    Args:
        patience: seconds from the first attempt, after which the error of the last one is raised.
    """
    give_up = time.monotonic() + patience
    wait = _FIRST
    while True:
        try:
            return action()
        except Exception as error:
            left = give_up - time.monotonic()
            if left <= 0 or not _is_refusal(error):
                raise
            time.sleep(min(left, random.uniform(wait / 2, wait)))
            wait = min(2 * wait, _LONGEST)


def create(address: str, data: bytes, patience: float) -> None:
    """`storage.create`, done as well if an attempt whose answer was lost has written ``data``.

    Raises:
        AlreadyExists: something else is there.
    """
    try:
        persist(lambda: storage.create(address, data), patience)
    except storage.AlreadyExists:
        if persist(lambda: storage.checksum(address), patience) != storage.crc32c(data):
            raise
