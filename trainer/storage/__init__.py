"""Files at addresses, local or in buckets: ``gs://``, ``s3://``, ``az://``. `api` has the functions, `selections` what
a user's address means, `recognize` what is there, `store` what schemes do.
"""

# ruff: noqa: F401
from trainer.errors import AlreadyExists, Conflict, Corrupt, Denied, NotFound, Outage, TooLarge, Unwritable
from trainer.storage.api import (
    SCHEMES,
    changed,
    checksum,
    confine,
    create,
    delete,
    entry,
    exists,
    find,
    folders,
    is_remote,
    is_transient,
    join,
    near,
    normalize,
    overwrite,
    read,
    read_range,
    read_versioned,
    relative,
    remove_folder,
    replace,
    require_confined,
    require_writable,
    scan,
    stamp,
    store_of,
    sweep,
    try_writing,
)
from trainer.storage.selections import Selection, is_there, select
from trainer.storage.store import Entry, Store, crc32c, in_batches
