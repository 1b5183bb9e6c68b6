"""Storage: files at addresses, local paths or ``gs://bucket/name``, behind one set of functions.

`api` has the functions and the table of schemes, `store` the contract that each scheme's module fulfils.
"""

# ruff: noqa: F401
from trainer.errors import AlreadyExists, Conflict, Corrupt, Denied, NotFound, Outage, TooLarge, Unwritable
from trainer.storage.api import (
    SCHEMES,
    base_of,
    checksum,
    compile_glob,
    create,
    delete,
    escape,
    exists,
    find,
    fixed_folder,
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
    replace,
    require_writable,
    scan,
    size,
    store_of,
)
from trainer.storage.store import Store, crc32c
