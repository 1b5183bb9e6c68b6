"""Retries for storage outages, so that a transient failure does not end a long run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from trainer import storage
from trainer.errors import is_full_disk

T = TypeVar("T")

# Seconds between attempts: at random, from `min` to a limit that begins at `multiplier` and doubles up to `max`.
_WAIT = wait_random_exponential(multiplier=0.25, min=0.125, max=8)


def persist(action: Callable[[], T], patience: float) -> T:
    """The result of ``action``, which only calls `storage` functions; retried while a store refuses.

    A full disk is no reason to wait: its error is raised at once.

    A bucket's store repeats requests for 120 seconds by itself before it raises; that time counts.

    Args:
        patience: seconds from the first attempt. The first attempt to fail after that is the last: its error is raised.
    """
    retrying = Retrying(stop=stop_after_delay(patience), wait=_WAIT, retry=retry_if_exception(_may_pass), reraise=True)
    return retrying(action)


def _may_pass(error: BaseException) -> bool:
    return storage.is_transient(error) and not is_full_disk(error)


def create(address: str, data: bytes, patience: float) -> None:
    """`storage.create` with retries; done as well if an attempt whose answer was lost has written ``data``.

    Raises:
        AlreadyExists: something else is there.
    """
    try:
        persist(lambda: storage.create(address, data), patience)
    except storage.AlreadyExists:
        if persist(lambda: storage.checksum(address), patience) != storage.crc32c(data):
            raise
