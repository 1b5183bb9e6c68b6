"""JSON documents of a folder, read through one checked reader: whoever may write a folder may have written anything.

    POINTER = Form("a pointer to a checkpoint", Pointer)     # a dataclass or TypedDict with `CHECKED` as its config
    pointer = POINTER.read("RUN/checkpoints/latest.json")

A document is no larger than its `Form` says, nested no deeper than 200 levels, and has the types, bounds and patterns
of the form's fields; numbers are finite. What differs is told in one line, of bounded length.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from trainer import storage
from trainer.errors import UserError

T = TypeVar("T")

MAX_BYTES = 1 << 20  # of a document, unless its form says otherwise
_MAX_VALUES = 1 << 20  # values in a document: as objects they take up to a hundred times the memory of their text
_SHOWN = 120  # characters of a value in an error

# No conversion of types, no unknown fields, no NaN.
CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _require_finite(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected finite numbers. Received {value}.")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_finite(inner)
    return value


# Types of fields.
Json = Annotated[JsonValue, AfterValidator(_require_finite)]  # any value, with finite numbers
Count = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, Field(max_length=1000)]
Crc32c = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{6}==$")]


# What was expected, by the type of pydantic's error; its own sentence serves for others.
_EXPECTED = {
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "too_long": "{max_length} values",
    "missing": "a value",
    "dataclass_type": "the fields of {class_name}",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "string_too_long": "{max_length} characters or fewer",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    "dict_type": "an object",
    "string_type": "a text",
}


def show(value: object) -> str:
    """``value`` as errors show it: its ``repr``, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python converts no integer of more than 4,300 digits
        text = "a very long integer"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def explain(error: ValidationError, unknown: Callable[[str], str] = "unknown key {!r}.".format) -> str:
    """What pydantic found wrong, as ``key: expected .... Received ....`` for each value, at most three of them.

    Args:
        unknown: a sentence about a key that is not a field.
    """
    found = error.errors(include_url=False)
    more = [f"({len(found) - 3} more.)"] if len(found) > 3 else []
    return " ".join([*(_explain(details, unknown) for details in found[:3]), *more])


def _explain(error: ErrorDetails, unknown: Callable[[str], str]) -> str:
    key = ""
    for part in error["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    key = key[:_SHOWN]
    context = {name: f"{x:g}" if isinstance(x, float) else x for name, x in error.get("ctx", {}).items()}
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{unknown(key)} Was it written by a newer version?"
    if error["type"] == "value_error":  # of __post_init__, which names fields without their group, or none
        rule = str(context["error"])
        return f"{key}{': ' if rule.startswith('expected') else '.'}{rule}" if key else rule
    if error["type"] not in _EXPECTED:
        return f"{key}: {error['msg']}" if key else error["msg"]
    expected = f"expected {_EXPECTED[error['type']].format(**context)}. Received {show(error['input'])}."
    return f"{key}: {expected}" if key else expected


def parse(data: bytes, adapter: TypeAdapter[T], unknown: Callable[[str], str] = "unknown key {!r}.".format) -> T:
    """The value of a JSON text.

    Raises:
        ValueError: in one line; it is not JSON, too deep or too full, or not of the adapter's type.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ValueError(f"expected {_MAX_VALUES:,} values or fewer. Received more.")
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise ValueError(explain(error, unknown)) from None


@dataclass(frozen=True)
class Form(Generic[T]):
    """What a document has to be.

    Attributes:
        name: what errors call it, such as ``a pointer to a checkpoint``.
        type: of its value; anything that pydantic makes a `TypeAdapter` of.
        max_bytes: the largest it may be.
        error: raised for a document that is something else.
    """

    name: str
    type: Any
    max_bytes: int = MAX_BYTES
    error: type[UserError] = UserError

    @functools.cached_property
    def _adapter(self) -> TypeAdapter[T]:
        return TypeAdapter(self.type)

    def parse(self, data: bytes, address: str) -> T:
        """The document in ``data``, which was read from ``address``; raises the form's error."""
        try:
            return parse(data, self._adapter)
        except ValueError as error:
            raise self.error(f"{address} is not {self.name}: {error}") from None

    def read_versioned(self, address: str) -> tuple[bytes | None, object]:
        """`storage.read_versioned`, no more than a document may have; raises the form's error if there is more."""
        try:
            return storage.read_versioned(address, self.max_bytes)
        except storage.TooLarge as error:
            raise self.error(f"{address} is not {self.name}: {error}") from None

    def read_if_any(self, address: str) -> T | None:
        """The document at ``address``, None if there is none; raises the form's error."""
        data, _ = self.read_versioned(address)
        return None if data is None else self.parse(data, address)

    def read(self, address: str, checksum: str | None = None) -> T:
        """The document at ``address``; raises the form's error, `NotFound`, and `Corrupt` if ``checksum`` differs."""
        return self.parse(storage.read(address, checksum, self.max_bytes), address)


@dataclass(frozen=True)
class Counted:
    """What is read of a job's manifest or report: its counts, and what its user is to be warned of."""

    counts: dict[str, Count]
    warnings: tuple[str, ...] = ()


COUNTED: Form[Counted] = Form("the report of a job", Counted, max_bytes=1 << 26)
