"""What keeps held-out photographs out of the training of the starter model, and what its script writes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from networks import make_network, small_config
from trainer import checkpoints, presets
from trainer.inference import pins, predict

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "benchmarks"
PHOTOS = ROOT / "pipelines" / "photos"
CONFIG = small_config(16)


@pytest.fixture
def starter(monkeypatch):
    """The script, at its smallest size."""
    monkeypatch.setenv("SMALL", "1")
    monkeypatch.syspath_prepend(FOLDER)
    names = ("starter", "learning", "_timing", "_lookalikes", "_starter_card", "_starter_photos")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import starter

    yield starter
    for name in names:
        sys.modules.pop(name, None)


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


def vary(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What a collection may hold of a photograph that another has, too."""
    height, width = pixels.shape[:2]
    corner = pixels[: height * 2 // 3, width * 2 // 5 :]
    jpeg = cv2.imencode(".jpg", cv2.resize(pixels, None, fx=0.6, fy=0.6), [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return {
        "rescaled and compressed": cv2.imdecode(jpeg, cv2.IMREAD_COLOR),
        "mirrored": pixels[:, ::-1],
        "a part of it": corner,
        "a part of it, enlarged and brighter": cv2.convertScaleAbs(cv2.resize(corner, None, fx=1.7, fy=1.7), alpha=1.2),
        "with a frame": cv2.copyMakeBorder(pixels, 90, 90, 90, 90, cv2.BORDER_CONSTANT),
    }


def test_copies_and_parts_are_found_and_nothing_else(starter):
    photos = {path.stem: read(path) for path in sorted(PHOTOS.rglob("*.jpg"))}
    held_out = list(photos.items())[::4]
    others = [(name, pixels) for name, pixels in photos.items() if name not in dict(held_out)]
    copies = [(f"{name}, {how}", other) for name, pixels in held_out for how, other in vary(pixels).items()]
    assert len(held_out) == 4 and len(others) == 10
    found = starter.find_copies([*others, *copies], held_out)
    assert found == {name: name.partition(",")[0] for name, _ in copies}


def test_pictures_in_resource_files_of_qt(starter):
    """A file written down by hand: the root, a folder in it, and a file and a compressed one in that."""
    from _starter_photos import find_photos, read_resources, scale

    def name(text):
        return struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")

    jpeg = cv2.imencode(".jpg", np.full((200, 130, 3), 90, np.uint8))[1].tobytes()
    packed = struct.pack(">I", len(jpeg)) + zlib.compress(jpeg)
    blobs = [struct.pack(">I", len(x)) + x for x in (b"text", packed)]
    names = [name("photos"), name("a.txt"), name("b.webp")]
    at = [0, len(names[0]), len(names[0] + names[1])]
    nodes = [(0, 2, 1, 1), (at[0], 2, 2, 2), (at[1], 0, 0, 0), (at[2], 1, 0, len(blobs[0]))]
    tree = b"".join(struct.pack(">IHII", *node) for node in nodes)
    places = [20, 20 + len(tree), 20 + len(tree) + len(b"".join(blobs))]
    data = struct.pack(">4s4I", b"qres", 1, *places) + tree + b"".join(blobs + names)
    assert list(read_resources(data)) == [("photos/a.txt", b"text"), ("photos/b.webp", jpeg)]
    with pytest.raises(ValueError, match="expected a Qt resource file"):
        list(read_resources(b"PK" + data))
    assert scale(b"text") is None and cv2.imdecode(np.frombuffer(scale(jpeg), np.uint8), 1).shape == (200, 130, 3)
    assert not list(find_photos(ROOT / "tests" / "benchmarks", ["*.rcc:*.webp"]))


def fake_call(called: list, network):
    """Instead of commands: their options are read as they read them; a training leaves ``network``."""
    found = {"psnr_holes": {"mean": 24.0}, "ssim_holes": {"mean": 0.75}}

    def call(module: str, *options: object):
        parsed = importlib.import_module(module).parser().parse_args([str(option) for option in options])
        called.append((module, parsed))
        if module == "trainer.train":
            config = presets.resolve_config(parsed.preset, parsed.set)
            config = dataclasses.replace(config, unet=CONFIG.unet)
            variables = {"model": checkpoints.read_variables(network.variables), "optimizer": {}}
            state = {"step": config.total_steps, "phase": "initial", "examples": 0}
            checkpoints.save_checkpoint(parsed.run, variables, state, keep=3, config=config)
        if module == "pipelines.evaluate":
            cells = [
                {"border": border, "interval": "(0.1, 0.2]", "method": method, "metrics": found}
                for border in ("none", "all")
                for method in ("network", "telea", "ns", "interpolation")
            ]
            Path(parsed.output).mkdir()
            Path(parsed.output, "metrics.json").write_text(json.dumps({"cells": cells}))

    return call


def test_the_script_trains_installs_and_scores(starter, monkeypatch, capsys, tmp_path):
    first, more, assets, called = tmp_path / "first", tmp_path / "more", tmp_path / "assets", []
    shutil.copytree(PHOTOS, first, ignore=shutil.ignore_patterns("*.md"))
    more.mkdir()
    assets.mkdir()
    held_out = read(sorted(first.rglob("*.jpg"))[0])
    cv2.imwrite(str(more / "part.png"), held_out[20:300, 30:350, ::-1])
    cv2.imwrite(str(more / "noise.png"), np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    network = make_network(CONFIG, 3)
    monkeypatch.setattr(starter, "ASSETS", assets)
    monkeypatch.setattr(starter, "call", fake_call(called, network))
    command = ["--photos", str(first), "--photos", str(more), "--output", str(tmp_path / "out"), "--without", "fig.*"]
    starter.main([*command, "--set", "initial.steps=7", "--finetune", "5", "--note", "A first one."])

    names = [module.rpartition(".")[2] for module, _ in called]
    assert names == ["build_imagenet", "build_masks", "build_masks", "train", "train", "evaluate"]
    runs = [(Path(o.run).name, presets.resolve_config(o.preset, o.set)) for m, o in called if m == "trainer.train"]
    assert [(name, config.initial.steps, config.finetune.steps) for name, config in runs] == [
        ("run", 7, 0),
        ("finetuned", 7, 5),
    ]
    assert "loss.perceptual" in called[4][1].allow_config_change and runs[1][1].loss.perceptual > 0
    said = json.loads((tmp_path / "out" / "photos.json").read_text())
    assert list(said["val"]) == ["photo/" + sorted(first.rglob("*.jpg"))[0].name]
    trained = {name.rpartition("/")[2] for name in said["train"]}
    assert "noise.png" in trained and "part.png" not in trained
    assert "train-living-cat.jpg" in trained and not any("coffee" in name for name in trained)  # the demo shows it
    assert not any("beach" in name or "fig" in name for name in trained if name.startswith("train-landscape"))

    monkeypatch.setattr(pins, "STARTER_CARD", assets / "starter.json")
    monkeypatch.setattr(predict, "STARTER_WEIGHTS", assets / "starter.npz")
    loaded = predict.load_model(predict.starter())
    image = np.random.default_rng(1).random((1, 16, 16, 3), np.float32)
    mask = np.ones((1, 16, 16, 1), np.float32)
    mask[:, 4:9, 4:9] = 0
    np.testing.assert_allclose(loaded.predict(image, mask), network([image, mask]), atol=0.02)
    card = json.loads((assets / "starter.json").read_text())
    assert (card["step"], card["examples"], card["notes"]) == (7, 7 * 8, ["A first one."])
    assert (card["finetune"]["step"], card["finetune"]["loss"]["perceptual"]) == (5, 0.3)
    assert (card["device"], card["config"]["precision"]) == ("two CPU cores", "float32")
    row = "| (0.1, 0.2] | 24.00 | 24.00 | 24.00 | +0.00 | 24.00 | 0.750 | 0.750 | 0.750 |"
    assert row in capsys.readouterr().out and row in (assets / "starter.md").read_text()


def test_weights_of_a_gpu_are_installed_and_not_trained_again(starter, monkeypatch, tmp_path):
    assets, called, network = tmp_path / "assets", [], make_network(CONFIG, 3)
    assets.mkdir()
    monkeypatch.setattr(starter, "ASSETS", assets)
    monkeypatch.setattr(starter, "call", fake_call(called, network))
    np.savez(tmp_path / "weights.npz", **checkpoints.read_variables(network.variables))
    config = presets.override(presets.PRESETS["demo"], ["precision=mixed_bfloat16"])
    config = json.loads(presets.to_json(dataclasses.replace(config, unet=CONFIG.unet)))
    facts = {"step": 9, "examples": 1234, "seconds": 7200.0, "device": "a GPU", "sides": [16, 32], "probes": 2}
    (tmp_path / "weights.json").write_text(json.dumps({**facts, "config": config}))
    starter.main(["--output", str(tmp_path / "out"), "--photos", str(PHOTOS), "--prepare"])
    assert called == [] and (tmp_path / "out" / "photos.json").exists() and not any(assets.iterdir())
    command = ["--output", str(tmp_path / "out"), "--photos", str(PHOTOS)]
    starter.main([*command, "--weights", str(tmp_path / "weights.npz")])

    assert "trainer.train" not in [module for module, _ in called]
    monkeypatch.setattr(pins, "STARTER_CARD", assets / "starter.json")
    monkeypatch.setattr(predict, "STARTER_WEIGHTS", assets / "starter.npz")
    loaded = predict.load_model(predict.starter())
    image, mask = np.random.default_rng(1).random((1, 16, 16, 3), np.float32), np.ones((1, 16, 16, 1), np.float32)
    mask[:, 4:9, 4:9] = 0
    np.testing.assert_allclose(loaded.predict(image, mask), network([image, mask]), atol=0.02)
    trained = len(json.loads((tmp_path / "out" / "photos.json").read_text())["train"]) - 2
    text = (assets / "starter.md").read_text()
    assert (
        f"9 steps, 1,234 examples of 16 x 16 and 32 x 32 pixels of {trained} photographs;\n  2.0 hours on a GPU."
        in text
    )
    assert json.loads((assets / "starter.json").read_text())["config"]["precision"] == "float32"


def test_a_finetune_of_a_gpu_counts_by_half(starter, monkeypatch, tmp_path):
    assets, networks = tmp_path / "assets", [make_network(CONFIG, seed) for seed in (3, 4)]
    assets.mkdir()
    monkeypatch.setattr(starter, "ASSETS", assets)
    monkeypatch.setattr(starter, "call", fake_call([], networks[0]))
    places = [tmp_path / name for name in ("before.npz", "after.npz")]
    for step, (network, place) in enumerate(zip(networks, places, strict=True), 8):
        np.savez(place, **checkpoints.read_variables(network.variables))
        config = presets.override(presets.PRESETS["demo"], [f"loss.perceptual={step}"])
        config = json.loads(presets.to_json(dataclasses.replace(config, unet=CONFIG.unet)))
        facts = {"step": step, "examples": 40 * step, "seconds": 60.0, "device": "a GPU", "sides": [16], "probes": 2}
        place.with_suffix(".json").write_text(json.dumps({**facts, "config": config}))
    command = ["--output", str(tmp_path / "out"), "--photos", str(PHOTOS)]
    starter.main([*command, "--weights", str(places[0]), "--tuned", str(places[1])])

    before, after = (checkpoints.read_variables(network.variables) for network in networks)
    with np.load(assets / "starter.npz") as installed:
        assert set(installed) == set(before)
        for path, array in installed.items():
            np.testing.assert_allclose(array, (before[path] + after[path]) / 2, rtol=1e-3, atol=1e-3)
    text = (assets / "starter.md").read_text()
    assert "8 steps, 320 examples" in text and "9 steps, 360 examples; 60 seconds on a GPU" in text
    assert "perceptual 9. The weights" in text and "50% of the way" in text


def test_what_the_demo_shows_was_not_trained_on(starter):
    """By hashes; test_the_script_trains_installs_and_scores has copies and parts."""

    def bits(hashes):
        return np.array([list(f"{int(h, 16):064b}") for h in hashes]) == "1"

    trained = bits(json.loads((starter.ASSETS / "starter.json").read_text())["photographs"]["train"].values())
    shown = bits(map(starter.hash_of, starter.list_photos(PHOTOS / "val")))
    assert shown.shape == (4, 64) and (shown[:, None] != trained).sum(-1).min() > 6


def test_the_card_is_what_the_figures_say(starter):
    card = json.loads((starter.ASSETS / "starter.json").read_text())
    assert (starter.ASSETS / "starter.md").read_text() == starter.card_of(card)
    assert list(card["scores"]) == ["128", "256"] and all(len(scores) == 7 for scores in card["scores"].values())
