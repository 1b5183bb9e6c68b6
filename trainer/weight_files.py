"""Weight files as NumPy arrays: `.npz`, Keras `.h5`, torch `.pth`. Reading one never runs code from it.

A `.pth` file is a pickle, which can name any function and have it called. The unpickler here knows the few names
that a state dict consists of and refuses any other before it is looked up.

Nor does reading one take much more memory than the file: trained weights are noise, which nothing compresses well, so
a file whose headers promise several times its own size is refused before an array is read.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import h5py
import numpy as np

from trainer import storage
from trainer.errors import UserError

MAX_BYTES = 1 << 30  # of a file; the largest that is read here, VGG-16 as torchvision has it, is half of that
_MAX_RATIO, _ROOM = 4, 1 << 24  # arrays take at most so many times their file's size, and so many bytes besides
_MAX_PICKLE = 1 << 21  # bytes, without the tensors' values: some hundred for each tensor
_MAX_AXES = 32
_HEAP = re.compile(rb"GCOL\x01\0\0\0")  # where a global heap of HDF5 begins; its size follows, in 8 bytes

# Storage classes of torch by element type. Files are little-endian unless they say otherwise.
_STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}
_STORAGES |= {"IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1"}
_STORAGES |= {"BoolStorage": "?"}
# First values of a file written before torch 1.6, which is not a zip (torch/serialization.py).
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def fetch(address: str, crc32c: str | None = None) -> bytes:
    """The file at ``address`` for one of the functions below; raises as `storage.read`, and if it is too large."""
    return storage.read(address, crc32c, MAX_BYTES)


def _require_room(promised: int, data: bytes) -> None:
    """Raises `ValueError` if the arrays of a file take far more memory than the file."""
    if promised > _MAX_RATIO * len(data) + _ROOM:
        raise ValueError(f"a file of {len(data):,} bytes whose arrays take {promised:,}")


def _require_numbers(dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise ValueError("pickled objects, which are not read (allow_pickle=False)")
    if dtype.kind not in "biufc":
        raise ValueError(f"an array of {dtype}")


def _check_npz(data: bytes) -> None:
    """Raises unless the headers of an `.npz` file are those of arrays of numbers that fit into it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two arrays of one name")
        _require_room(sum(member.file_size for member in members), data)
        for member in members:
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read[version](file)
                _require_numbers(dtype)
                if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
                    raise ValueError(f"{member.file_size:,} bytes for an array {shape} of {dtype}")


def read_npz(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file.

    Args:
        data: the whole file.
        name: of the file in error messages.

    Raises:
        UserError: it is not such a file, is damaged, or holds pickled objects.
    """
    try:
        _check_npz(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except Exception as error:  # zipfile, zlib and NumPy let a damaged file raise anything
        raise UserError(f"{name}: expected an .npz file of plain arrays. Received {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What was wrong with a file, in one line."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) else f"a damaged or different file ({type(error).__name__}: {text})"


def read_keras_h5(data: bytes, name: str) -> dict[str, dict[str, np.ndarray]]:
    """The weights of a Keras `.h5` file by layer and weight name, both in the file's order.

    Files of Keras 2, with or without the model around the weights, name each weight (`kernel`); `.weights.h5` files of
    Keras 3 number them (`0`) and name layers by their class.

    Args, Raises: as `read_npz`; also refuses a file whose arrays lie in other files.
    """
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            group = file["model_weights"] if "model_weights" in file else file
            if "layer_names" in group.attrs:
                paths = {
                    layer: [f"{layer}/{weight}" for weight in _texts(group[layer], "weight_names", data)]
                    for layer in _texts(group, "layer_names", data)
                }
            else:
                layers = sorted(group["layers"], key=lambda layer: (len(layer), layer))  # conv2d, conv2d_1, ..., _10
                paths = {layer: [f"layers/{layer}/vars/{i}" for i in group[f"layers/{layer}/vars"]] for layer in layers}
            datasets = {
                layer: {path.rpartition("/")[2].partition(":")[0]: _dataset(group, path) for path in weights}
                for layer, weights in paths.items()
            }
            _require_room(sum(_memory(one) for weights in datasets.values() for one in weights.values()), data)
            return {
                layer: {weight: np.asarray(one) for weight, one in weights.items()}
                for layer, weights in datasets.items()
            }
    except Exception as error:  # HDF5 and its filters let a damaged file raise anything
        raise UserError(f"{name}: expected an HDF5 file of Keras weights. Received {_reason(error)}") from None


def _texts(group: h5py.Group, attribute: str, data: bytes) -> list[str]:
    """An attribute of texts. Those of variable length lie in heaps, which any number of them may share."""
    stored = group.attrs.get_id(attribute)
    if math.prod(stored.shape) == 0:  # of any type
        return []
    if h5py.check_string_dtype(stored.dtype) is None:
        raise ValueError(f"{attribute} of {stored.dtype}, where Keras has texts")
    heaps = (int.from_bytes(data[at.end() : at.end() + 8], "little") for at in _HEAP.finditer(data))
    _require_room(math.prod(stored.shape) * max(heaps, default=0), data)
    return [text.decode() if isinstance(text, bytes) else text for text in np.ravel(group.attrs[attribute]).tolist()]


def _dataset(group: h5py.Group, path: str) -> h5py.Dataset:
    dataset = group[path]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path}, which is no array")
    # These would let the file name other files of this machine; links to them cannot be followed from memory.
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name}, which lies outside the file")
    _require_numbers(dataset.dtype)
    return dataset


def _memory(dataset: h5py.Dataset) -> int:
    """Bytes that reading a dataset takes; a chunk is read whole, however little of it the dataset uses."""
    return max(dataset.nbytes, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize)


def check_keras(data: bytes, name: str) -> None:
    """Raises `UserError` unless the weights in a `.keras` file take about as much memory as the file, and lie in it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _require_room(sum(member.file_size for member in archive.infolist()), data)
            weights = archive.read("model.weights.h5")
        datasets: list[h5py.Dataset] = []
        with h5py.File(io.BytesIO(weights), "r") as file:
            file.visititems(lambda _, one: datasets.append(one) if isinstance(one, h5py.Dataset) else None)
            _require_room(sum(_memory(_dataset(file, one.name)) for one in datasets), data)
    except Exception as error:
        raise UserError(f"{name}: expected a .keras file. Received {_reason(error)}") from None


def read_torch(data: bytes, name: str) -> Any:
    """The value saved by `torch.save`: dicts, lists and numbers as they are, tensors as read-only arrays.

    Reads the zip files of torch 1.6 and later and the files of earlier versions.

    Args: as `read_npz`.

    Raises:
        UserError: it is not such a file, is damaged, or names anything that is not part of a state dict.
    """
    try:
        if data[:4] == b"PK\x03\x04":
            return _read_torch_zip(data)
        return _read_torch_legacy(data)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # with a damaged file the unpickler may raise anything
        kind = type(error).__name__
        raise UserError(
            f"{name}: expected a file of torch.save. Received a damaged or different file ({kind})"
        ) from None


def read_state_dict(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch state dict: from an `.npz` file if ``name`` ends so, else from what `torch.save` wrote.

    Args, Raises: as `read_npz` and `read_torch`; also for a file that holds anything but named arrays.
    """
    state = read_npz(data, name) if name.endswith(".npz") else read_torch(data, name)
    if not isinstance(state, dict) or not all(isinstance(array, np.ndarray) for array in state.values()):
        raise UserError(f"{name}: expected a state dict, tensors by name. Received something else")
    return state


def _read_torch_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _require_room(sum(member.file_size for member in archive.infolist()), data)
        (pickled,) = (item for item in archive.namelist() if item.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise UserError("expected little-endian tensors. Received big-endian ones")
        value, storages = _unpickle(_PickleStream(archive.read(pickled)))

        def load(storage: _Storage) -> np.ndarray:
            item = archive.getinfo(f"{folder}data/{storage.key}")
            if item.file_size != storage.size * storage.dtype.itemsize:
                raise ValueError(item.filename)
            return np.frombuffer(archive.read(item), storage.dtype)

        buffers = {key: load(storage) for key, storage in storages.items()}
    return _Resolver(buffers, data).resolve(value)


def _read_torch_legacy(data: bytes) -> Any:
    stream = _PickleStream(data)
    magic, protocol, system = (_unpickle(stream)[0] for _ in range(3))
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise ValueError("magic")
    if not system["little_endian"]:
        raise UserError("expected little-endian tensors. Received big-endian ones")
    value, storages = _unpickle(stream)
    buffers = {}
    for key in _unpickle(stream)[0]:  # each is its number of elements, int64, and the elements
        storage = storages[key]
        if int.from_bytes(stream.values(8), "little") != storage.size:
            raise ValueError(key)
        elements = stream.values(storage.size * storage.dtype.itemsize)
        buffers[key] = np.frombuffer(elements, storage.dtype, storage.size)
    return _Resolver(buffers, data).resolve(value)


class _PickleStream:
    """A file of pickles, which may not take more than `_MAX_PICKLE` of it: objects take many times their bytes."""

    def __init__(self, data: bytes):
        self._file, self._left = io.BytesIO(data), _MAX_PICKLE

    def read(self, size: int) -> bytes:
        return self._counted(self._file.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        line = self._counted(self._file.readline(self._left + 1))
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def _counted(self, found: bytes) -> bytes:
        self._left -= len(found)
        if self._left < 0:
            raise UserError(f"expected pickles of {_MAX_PICKLE:,} bytes or fewer. Received more")
        return found

    def values(self, size: int) -> bytes:
        """Bytes between two pickles."""
        return self._file.read(size)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int  # in elements


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, buffer: np.ndarray) -> np.ndarray:
        numbers = (self.offset, *self.shape, *self.strides)
        if not all(type(n) is int and n >= 0 for n in numbers) or len(self.shape) != len(self.strides):
            raise ValueError("strides")
        count = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if count > buffer.size or (count and last >= buffer.size):  # would read other memory
            raise ValueError("strides")
        strides = [stride * buffer.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(buffer[self.offset :], self.shape, strides, writeable=False)


_OPCODES = (
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET BINPERSID GLOBAL STACK_GLOBAL REDUCE BUILD "
    "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING "
    "EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3"
).split()
_STANDARD: dict[int, Any] = pickle._Unpickler.dispatch


def _require_keys(keys: Iterable[Any]) -> None:
    """Raises unless keys are plain: to hash tuples that share tuples takes as long as it would to write them out."""
    if not all(isinstance(key, str | int) for key in keys):
        raise ValueError("keys")


class _StateDictUnpickler(pickle._Unpickler):  # Python's own: the one in C hashes any key
    """Knows storages, tensors and containers, and the opcodes that make them; `storages` collects the first."""

    stack: list[Any]
    dispatch: ClassVar[dict] = {code: _STANDARD[code] for code in (getattr(pickle, name)[0] for name in _OPCODES)}

    def _set_item(self) -> None:
        _require_keys(self.stack[-2:-1])
        _STANDARD[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        _require_keys(self.stack[::2])
        _STANDARD[pickle.SETITEMS[0]](self)

    def _build(self) -> None:
        self.stack.pop()  # attributes of a state dict, which hold the versions of its modules

    dispatch |= {pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items, pickle.BUILD[0]: _build}

    def __init__(self, stream: _PickleStream):
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): self._ordered_dict,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            **{("torch", storage): storage for storage in _STORAGES},
        }
        if (module, name) not in known:
            raise UserError(f"expected tensors, numbers and containers. Received {module}.{name}, which is not run")
        return known[module, name]

    def persistent_load(self, saved: Any) -> _Storage:
        kind, storage_type, key, _, size, *view = saved
        if kind != "storage" or not isinstance(key, str) or not isinstance(storage_type, str):
            raise ValueError("persistent id")
        if view not in ([], [None]) or type(size) is not int or size < 0:
            raise ValueError("persistent id")
        return self.storages.setdefault(key, _Storage(key, np.dtype(_STORAGES[storage_type]), size))

    def _ordered_dict(self, items=()) -> OrderedDict:
        _require_keys(key for key, _ in items)
        return OrderedDict(items)

    def _tensor(self, storage, offset, shape, strides, *_) -> _Tensor:
        if len(shape) > _MAX_AXES or len(strides) > _MAX_AXES:
            raise ValueError("axes")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _parameter(self, tensor, *_) -> _Tensor:
        return tensor


def _unpickle(stream: _PickleStream) -> tuple[Any, dict[str, _Storage]]:
    unpickler = _StateDictUnpickler(stream)
    return unpickler.load(), unpickler.storages


class _Resolver:
    """Replaces the tensors in what a pickle held by their arrays; an object that is shared is looked at once."""

    def __init__(self, buffers: dict[str, np.ndarray], data: bytes):
        self._buffers, self._data = buffers, data
        self._done: dict[int, tuple[Any, Any]] = {}  # by id; with the object itself, so that no other gets its id
        self._bytes = 0

    def resolve(self, value: Any) -> Any:
        if not isinstance(value, _Tensor | dict | list | tuple):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = value, self._resolve(value)
        return self._done[id(value)][1]

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.resolve(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.resolve(item) for item in value]
        view = value.view(self._buffers[value.storage.key])
        self._bytes += view.nbytes
        _require_room(self._bytes, self._data)
        return view
