"""Files of torch.save and of Keras, against what the programs that wrote them hold; hostile files are refused."""

from __future__ import annotations

import base64
import io
import os
import pickle
import zipfile
import zlib

import h5py
import keras
import numpy as np
import pytest

from trainer.errors import UserError
from trainer.weight_files import read_keras_h5, read_npz, read_torch

# torch.save of torch 2.13, as zip and with _use_new_zipfile_serialization=False; compressed. Both hold
# {"n_iter": 7, "model": state dict, "parameter": Parameter [0.5]} with a transposed, an offset and a scalar tensor.
ZIP = (
    "c-o~^OK;Ok6rMclrUufMS4)BNh6LI)c9JIHaf_@g3&}{7Af$)|mYYmt3n%WeCq;lNRYK*l12zaDq5CiHf(4uV2aphA!46$rvAPlx5=&<6Hnkn4g?"
    "5y&<#@h_&zy5+R*A(CN+eL%7(%;|X4iCM5l_`MqGcBDn6i{aw*q51x&$ay<tU(~8U))AQTnTW^s#Bxu?f*y%`#0~BZk#-_-l3@+qnLxQ6oIW(iMn"
    "%(7V`Z=mh#|#G;BBwM`7u;Z+;YwGFeb65MhuTU``+;8Lk-KSelnrPjdE??HIkv@~+V`;&)6HA2^9VW1kL_u4`mc!eXd<GO;Bm=b*iJC%qMdjz|l>"
    "dZxwz+eT2sx%Tv*UWhs)~SxZ#(jnU)uG<)QVXz0=ao2tz1JyIbOrV)krmkQ(Txxot-t{{3J$>w4vYo(u3D`|hwq@vC&D4h7a?$%T1=-so^b+4DsZ"
    "&D1jniabdlP`L}Ob4$KCfQs%)R&<Pw~6W3q^ChlUwWD-p+W=3LBzW@{8i_vK8F;C5E<kn(KmUifm5_B@?sVWXdSj$I}^Z<7Qv6_|SBK4c$*Pyw->"
    "nN|7|e;<AIE*V9L&DoyWHG(EP*_D~M?50N4RsXV-4kg(JLvSVk|NM|SX0x~C7%HwyuI7)bnMR}4#4RFAxnEaZAJcheVCF7-rJswU8yXl!GaUnS_X"
    "xIFHOSJ1t>~@|(;&pe%)`p1F9%pHaT|I_qCWyvJ(ZQE^V=}su`bWh%VqkbbD7S+E;C0X&;ENpN?(j_;%Fl1NRXuz`VIYyR9RwrFV4LE$^;Ud=v@r"
    "ziLzAMas&oeS((1{PxJm3^mE(Mr-U<1``EYRFIoGFZ>T-!%fL>xZ7ctBJX3%Frg3xg{2xc+dI7qh?qJ)X6?k7`$AfCrWhwKUW`u09Seh1#V!2o@m"
    "kN1dS}X{~T&bKb6pE#ym=}a{zL1}0F6Uo=|2IW_q+FK~X13$g-?fIioQKcBF0`)!jRcUlqo`M(3zPVp$XI~ny`QA3bA@^QjbJ#yQ;DJO1{8+-t2P"
    ";ce~h6}?+9c46&S?o@eo!BWBt_=#C{56#W2>N{Xr}{goD)<#`<%2Fo6Bw!}i!Se@cx9W6hyWl6_X;xQVsWh)s5oeCYl#>fL{EYpsT3r#*VG+IzfH"
    "uaEOEyu038`xAn=G>!"
)
LEGACY = (
    "c-nPR*>2N76!q4m8E7dxWi7kI5*jOQVhO1cLRF<<t9kJYvRr$Jja=K;GcE!tQeIjL-@pTp{2HHt!~@rM5}*nr&y43T=bX8BM#>iw{rbB3bLHLlSI"
    "e!D^8AO2>kuT}UXmm!%@UD#N#yLYjE6}KG6vWS=!rrhBIdBz58W7)Lz|#cd`OwY!;g%EIs{F(=g`Q5Boi=46<ftq7z?OT&DIKxBpyJWYI#24tf4h"
    "_LcubSX}wI}O?(!C;-QL&c>+an@-p*T#{8$DCkUubtDq`U-?MNKAeSeS%nMphF2aZtCu2K#82OH1F;6mQ&md6Kb-P}O!$^0)pkAer%_woj>&i%A-"
    "d@BQv(qt+)o#!1bvs4}8s$B_GzUU!F9aOhrV>@DasbDvOw|Ke_#70P76qKJV5z)m;6`uZWPq%}glP*+Q=(H-qPA%oW_N9Ey$7cQLNz2fvyHgQKAf"
    "fUKAfw-&kML<!E#k#!BP$v|3QC-rJbT*I*Q(H8*mxXWkkP%@|(>H^{Rkt7Odn$xNbKv#o1-T^<Ck@jnaS9Mxz9`hH$&A-sDx>p)%)ur_4#+%*8b9"
    ";NAbUVH!a|uS5s)M-;B(FEqyr?-d2ctKTn{2bI!?0$LV4IxG*XpP+4lQM{rz#VeXoOL<lalv%9mte$JERkU$D9!q`ci99|u#=HE-zfqI^9-|Fh`u"
    "O1-;r!PB4L;%FTm"
)


def golden(text):
    return zlib.decompress(base64.b85decode(text))


@pytest.mark.parametrize("text", [ZIP, LEGACY], ids=["zip", "legacy"])
def test_tensors_come_back_as_torch_had_them(text):
    value = read_torch(golden(text), "x.pth")
    assert value["n_iter"] == 7 and list(value) == ["n_iter", "model", "parameter"]
    model = value["model"]
    assert list(model) == ["weight", "half", "steps"]
    np.testing.assert_array_equal(model["weight"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(model["half"], [1, 2])
    assert model["steps"] == 9 and model["steps"].shape == ()
    assert [array.dtype.str for array in model.values()] == ["<f4", "<f2", "<i8"]
    np.testing.assert_array_equal(value["parameter"], [0.5])


@pytest.mark.parametrize("text", [ZIP, LEGACY], ids=["zip", "legacy"])
def test_a_file_cut_anywhere_is_refused(text):
    data = golden(text)
    for size in range(0, len(data), 61):
        with pytest.raises(UserError, match="x.pth: expected a file of torch.save"):
            read_torch(data[:size], "x.pth")


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def as_zip(pickled, **files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in files.items():
            archive.writestr(f"archive/{name.replace('_', '/')}", data)
    return packed.getvalue()


@pytest.mark.parametrize("function", [os.mkdir, eval, __import__, getattr, keras.saving.load_model])
@pytest.mark.parametrize("form", ["zip", "legacy", "legacy header"])
def test_functions_are_refused_before_they_are_called(tmp_path, monkeypatch, function, form):
    monkeypatch.chdir(tmp_path)
    hostile = pickle.dumps({"model": Call(function, "made")}, protocol=2)
    header = b"".join(pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    data = {"zip": as_zip(hostile), "legacy": header + hostile, "legacy header": hostile}[form]
    with pytest.raises(UserError, match=rf"x.pth: expected .* Received \w+(\.\w+)*\.{function.__name__}, which is not"):
        read_torch(data, "x.pth")
    assert not list(tmp_path.iterdir())


def tensor_pickle(offset, shape, strides, size=4):
    """A pickle of one tensor over a storage of float32, written opcode by opcode."""
    numbers = [b"K" + bytes([offset]), b"(" + b"".join(b"K" + bytes([n]) for n in shape) + b"t"]
    numbers.append(b"(" + b"".join(b"K" + bytes([n]) for n in strides) + b"t")
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK%ctQ" % size
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(numbers) + b"\x89NtR."


def test_tensors_cannot_reach_beyond_their_storage():
    stored = np.arange(4, dtype="<f4").tobytes()
    value = read_torch(as_zip(tensor_pickle(1, (3,), (1,)), data_0=stored), "x.pth")
    np.testing.assert_array_equal(value, [1, 2, 3])
    for tensor in [(2, (3,), (1,)), (0, (2, 2), (3, 1)), (0, (5,), (0,)), (0, (200, 200), (0, 0)), (0, (3,), (1, 1))]:
        with pytest.raises(UserError, match="damaged"):
            read_torch(as_zip(tensor_pickle(*tensor), data_0=stored), "x.pth")
    for size in (3, 5):
        with pytest.raises(UserError, match="damaged"):
            read_torch(as_zip(tensor_pickle(0, (3,), (1,), size), data_0=stored), "x.pth")
    with pytest.raises(UserError, match="big-endian"):
        read_torch(as_zip(tensor_pickle(0, (3,), (1,)), data_0=stored, byteorder=b"big"), "x.pth")


def write_keras_2(path, layers, root=""):
    """What Keras 2's save_weights writes (keras/engine/saving.py): names in attributes, weights in nested groups."""
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        group.attrs["layer_names"] = [name.encode() for name in layers]
        for name, weights in layers.items():
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [f"{name}/{weight}:0".encode() for weight in weights]
            for weight, array in weights.items():
                layer[f"{name}/{weight}:0"] = array


@pytest.mark.parametrize("root", ["", "model_weights"])
def test_keras_2_weights_keep_the_files_order(tmp_path, root):
    layers = {"p_conv2d_9": {"img_kernel": np.ones((1, 2)), "bias": np.zeros(3)}, "relu": {}}
    layers["p_conv2d_10"] = {"img_kernel": np.full((2, 2), 5.0), "bias": np.arange(2.0)}
    write_keras_2(tmp_path / "w.h5", layers, root)
    loaded = read_keras_h5((tmp_path / "w.h5").read_bytes(), "w.h5")
    assert {name: list(weights) for name, weights in loaded.items()} == {k: list(v) for k, v in layers.items()}
    assert list(loaded) == list(layers)
    for name, weights in layers.items():
        for weight, array in weights.items():
            np.testing.assert_array_equal(loaded[name][weight], array)


def test_keras_3_weights_are_numbered_in_order(tmp_path):
    model = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(n) for n in range(1, 13))])
    model.save_weights(tmp_path / "w.weights.h5")
    loaded = read_keras_h5((tmp_path / "w.weights.h5").read_bytes(), "w")
    assert list(loaded) == ["dense", *(f"dense_{i}" for i in range(1, 12))]
    for layer, weights in zip(model.layers, loaded.values(), strict=True):
        for expected, array in zip(layer.get_weights(), (weights["0"], weights["1"]), strict=True):
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("kind", ["link", "external", "virtual"])
def test_arrays_in_other_files_are_refused(tmp_path, kind):
    write_keras_2(tmp_path / "secret.h5", {"a": {"kernel": np.ones(3)}})
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = [b"a"]
        file.create_group("a").attrs["weight_names"] = [b"kernel:0"]
        if kind == "link":
            file["a/kernel:0"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "a/a/kernel:0")
        elif kind == "external":
            file.create_dataset("a/kernel:0", (3,), "f4", external=[(str(tmp_path / "secret.h5"), 0, 12)])
        else:
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "a/a/kernel:0", (3,))
            file.create_virtual_dataset("a/kernel:0", layout)
    with pytest.raises(UserError, match="outside the file|component not found"):
        read_keras_h5((tmp_path / "w.h5").read_bytes(), "w.h5")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_are_told_and_raise_nothing_else(save):
    packed = io.BytesIO()
    save(packed, a=np.arange(50.0), b=np.ones((3, 4), "float32"))
    whole, rng, refused = packed.getvalue(), np.random.default_rng(0), 0
    for _ in range(2000):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=rng.integers(1, 9)):
            data[place] = rng.integers(256)
        try:
            read_npz(bytes(data), "x")
        except UserError as error:
            assert str(error).startswith("x: expected an .npz file of plain arrays. Received ")
            refused += 1
    assert refused > 1000  # some bytes of a zip mean nothing


def test_other_files_are_refused(tmp_path):
    packed = io.BytesIO()
    np.savez(packed, a=np.array([Call(os.mkdir, str(tmp_path / "made"))], dtype=object))
    for data in (b"", b"no", packed.getvalue(), packed.getvalue()[:50]):
        for read in (read_npz, read_keras_h5, read_torch):
            with pytest.raises(UserError, match="x: expected"):
                read(data, "x")
    write_keras_2(tmp_path / "w.h5", {})
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file.attrs["layer_names"]
    with pytest.raises(UserError, match="w.h5: expected an HDF5 file of Keras weights"):
        read_keras_h5((tmp_path / "w.h5").read_bytes(), "w.h5")
    assert not (tmp_path / "made").exists()
