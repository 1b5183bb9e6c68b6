"""Files at addresses, local or ``gs://``: `api` has the functions, `store` what each scheme's module has to fulfil."""

# ruff: noqa: F401
from trainer.errors import AlreadyExists, Conflict, Corrupt, Denied, NotFound, Outage, TooLarge, Unwritable
from trainer.storage.api import (
    SCHEMES,
    base_of,
    changed,
    checksum,
    compile_glob,
    confine,
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
    remove_folder,
    replace,
    require_confined,
    require_writable,
    scan,
    size,
    stamp,
    store_of,
    sweep,
)
from trainer.storage.store import Store, crc32c
