"""Weight files as NumPy arrays: `.npz`, Keras `.h5`, torch `.pth`. Reading one never runs code from it.

A `.pth` file is a pickle, which can name any function and have it called. The unpickler here knows the few names
that a state dict consists of and refuses any other before it is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from trainer.errors import UserError

# Storage classes of torch by element type. Files are little-endian unless they say otherwise.
_STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}
_STORAGES |= {"IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1"}
_STORAGES |= {"BoolStorage": "?"}
# First values of a file written before torch 1.6, which is not a zip (torch/serialization.py).
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# What zipfile, NumPy and h5py raise for damaged files; MemoryError is not among them.
_DAMAGE: tuple[type[Exception], ...] = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError)
_DAMAGE += (OSError, EOFError, zipfile.BadZipFile, zlib.error)


def read_npz(data: bytes, name: str) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file.

    Args:
        data: the whole file.
        name: of the file in error messages.

    Raises:
        UserError: it is not such a file, is damaged, or holds pickled objects.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except _DAMAGE as error:
        raise UserError(f"{name}: expected an .npz file of plain arrays. Received {error}") from None


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
                    layer: [f"{layer}/{weight}" for weight in map(_text, group[layer].attrs["weight_names"])]
                    for layer in map(_text, group.attrs["layer_names"])
                }
            else:
                layers = sorted(group["layers"], key=lambda layer: (len(layer), layer))  # conv2d, conv2d_1, ..., _10
                paths = {layer: [f"layers/{layer}/vars/{i}" for i in group[f"layers/{layer}/vars"]] for layer in layers}
            return {
                layer: {path.rpartition("/")[2].partition(":")[0]: _array(group[path]) for path in weights}
                for layer, weights in paths.items()
            }
    except _DAMAGE as error:
        raise UserError(f"{name}: expected an HDF5 file of Keras weights. Received {error}") from None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _array(dataset: h5py.Dataset) -> np.ndarray:
    # These could name other files of this machine; links to such cannot be followed from memory.
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name}, which lies outside the file")
    return np.asarray(dataset)


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
        (pickled,) = (item for item in archive.namelist() if item.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise UserError("expected little-endian tensors. Received big-endian ones")
        value, storages = _unpickle(io.BytesIO(archive.read(pickled)))

        def load(storage: _Storage) -> np.ndarray:
            item = archive.getinfo(f"{folder}data/{storage.key}")
            if item.file_size != storage.size * storage.dtype.itemsize:
                raise ValueError(item.filename)
            return np.frombuffer(archive.read(item), storage.dtype)

        buffers = {key: load(storage) for key, storage in storages.items()}
    return _resolve(value, buffers)


def _read_torch_legacy(data: bytes) -> Any:
    stream = io.BytesIO(data)
    magic, protocol, system = (_unpickle(stream)[0] for _ in range(3))
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise ValueError("magic")
    if not system["little_endian"]:
        raise UserError("expected little-endian tensors. Received big-endian ones")
    value, storages = _unpickle(stream)
    buffers = {}
    for key in _unpickle(stream)[0]:  # each is its number of elements, int64, and the elements
        storage = storages[key]
        if int.from_bytes(stream.read(8), "little") != storage.size:
            raise ValueError(key)
        buffers[key] = np.frombuffer(stream.read(storage.size * storage.dtype.itemsize), storage.dtype, storage.size)
    return _resolve(value, buffers)


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


class _StateDictUnpickler(pickle.Unpickler):
    """Knows storages, tensors and containers; `storages` collects those that the pickle refers to."""

    def __init__(self, stream):
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
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
        if kind != "storage" or not isinstance(key, str) or view not in ([], [None]):
            raise ValueError("persistent id")
        return self.storages.setdefault(key, _Storage(key, np.dtype(_STORAGES[storage_type]), size))

    def _tensor(self, storage, offset, shape, strides, *_) -> _Tensor:
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    def _parameter(self, tensor, *_) -> _Tensor:
        return tensor


def _unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    unpickler = _StateDictUnpickler(stream)
    return unpickler.load(), unpickler.storages


def _resolve(value: Any, buffers: dict[str, np.ndarray]) -> Any:
    if isinstance(value, _Tensor):
        return value.view(buffers[value.storage.key])
    if isinstance(value, dict):
        return {key: _resolve(item, buffers) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolve(item, buffers) for item in value]
    return value
