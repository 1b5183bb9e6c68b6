"""Files as torch.save writes them, made without torch."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict

import numpy as np

STORAGES = {"float32": b"FloatStorage", "int64": b"LongStorage"}


class TorchPickler(pickle._Pickler):
    """Pickles arrays as torch.save does tensors: the pure-Python pickler can write names that do not exist here."""

    def __init__(self, stream):
        super().__init__(stream, protocol=2)
        self.arrays = []

    def save(self, value, *arguments, **options):
        if not isinstance(value, (np.ndarray, np.int64)):
            return super().save(value, *arguments, **options)
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        super().save("storage")
        self.write(b"ctorch\n" + STORAGES[str(value.dtype)] + b"\n")
        for item in (str(len(self.arrays)), "cpu", value.size):
            super().save(item)
        self.write(b"tQ")
        for item in (0, value.shape, tuple(s // value.itemsize for s in value.strides), False, OrderedDict()):
            super().save(item)
        self.write(b"tR")
        self.arrays.append(value)


def write_pth(path, value):
    """The zip file of torch 1.6 and later; arrays float32 or int64, C-contiguous."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as stream:
            pickler = TorchPickler(stream)
            pickler.dump(value)
        for i, array in enumerate(pickler.arrays):
            archive.writestr(f"archive/data/{i}", array.tobytes())
