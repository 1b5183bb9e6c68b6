"""FID in the evaluation: the features of every pair's pictures again, and the same bytes from two processes."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipelines import build_masks
from pipelines.evaluate import main
from pipelines.evaluation.distances import Features, measure
from trainer import checkpoints, presets, storage
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.data import records
from trainer.errors import UserError
from trainer.inference import baselines
from trainer.metrics import fid
from trainer.metrics.fid import CLASSES, frechet_distance
from trainer.model.unet import build_unet

SIZE = 32
CONFIG = TrainConfig(unet=UNetConfig(image_size=32, filters=(4,), kernels=(3,)), initial=PhaseConfig(steps=1))
TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]


def test_distances_are_of_the_pairs_of_each_cell_in_whatever_parts_they_come():
    rng = np.random.default_rng(0)
    # Pair, interval, border class, and which of four images; pair 5 is alone in its cell, pair 6 in none of them.
    pairs = [(0, 0, 0, 0), (1, 0, 1, 0), (2, 3, 1, 0), (3, 0, 0, 1), (4, 0, 1, 1), (5, 3, 0, 2), (6, -1, 1, 3)]
    outputs, targets = (rng.normal(size=(len(pairs), 5)).astype(np.float32) for _ in range(2))
    parts = []
    for chosen in ([0, 1, 2], [3, 4], [5], [6]):
        image = pairs[chosen[0]][3]
        places = [(*pairs[pair][:3], 0) for pair in chosen]
        parts.append(Features(np.array(places), outputs[chosen], targets[image : image + 1]))
    method, found = measure(("a", parts))
    cells = {
        (0, 0): [0, 3],
        (0, 1): [1, 4],
        (0, "all"): [0, 1, 3, 4],
        (3, "all"): [2, 5],
        ("all", 0): [0, 3, 5],
        ("all", 1): [1, 2, 4, 6],
        ("all", "all"): [0, 1, 2, 3, 4, 5, 6],
    }
    assert method == "a" and found == {
        cell: (
            len(members),
            pytest.approx(frechet_distance(outputs[members], targets[[pairs[pair][3] for pair in members]]), abs=1e-6),
        )
        for cell, members in cells.items()
    }
    assert measure(("a", parts[::-1])) == measure(("a", parts)) == measure(("a", [parts[i] for i in (2, 0, 3, 1)]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with three pictures, eight masks of one interval, a run, and weights for FID."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "files").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "files" / f"{number}.png")
    options = ["--size", str(SIZE), "--split", "val", "--count", "8", "--hole-ratio", "0.2,0.3"]
    build_masks.main(["--output", f"{folder}/masks", *options])
    arrays = checkpoints.read_variables(build_unet(CONFIG.unet).variables)
    state = {"step": 1, "phase": "initial", "examples": 6}
    checkpoints.save_checkpoint(f"{folder}/run", {"model": arrays, "optimizer": {}}, state, keep=1)
    storage.create(f"{folder}/run/config.json", presets.to_json(CONFIG))
    rng = np.random.default_rng(0)
    weights = {name: rng.random(shape, np.float32) - 0.5 for name, shape in fid.expected_shapes().items()}
    weights |= {name: abs(array) + 0.5 for name, array in weights.items() if name.endswith("running_var")}
    np.savez(folder / "fid.npz", **weights, **{"fc.bias": np.zeros(CLASSES)})
    return folder


def arguments(made, output, *options: str) -> list[str]:
    data = ["--images", f"{made}/files/*.png", "--masks", f"{made}/masks", "--run", f"{made}/run"]
    what = ["--per-cell", "all", "--baseline", "mean", "--fid", f"{made}/fid.npz"]
    return [*data, *what, "--output", str(output), *options]


@pytest.fixture(scope="module")
def report(made, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    assert main(arguments(made, output)) == 0
    return output


def test_cells_hold_the_distances_of_their_pictures(made, report):
    metrics = json.loads((report / "metrics.json").read_text())
    rows = [json.loads(line) for line in (report / "pairs.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["method"] == "mean"]
    assert len(rows) == 8 and "fid" not in rows[0]
    manifest = json.loads((made / "masks" / "manifest.json").read_text())
    shards = [storage.read(f"{made}/masks/{shard['name']}") for shard in manifest["shards"]]
    parsed = [records.parse_mask(record) for shard in shards for record in records.unframe_records(shard)]
    masks = {int(p["mask/index"]): p["mask/encoded"].numpy() for p in parsed}
    targets = [np.asarray(Image.open(made / "files" / row["image"])) for row in rows]
    decoded = [np.asarray(Image.open(io.BytesIO(masks[row["mask"]]))).astype(np.uint8) for row in rows]
    filled = [baselines.fill_mean(target, mask) for target, mask in zip(targets, decoded, strict=True)]
    with np.load(made / "fid.npz") as arrays:
        network = fid.Inception(dict(arrays))
    outputs, originals = (np.asarray(network(np.stack(p).astype(np.float32) / 255)) for p in (filled, targets))
    for cell in metrics["cells"]:
        members = [
            place
            for place, row in enumerate(rows)
            if cell["bucket"] in ("all", row["bucket"]) and cell["border"] in ("all", ("none", "touch")[row["border"]])
        ]
        assert len(members) == cell["pairs"]
        found, expected = cell["metrics"]["fid"], {"count": 0, "mean": None, "error": None}
        if len(members) > 1:
            expected = {"count": len(members), "mean": found["mean"], "error": None}
            if cell["method"] == "mean":
                distance = frechet_distance(outputs[members], originals[members])
                expected["mean"] = pytest.approx(distance, rel=1e-3)
        assert found == expected
    assert not any("fid" in cell["metrics"] for cell in metrics["differences"])
    assert metrics["fid"] == {"address": f"{made}/fid.npz", "crc32c": storage.checksum(f"{made}/fid.npz")}
    page, table = (report / "report.html").read_text(), (report / "table.md").read_text()
    last = metrics["cells"][-1]["metrics"]
    assert last["fid"]["count"] == 8 and last["fid"]["mean"] > 0
    assert "<figcaption>FID</figcaption>" in page and f"| {last['fid']['mean']:.2f} |" in table
    assert (
        "FID is measured over all pairs of a cell together" in page
        and "FID is measured over all pairs of a cell together" in table
    )


@pytest.mark.slow
@pytest.mark.soak
def test_two_processes_write_the_same_bytes(made, report, tmp_path):
    command = [sys.executable, "-m", "pipelines.evaluate", *arguments(made, tmp_path / "out", *TWO_PROCESSES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("metrics.json", "table.md", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (report / name).read_bytes(), name


def test_wrong_weights_are_refused_at_launch(made, tmp_path):
    np.savez(tmp_path / "w.npz", **{"fc.bias": np.zeros(CLASSES)})
    message = "w.npz: FID: expected Conv2d_1a_3x3.conv.weight"
    with pytest.raises(UserError, match=message):
        main(arguments(made, tmp_path / "out", "--fid", f"{tmp_path}/w.npz"))
    with pytest.raises(UserError, match="none.npz does not exist"):
        main(arguments(made, tmp_path / "out", "--fid", f"{tmp_path}/none.npz"))
    assert not (tmp_path / "out").exists()
