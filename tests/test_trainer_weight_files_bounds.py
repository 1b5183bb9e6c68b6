"""Weight files that lie about what they hold: refused by their headers, without the memory or the time they ask for."""

from __future__ import annotations

import io
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from trainer.errors import UserError
from trainer.weight_files import check_keras, read_keras_h5, read_npz, read_state_dict, read_torch

SIZE = 4 << 30  # bytes that each bomb promises, far more than the reader may take
READERS = {".npz": read_npz, ".h5": read_keras_h5, ".pth": read_torch, ".keras": check_keras}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


def npy(shape: tuple[int, ...], descr: object = "<f4", data: bytes = b"") -> bytes:
    packed = io.BytesIO()
    np.lib.format.write_array_header_1_0(packed, {"descr": descr, "fortran_order": False, "shape": shape})
    return packed.getvalue() + data


def promising(data: bytes, name: str, size: int) -> bytes:
    """A zip with the directory's size of a member changed; who believes it reads the member to that length."""
    changed = bytearray(data)
    at = changed.rindex(b"PK\x01\x02")
    changed[at + 24 : at + 28] = size.to_bytes(4, "little")
    assert changed[at + 46 :].startswith(name.encode())
    return bytes(changed)


def h5(fill, layers=(b"a",), weights=(b"kernel:0",)) -> bytes:
    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        file.attrs["layer_names"] = list(layers)
        group = file.create_group("a")
        group.attrs["weight_names"] = list(weights)
        fill(group)
    return packed.getvalue()


def never_written(group) -> None:
    group.create_dataset("kernel:0", (SIZE // 4,), "f4", chunks=(1 << 18,))


def wide_chunk(group) -> None:
    """One value, in a chunk of a gigabyte."""
    group.create_dataset("kernel:0", (1,), "f4", chunks=(1 << 28,), maxshape=(None,), compression="gzip")


def deflated_zeros() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("a.npy", "w") as file:
            file.write(npy((1 << 26,)))
            for _ in range(256):
                file.write(bytes(1 << 20))
    return packed.getvalue()


def corrupt_deflate() -> bytes:
    data = bytearray(zipped({"a.npy": npy((500,), data=np.random.default_rng(0).bytes(2000))}, zipfile.ZIP_DEFLATED))
    data[60:200] = b"\xff" * 140
    return bytes(data)


def flagged(offset: int, value: int) -> bytes:
    """An archive of one array with a field of both its headers changed."""
    data = bytearray(zipped({"a.npy": npy((2,), data=bytes(8))}))
    for at in (6 + offset, data.rindex(b"PK\x01\x02") + 8 + offset):
        data[at] = value
    return bytes(data)


HOSTILE = {
    "deflated zeros.npz": deflated_zeros,
    "deflated zeros.pth": deflated_zeros,
    "long member.npz": lambda: promising(zipped({"a.npy": npy((SIZE // 8,))}), "a.npy", SIZE // 2),
    "10^12 elements.npz": lambda: zipped({"a.npy": npy((10**12,))}),
    "negative.npz": lambda: zipped({"a.npy": npy((-4,), data=bytes(16))}),
    "structured.npz": lambda: zipped({"a.npy": npy((1,), [("a", "<f4"), ("b", "<i4")], bytes(8))}),
    "texts.npz": lambda: zipped({"a.npy": npy((1,), "<U2", bytes(8))}),
    "encrypted.npz": lambda: flagged(0, 1),
    "unknown compression.npz": lambda: flagged(2, 77),
    "corrupt deflate.npz": corrupt_deflate,
    "brackets.npz": lambda: zipped({"a.npy": b"\x93NUMPY\x01\x00(#" + b"(" * 8999 + b"\n"}),
    "no arrays.npz": lambda: zipped({"a.txt": b"text"}),
    "never written.h5": lambda: h5(never_written),
    "wide chunk.h5": lambda: h5(wide_chunk),
    "loop.h5": lambda: h5(lambda group: group.update({"kernel:0": h5py.SoftLink("/a/kernel:0")})),
    "group.h5": lambda: h5(lambda group: group.create_group("kernel:0")),
    "objects.h5": lambda: h5(lambda group: group.create_dataset("kernel:0", (3,), h5py.string_dtype())),
    "integer names.h5": lambda: h5(lambda group: group.create_dataset("kernel:0", (3,), "f4"), layers=[5]),
    "never written.keras": lambda: zipped({"model.weights.h5": h5(never_written)}),
    "nothing.keras": lambda: zipped({"config.json": b"{}"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_are_refused_by_their_headers_in_one_line(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = HOSTILE[name]()
    with pytest.raises(UserError, match=f"^{name.replace('^', '.')}: expected .* Received ") as caught:
        READERS["." + name.rpartition(".")[2]](data, name)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def torch_zip(pickled: bytes) -> bytes:
    return zipped({"archive/data.pkl": pickled})


def doubled(first: bytes, pair: bytes, times: int = 60) -> bytes:
    """Opcodes of a value that holds the one before it twice, ``times`` times: 2^60 leaves in a few hundred bytes."""
    return first + (b"q\x00h\x00" + pair) * times


def test_what_a_pickle_shares_is_looked_at_once():
    """Sixty lists, each of which holds the next one twice, stay sixty lists."""
    shared: list = []
    for _ in range(60):
        shared = [shared, shared]
    found, seen = read_torch(torch_zip(pickle.dumps({"model": shared}, 2)), "x")["model"], set()
    while found:
        assert found[0] is found[1] and id(found) not in seen
        seen.add(id(found))
        found = found[0]
    assert len(seen) == 60
    with pytest.raises(UserError, match="expected a state dict"):
        read_state_dict(torch_zip(pickle.dumps({"model": shared}, 2)), "x")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}" + doubled(b")", b"\x86") + b"K\x01s.",  # as a key, set with SETITEM
        b"\x80\x02}(" + doubled(b")", b"\x86") + b"K\x01u.",  # with SETITEMS
        b"\x80\x02ccollections\nOrderedDict\n(]" + doubled(b")", b"\x86") + b"K\x01\x86at\x85R.",  # a constructor
        b"\x80\x04\x8f(" + doubled(b")", b"\x86") + b"\x90.",  # in a set
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02" + b"]" * 10_000_000 + b".",
    ],
    ids=["key", "keys", "ordered", "set", "deep", "long"],
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_pickles_that_take_for_ever_are_refused(pickled, form):
    with pytest.raises(UserError, match="^x: expected "):
        read_torch(torch_zip(pickled) if form == "zip" else pickled, "x")


def test_the_command_takes_little_memory_and_names_the_file(tmp_path):
    """In a process of its own, whose memory is bounded: an allocation of what the file promises fails there."""
    (tmp_path / "w.h5").write_bytes(h5(never_written))
    (tmp_path / "zeros.h5").symlink_to("/dev/zero")
    code = "import sys; from trainer import import_weights as c; c.run_command(c.main)"
    for name, message in (("w.h5", "whose arrays take 4,294,967,296"), ("zeros.h5", "expected a regular file")):
        command = [
            sys.executable,
            "-c",
            code,
            "--from",
            "pconv-keras",
            str(tmp_path / name),
            "--run",
            str(tmp_path / "run"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[1])
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
