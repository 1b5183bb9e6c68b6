"""Files that every attempt of a job writes alike: the first one creates them."""

from __future__ import annotations

from trainer import storage
from trainer.errors import Unwritable
from trainer.storage import claims
from trainer.storage.claims import Claim


def create_or_compare(address: str, data: bytes) -> None:
    """Creates a file; an existing one must be what an earlier attempt wrote.

    Raises:
        Unwritable: a file with other contents exists, or something that is no file.
    """
    try:
        storage.create(address, data)
    except storage.AlreadyExists:
        if not storage.exists(address):
            raise Unwritable(f"cannot write to {address}: expected a free name. Received that of a folder.") from None
        if storage.checksum(address) != storage.crc32c(data):
            raise Unwritable(f"{address} exists with other contents: --overwrite, or choose another folder") from None


def write_claimed(claim: Claim | None, address: str, data: bytes) -> None:
    """`create_or_compare`; a job that has claimed the folder for itself replaces what is there.

    Raises:
        UserError: a file with other contents exists, or another job has claimed the folder.
    """
    claims.require(claim)
    write = storage.overwrite if claim is not None and claim.is_own else create_or_compare
    write(address, data)
