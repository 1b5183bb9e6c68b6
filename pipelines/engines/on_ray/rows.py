"""Values of any kind as rows of Ray Data's blocks, whose arrays readers see where they lie in shared memory.

Ray Data knows arrays of one shape, and pickles all else, arrays among it, byte by byte: twice on the way in and once on
the way out. Here a value is pickled without its arrays' bytes (protocol 5), which are a column of their own.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from trainer.errors import Outage, UserError, outage_in, user_error_in

_SCHEMA = pa.schema([("head", pa.large_binary()), ("buffers", pa.large_list(pa.large_binary()))])
_TOGETHER_BYTES = 1 << 20  # of values of a table: one for each small value takes four times as long


class Failure(NamedTuple):
    """Why a task cannot go on: what ends the job, in a row, for Ray Data takes an exception for a lost block."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        if found := outage_in(error):
            return cls("outage", str(found))
        if said := user_error_in(error):
            return cls("user", str(said))
        return cls("bug", "".join(traceback.format_exception(error)))

    def error(self) -> Exception:
        """What to raise in the process that started the job."""
        return {"outage": Outage, "user": UserError, "bug": RuntimeError}[self.kind](self.message)


class _Rows:
    """Values that become a table."""

    def __init__(self) -> None:
        self.bytes = 0
        self._heads, self._buffers = list[bytes](), list[list[memoryview]]()

    def add(self, value: Any) -> None:
        outside: list[pickle.PickleBuffer] = []
        self._heads.append(pickle.dumps(value, protocol=5, buffer_callback=outside.append))
        self._buffers.append([buffer.raw() for buffer in outside])
        self.bytes += len(self._heads[-1]) + sum(buffer.nbytes for buffer in self._buffers[-1])

    def table(self) -> pa.Table:
        return pa.table({"head": self._heads, "buffers": self._buffers}, schema=_SCHEMA)


def to_table(values: Iterable[Any]) -> pa.Table:
    """A row for each value."""
    rows = _Rows()
    for value in values:
        rows.add(value)
    return rows.table()


def from_table(table: pa.Table) -> Iterator[Any]:
    """The values of a table; arrays may not be written to."""
    if not table.num_rows:  # Ray Data's empty blocks have no columns either
        return
    for head, buffers in zip(table["head"], table["buffers"], strict=True):
        parts = buffers.values
        yield pickle.loads(head.as_buffer(), buffers=[parts[n].as_buffer() for n in range(len(parts))])


def stage(function: Callable[[Iterator[Any]], Iterator[Any]], table: pa.Table) -> Iterator[pa.Table]:
    """Tables of what ``function`` yields for the values of a table; of an error, and of earlier ones, the row.

    Ray Data puts the tables together into blocks of its target size.
    """
    failures: list[Failure] = []

    def sound() -> Iterator[Any]:
        for value in from_table(table):
            if isinstance(value, Failure):
                failures.append(value)
            else:
                yield value

    rows = _Rows()
    try:
        for value in function(sound()):
            rows.add(value)
            if rows.bytes >= _TOGETHER_BYTES:
                yield rows.table()
                rows = _Rows()
    except Exception as error:
        failures.append(Failure.of(error))
    for failure in failures:
        rows.add(failure)
    yield rows.table()
