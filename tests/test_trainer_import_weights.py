"""The command, from weights files in other programs' formats to a run that is inpainted with."""

from __future__ import annotations

import re
import shlex
from collections import OrderedDict
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from torch_files import write_pth

from trainer import import_weights, presets, runs, train
from trainer.checkpoints.restore import find_latest, load_checkpoint
from trainer.errors import UserError
from trainer.inference import predict
from trainer.model import published
from trainer.model.unet import build_unet

# Kernels of networks of two levels: 5x5 to 4 channels and 3x3 to 6, and back.
STAGES = {"enc_1": (5, 3, 4), "enc_2": (3, 4, 6), "dec_2": (3, 6 + 4, 4), "dec_1": (3, 4 + 3, 3)}


def draw_pconv_keras():
    rng, layers = np.random.default_rng(0), {"inputs_img": {}}
    for i, (name, (size, channels, filters)) in enumerate(STAGES.items()):
        kernel = rng.normal(0, channels**0.5 / size, (size, size, channels, filters))
        layers[f"p_conv2d_{i + 9}"] = {"img_kernel": kernel, "bias": rng.normal(size=filters)}
        if name in ("enc_2", "dec_2"):
            norm = {key: rng.random(filters) + 0.5 for key in ("gamma", "beta", "moving_mean", "moving_variance")}
            layers["EncBN1" if name == "enc_2" else "batch_normalization_3"] = norm
    layers["outputs_img"] = {"kernel": rng.normal(size=(1, 1, 3, 3)), "bias": rng.normal(size=3)}
    return {name: {key: a.astype("float32") for key, a in weights.items()} for name, weights in layers.items()}


def write_h5(path, layers):
    """What save_weights of Keras 2 writes."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.2.4"
        for name, weights in layers.items():
            layer = file.create_group(name)
            layer.attrs["weight_names"] = np.array([f"{name}/{key}:0".encode() for key in weights], "S64")
            for key, array in weights.items():
                layer[f"{name}/{key}:0"] = array


def draw_naoto():
    rng, state = np.random.default_rng(0), OrderedDict()
    for name, (size, channels, filters) in STAGES.items():
        weight = rng.normal(0, size * channels**0.5, (filters, channels, size, size))
        state[f"{name}.conv.input_conv.weight"] = weight
        if name == "dec_1":
            state[f"{name}.conv.input_conv.bias"] = rng.normal(size=filters)
        state[f"{name}.conv.mask_conv.weight"] = np.ones(weight.shape)
        if name in ("enc_2", "dec_2"):
            norm = {f"{name}.bn.{key}": rng.random(filters) + 0.5 for key in ("weight", "bias", "running_mean")}
            state |= norm | {f"{name}.bn.running_var": np.ones(filters), f"{name}.bn.num_batches_tracked": np.int64(9)}
    return OrderedDict((key, array.astype("float32") if array.ndim else array) for key, array in state.items())


def write_naoto(path, state):
    """What util/io.py's save_ckpt writes."""
    optimizer = {"state": {0: {"step": 3, "exp_avg": np.ones(2, "float32")}}, "param_groups": [{"lr": 2e-4}]}
    write_pth(path, {"n_iter": 3, "model": state, "optimizer": optimizer})


SOURCES = {
    "pconv-keras": (draw_pconv_keras, write_h5, published.from_pconv_keras),
    "naoto0804": (draw_naoto, write_naoto, published.from_naoto0804),
}


@pytest.fixture(params=SOURCES)
def imported(request, tmp_path, capsys):
    """Source, run, what the command printed, and the network that it should hold (see trainer.model.published)."""
    draw, write, convert = SOURCES[request.param]
    write(tmp_path / "weights", draw())
    command = ["--from", request.param, str(tmp_path / "weights"), "--run", str(tmp_path / "run")]
    assert import_weights.main(command) == 0
    expected = convert(draw())
    unet = build_unet(expected.config)
    for variable in unet.variables:
        variable.assign(expected.variables[variable.path])
    return command, str(tmp_path / "run"), capsys.readouterr().out, expected, unet


def test_the_run_is_one_to_inpaint_with(imported):
    command, run, printed, expected, unet = imported
    pin = predict.find_model(run)
    assert pin.config.unet == expected.config
    rng = np.random.default_rng(1)
    picture, mask = rng.integers(0, 256, (23, 30, 3), "uint8"), (rng.random((23, 30)) > 0.5).astype("uint8")
    filled = predict.inpaint(picture, mask, predict.load_model(pin))
    padded, valid = np.zeros((1, 24, 32, 3), "float32"), np.zeros((1, 24, 32, 1), "float32")
    padded[0, :23, :30], valid[0, :23, :30, 0] = picture / 255, mask
    output = np.clip(unet([padded, valid])[0, :23, :30], 0, 1) * 255
    assert np.std(output[mask == 0]) > 1
    np.testing.assert_array_equal(filled[mask == 1], picture[mask == 1])
    np.testing.assert_allclose(filled[mask == 0], output[mask == 0], atol=0.51)
    exported = keras.saving.load_model(f"{run}/exports/step-00000000/model.keras", safe_mode=True)
    np.testing.assert_allclose(exported([padded, valid]), unet([padded, valid]), atol=1e-5)


def test_training_can_go_on_from_it(imported):
    _, run, _, _, unet = imported
    checkpoint = load_checkpoint(find_latest(run))
    assert checkpoint.state == {"step": 0, "phase": "initial", "examples": 0}
    optimizer = keras.optimizers.Adam(name="adam")
    optimizer.build(unet.trainable_variables)
    for part, variables in (("model", unet.variables), ("optimizer", optimizer.variables)):
        assert {v.path: tuple(v.shape) for v in variables} == {
            path: array.shape for path, array in checkpoint.variables[part].items()
        }


def test_what_differs_is_printed(imported):
    command, run, printed, expected, unet = imported
    assert f"a network of 2 levels and {unet.count_params():,} parameters" in printed
    notes = [line.removeprefix("note: ") for line in printed.splitlines() if line.startswith("note: ")]
    assert notes == list(expected.notes or ["it computes what the other does, up to rounding"])
    assert len(notes) == {"pconv-keras": 2, "naoto0804": 1}[command[1]]
    assert_fitting(printed, run, expected.config)


def test_a_run_is_not_written_twice(imported):
    command, run, *_ = imported
    before = {path: path.read_bytes() for path in _files(run)}
    with pytest.raises(UserError, match="new folder.*holds files"):
        import_weights.main(command)
    assert before == {path: path.read_bytes() for path in _files(run)}
    assert len(before) == 9  # five files and a pointer of the checkpoint, two of the export, config.json


def assert_fitting(printed, run, unet):
    """The options that were printed are those of the run: nothing differs that would have to be allowed."""
    options = shlex.split(re.search(r"^trained on by: trainer.train (--run .*) \.\.\.$", printed, re.MULTILINE)[1])
    ours = train.parser().parse_args([*options, "--images", "i", "--masks", "m"])
    config = presets.resolve_config(ours.preset, ours.set)
    assert ours.run == run and config.unet == unet
    runs.compare_config(run, config)


def test_the_starter_model_is_trained_on_by_the_options_that_are_printed(tmp_path, capsys):
    run, pin = str(tmp_path / "run"), predict.starter()
    assert import_weights.main(["--from", "starter", "--run", run]) == 0
    printed = capsys.readouterr().out
    assert "note:" not in printed
    assert_fitting(printed, run, pin.config.unet)

    with np.load(predict.STARTER_WEIGHTS) as packed:
        expected = {path: array.astype("float32") for path, array in packed.items()}
    found = load_checkpoint(find_latest(run)).variables["model"]
    assert found.keys() == expected.keys() and all(np.array_equal(found[path], expected[path]) for path in found)


def test_other_weights_need_a_file(tmp_path):
    with pytest.raises(UserError, match="FILE: expected a file of weights. Received none"):
        import_weights.main(["--from", "naoto0804", "--run", str(tmp_path / "run")])


def _files(folder):
    return sorted(path for path in Path(folder).rglob("[!.]*") if path.is_file())


def swap_last(layers):
    layers["p_conv2d_11"]["img_kernel"] = np.ones((5, 5, 10, 4), "float32")
    return layers


@pytest.mark.parametrize(
    "source, write, text",
    [
        ("pconv-keras", lambda path: path.write_text("no"), "weights: expected an HDF5 file"),
        ("pconv-keras", lambda path: write_h5(path, swap_last(draw_pconv_keras())), "decoder_2_conv/kernel"),
        ("naoto0804", lambda path: path.write_text("no"), "weights: expected a file of torch.save"),
        ("naoto0804", lambda path: write_pth(path, draw_naoto()), 'weights: expected .* state dict "model"'),
        ("naoto0804", lambda path: write_pth(path, {"model": {"n": 3}}), 'state dict "model"'),
        ("naoto0804", lambda path: write_pth(path, {"model": {}}), "weights: expected an array enc_1"),
        ("naoto0804", lambda path: write_h5(path, draw_pconv_keras()), "expected a file of torch.save"),
        ("lama", lambda path: path.write_text("no"), "--from: invalid choice: 'lama' .*pconv-keras.*naoto0804"),
        ("naoto0804", lambda path: None, "weights does not exist"),
        ("starter", lambda path: None, "FILE: expected no file with --from starter.* Received .*weights"),
    ],
)
def test_other_files_are_refused_before_anything_is_written(tmp_path, source, write, text):
    write(tmp_path / "weights")
    with pytest.raises(UserError, match=text):
        import_weights.main(["--from", source, str(tmp_path / "weights"), "--run", str(tmp_path / "run")])
    assert not _files(tmp_path / "run")
