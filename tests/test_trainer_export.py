"""Exports reloaded by the programs they are for, against the network they were made from."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from trainer import checkpoints, export, presets, storage
from trainer.checkpoints import pointers
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.errors import UserError
from trainer.model.unet import build_unet

CONFIG = TrainConfig(
    unet=UNetConfig(image_size=16, filters=(4, 6, 8), kernels=(5, 3, 3)),
    initial=PhaseConfig(steps=7),
    precision="mixed_bfloat16",
)
OTHER = TrainConfig(
    unet=UNetConfig(
        image_size=16, filters=(4, 6), kernels=(5, 3), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), head="sigmoid"
    ),
    initial=PhaseConfig(steps=7),
)
RESIDUAL = presets.override(CONFIG, ["unet.residual=true", "unet.std=0.2,0.3,0.4"])

# What a server would do: TensorFlow and ONNX Runtime alone.
PROGRAM = """
import sys
import numpy as np
import onnxruntime
import tensorflow as tf
folder = sys.argv[1]
serve = tf.saved_model.load(folder + "/saved_model").signatures["serving_default"]
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
axes = ["batch", "height", "width"]
assert {i.name: i.shape for i in session.get_inputs()} == {"image": [*axes, 3], "mask": [*axes, 1]}
assert {i.name: i.shape for i in session.get_outputs()} == {"output": [*axes, 3]}
outputs = {}
with np.load(sys.argv[2]) as arrays:
    for case in sorted({name.split("/")[0] for name in arrays}):
        image, mask = arrays[case + "/image"], arrays[case + "/mask"]
        outputs[case + "/saved_model"] = serve(image=tf.constant(image), mask=tf.constant(mask))["output"].numpy()
        (outputs[case + "/onnx"],) = session.run(["output"], {"image": image, "mask": mask})
np.savez(sys.argv[3], **outputs)
assert not {"trainer", "tf2onnx"} & {name.split(".")[0] for name in sys.modules}
"""


def make_run(run, config=CONFIG, step=7, seed=1):
    """A run at its newest checkpoint, with BatchNorm statistics of its own, and the network in it."""
    network, rng = build_unet(config.unet), np.random.default_rng(seed)
    for variable in network.variables:
        low, high = (0.5, 1.5) if variable.name in ("gamma", "moving_variance") else (-0.3, 0.3)
        variable.assign(rng.uniform(low, high, variable.shape))
    variables = {"model": checkpoints.read_variables(network.variables), "optimizer": {}}
    checkpoints.save_checkpoint(run, variables, {"step": step, "phase": "initial", "examples": 6 * step}, keep=3)
    storage.overwrite(storage.join(run, "config.json"), presets.to_json(config))
    return network


def draw_cases():
    rng, cases = np.random.default_rng(0), {}
    for name, height, width in (("square", 16, 16), ("wide", 24, 40), ("hidden", 16, 24), ("empty", 8, 8)):
        image, mask = rng.random((2, height, width, 3)), rng.random((2, height, width, 1)) > 0.4
        mask[1, 4:] = False
        if name == "hidden":
            image = np.where(mask, image, [np.nan, np.inf, -1e30])
        cases[name] = image.astype("float32"), (mask if name != "empty" else 0 * mask).astype("float32")
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="paper"),
        pytest.param(RESIDUAL, id="residual"),
        pytest.param(OTHER, marks=pytest.mark.soak, id="other"),
    ],
)
def test_every_format_computes_what_the_network_does(tmp_path, config, capsys):
    run, cases = str(tmp_path / "run"), draw_cases()
    network = make_run(run, config)
    assert export.main(["--run", run, "--format", "keras,saved_model,onnx"]) == 0
    folder = f"{run}/exports/step-00000007"
    assert capsys.readouterr().out == f"keras, saved_model, onnx of step 7 in {folder}\n"
    np.savez(
        tmp_path / "in.npz",
        **{
            f"{case}/{name}": array
            for case, pair in cases.items()
            for name, array in zip(("image", "mask"), pair, strict=True)
        },
    )
    command = [sys.executable, "-c", PROGRAM, folder, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = dict(np.load(tmp_path / "out.npz"))
    loaded = keras.saving.load_model(f"{folder}/model.keras", safe_mode=True)
    for case, pair in cases.items():
        expected = np.asarray(network(list(pair), training=False))
        outputs[f"{case}/keras"] = np.asarray(loaded(list(pair), training=False))
        assert np.isfinite(expected).all() and (case == "empty" or np.std(expected) > 0.01)
        for form in ("keras", "saved_model", "onnx"):
            np.testing.assert_allclose(outputs[f"{case}/{form}"], expected, atol=1e-4, err_msg=f"{case} {form}")


def test_saved_model_goes_to_a_bucket_with_its_card(bucket, tmp_path):
    run, output = str(tmp_path / "run"), f"{bucket}/exported/a"
    make_run(run)
    export.main(["--run", run, "--format", "saved_model", "--output", output])
    names = [storage.relative(address, output) for address in storage.find(output)]
    assert names[0] == "card.json" and "saved_model/saved_model.pb" in names
    assert {name.rpartition("/")[0] for name in names[1:]} <= {"saved_model", "saved_model/variables"}
    assert len(names) >= 4 and json.loads(storage.read(f"{output}/card.json"))["step"] == 7
    assert storage.find(f"{run}/exports") == []


def test_formats_are_added_and_files_stay(tmp_path):
    run = str(tmp_path / "run")
    make_run(run)
    export.main(["--run", run])
    folder = tmp_path / "run" / "exports" / "step-00000007"
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.keras"]
    card = json.loads((folder / "card.json").read_text())
    assert card["metrics"] == {}
    (folder / "card.json").write_text(json.dumps({**card, "metrics": {"hole": 0.5}}))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    export.main(["--run", run, "--format", "saved_model"])
    export.main(["--run", run, "--output", str(tmp_path / "copy")])
    assert (folder / "saved_model" / "saved_model.pb").exists()
    assert (folder / "model.keras").read_bytes() == before["model.keras"]
    card, earlier = (json.loads(text) for text in ((folder / "card.json").read_text(), before["card.json"]))
    assert card == {**earlier, "files": card["files"]}
    assert earlier["files"].items() < card["files"].items()
    assert json.loads((tmp_path / "copy" / "card.json").read_text())["metrics"] == {"hole": 0.5}


def test_exports_of_other_checkpoints_are_not_mixed(tmp_path):
    run, output = str(tmp_path / "run"), str(tmp_path / "out")
    make_run(run)
    export.main(["--run", run, "--output", output])
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    make_run(run, step=8, seed=2)
    with pytest.raises(UserError, match="another checkpoint"):
        export.main(["--run", run, "--output", output])
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    make_run(str(tmp_path / "again"), seed=3)
    export.main(["--run", str(tmp_path / "again")])
    make_run(str(tmp_path / "again"), seed=4)  # the same step computed anew
    with pytest.raises(UserError, match="another checkpoint; --output"):
        export.main(["--run", str(tmp_path / "again")])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.keras").write_text("mine")
    with pytest.raises(UserError, match="--output: expected a new folder.*other files"):
        export.main(["--run", run, "--output", str(tmp_path / "mine")])
    (tmp_path / "mine" / "card.json").write_text("[]")
    with pytest.raises(UserError, match="not the card"):
        export.main(["--run", run, "--output", str(tmp_path / "mine")])


def step_of(folder) -> int:
    return json.loads((folder / "card.json").read_text())["step"]


def test_any_checkpoint_of_the_run_can_be_exported(tmp_path, capsys):
    run = str(tmp_path / "run")
    for step in (7, 8, 9):
        make_run(run, step=step, seed=step)
    export.main(["--run", run, "--output", str(tmp_path / "newest")])
    assert step_of(tmp_path / "newest") == 9  # nothing was validated
    score = checkpoints.Score(metric="psnr", value=20.0, higher_is_better=True)
    pointers.move_best(run, checkpoints.find(run, 8), 8, score, None)
    expected = {"latest": 9, "best": 8, "7": 7}
    for which, step in expected.items():
        export.main(["--run", run, "--checkpoint", which])
        assert capsys.readouterr().out.splitlines()[-1] == f"keras of step {step} in {run}/exports/step-0000000{step}"
        assert step_of(tmp_path / "run" / "exports" / f"step-0000000{step}") == step
    kernels = []
    for step in (7, 8, 9):
        found = keras.saving.load_model(f"{run}/exports/step-0000000{step}/model.keras").variables
        kernels.append(next(variable.numpy() for variable in found if variable.path == "encoder_1_conv/kernel"))
        saved = checkpoints.load_checkpoint(checkpoints.find(run, step), ("model",)).variables["model"]
        np.testing.assert_array_equal(kernels[-1], saved["encoder_1_conv/kernel"])
    assert not np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[1], kernels[2])
    export.main(["--run", run, "--output", str(tmp_path / "default")])
    assert step_of(tmp_path / "default") == 8  # as inpaint takes it
    with pytest.raises(UserError, match="has no checkpoint of step 5. Steps it has: 7, 8, 9"):
        export.main(["--run", run, "--checkpoint", "5"])
    with pytest.raises(UserError, match="expected latest, best or the number of a step. Received 'newest'"):
        export.main(["--run", run, "--checkpoint", "newest"])


def test_wrong_use_is_told(tmp_path, monkeypatch):
    run = str(tmp_path / "run")
    make_run(run)
    with pytest.raises(UserError, match="--format: expected some of keras, saved_model, onnx. Received 'torch'"):
        export.main(["--run", run, "--format", "keras,torch"])
    with pytest.raises(UserError, match="does not exist"):
        export.main(["--run", str(tmp_path / "absent")])
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UserError, match=r"pip install 'pconv\[onnx\]'"):
        export.main(["--run", run, "--format", "keras,onnx"])
    assert storage.find(f"{run}/exports") == []
