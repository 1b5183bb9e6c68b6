"""What an evaluation does with what cannot be scored, and with no matter which runner."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from masks.codec import encode_mask
from masks.coverage import hole_ratio
from masks.sampling import MaskSpec, sample_mask
from pipelines import build_masks
from pipelines.evaluate import main
from pipelines.evaluation import methods, rounds
from pipelines.evaluation.methods import Network, fill_round
from pipelines.transforms.model_handler import Pair
from samples import mask_record
from trainer import checkpoints, presets, storage
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.data import records
from trainer.images import rgb
from trainer.inference import predict
from trainer.inference.filling import NotFinite
from trainer.metrics import lpips
from trainer.model.unet import build_unet

SIZE = 32
CONFIG = TrainConfig(unet=UNetConfig(image_size=32, filters=(4,), kernels=(3,)), initial=PhaseConfig(steps=1))
TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
PORTABLE = ["--runner", "PortableRunner", "--job_endpoint", "embed", "--environment_type", "LOOPBACK"]


def save_run(folder: str, bias: float, kernel: float | None = None) -> None:
    arrays = checkpoints.read_variables(build_unet(CONFIG.unet).variables)
    for name, array in arrays.items():
        if name.endswith("kernel"):
            drawn = np.random.default_rng(0).normal(0, 0.2, array.shape).astype(array.dtype)
            arrays[name] = drawn if kernel is None else np.full_like(drawn, kernel)
        elif name.endswith("bias"):
            arrays[name] = array + np.float32(bias)
    state = {"step": 1, "phase": "initial", "examples": 6}
    checkpoints.save_checkpoint(folder, {"model": arrays, "optimizer": {}}, state, keep=1)
    storage.create(f"{folder}/config.json", presets.to_json(CONFIG))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with files of pictures, two of them unreadable and one of one color, masks, and a good and a bad run."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "files" / "deep").mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels if number else pixels * 0 + 77).save(folder / "files" / "deep" / f"{number}.png")
    whole = (folder / "files" / "deep" / "3.png").read_bytes()
    (folder / "files" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "files" / "empty.png").write_bytes(b"")
    options = ["--size", str(SIZE), "--split", "val"]
    build_masks.main(["--output", f"{folder}/masks", "--count", "72", "--stratify", *options])
    build_masks.main(["--output", f"{folder}/narrow", "--count", "6", "--hole-ratio", "0.2,0.3", *options])
    save_run(f"{folder}/run", 0.1)
    save_run(f"{folder}/broken", 3e38, 10.0)  # finite, its outputs are not
    return folder


def arguments(made, output, *options: str) -> list[str]:
    data = ["--images", f"{made}/files/**", "--masks", f"{made}/masks", "--run", f"{made}/run"]
    return [*data, "--output", str(output), *options]


def read(output) -> tuple[dict, list[dict]]:
    rows = [json.loads(line) for line in (output / "pairs.jsonl").read_text().splitlines()]
    return json.loads((output / "metrics.json").read_text(), parse_constant=pytest.fail), rows


@pytest.fixture(scope="module")
def in_process(made, tmp_path_factory):
    output = tmp_path_factory.mktemp("in-process")
    assert main(arguments(made, output, "--run", f"{made}/broken")) == 3
    return output


def test_unreadable_images_and_outputs_that_are_not_finite_are_counted_and_left_out(in_process, capsys):
    metrics, rows = read(in_process)
    assert metrics["counts"] == {"masks": 72, "pairs": 72, "rows": 72 * 5, "failed": 5 * 24 + 48}
    for row in rows:
        unreadable = row["image"] in ("cut.png", "empty.png")
        assert ("error" in row) == (unreadable or row["method"] == "broken")
        if "error" in row:
            assert row["error"].startswith("ImageError: " if unreadable else "NotFinite: ") and "l1" not in row
    assert {row["image"] for row in rows} == {"cut.png", "empty.png", *(f"deep/{n}.png" for n in range(4))}
    for cell in metrics["cells"]:
        if cell["bucket"] == "all" and cell["border"] == "all":
            scores = [row for row in rows if row["method"] == cell["method"] and "error" not in row]
            assert (cell["pairs"], cell["failed"]) == (72, 72 if cell["method"] == "broken" else 24)
            for name, found in cell["metrics"].items():
                values = [row[name] for row in scores if row[name] is not None]
                assert found["count"] == len(values)
                assert found["mean"] == (pytest.approx(np.mean(values), rel=1e-12) if values else None)
    page = (in_process / "report.html").read_text()
    assert "168 of 360 images failed" in page and "12 (12 failed)" in page
    assert "| broken | 72 (72 failed) | – | – | – | – | – | – |" in (in_process / "table.md").read_text()


def test_pictures_equal_to_their_target_are_counted_and_enter_no_mean_of_psnr(in_process):
    metrics, rows = read(in_process)
    exact = [row for row in rows if row["method"] == "mean" and row["image"] == "deep/0.png"]
    assert len(exact) == 12 and all(row["psnr"] is None and row["l1"] == 0 and row["ssim"] == 1 for row in exact)
    (cell,) = (c for c in metrics["cells"] if (c["method"], c["bucket"], c["border"]) == ("mean", "all", "all"))
    assert cell["exact"] == 12 and cell["metrics"]["psnr"]["count"] == 36 and cell["metrics"]["l1"]["count"] == 48


def test_empty_intervals_are_said_to_be_empty(made, tmp_path):
    options = ["--masks", f"{made}/narrow", "--images", f"{made}/files/deep/*", "--per-cell", "all"]
    assert main(arguments(made, tmp_path, *options)) == 0
    metrics, rows = read(tmp_path)
    assert len(rows) == 6 * 4 and metrics["counts"]["pairs"] == 6
    for cell in metrics["cells"]:
        if cell["border"] == "all":
            assert cell["pairs"] == (6 if cell["bucket"] in (2, "all") else 0)
            assert (cell["metrics"]["ssim"]["mean"] is None) == (cell["pairs"] == 0)
    table = (tmp_path / "table.md").read_text()
    assert "| (0.3, 0.4] | all | network | none | – | – | – | – | – | – |" in table


def test_lpips_stands_beside_the_other_metrics_where_its_weights_are_given(made, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape, np.float32) for name, shape in lpips.expected_shapes("alex").items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    options = ["--lpips", f"{tmp_path}/weights.npz", "--per-cell", "1", "--baseline", "mean"]
    assert main(arguments(made, tmp_path / "out", *options, "--images", f"{made}/files/deep/*")) == 0
    metrics, rows = read(tmp_path / "out")
    cell = metrics["cells"][-1]
    values = [row["lpips"] for row in rows if row["method"] == "mean"]
    error = np.std(values, ddof=1) / 12**0.5
    expected = {"count": 12, "mean": pytest.approx(np.mean(values)), "error": pytest.approx(error)}
    assert cell["metrics"]["lpips"] == expected
    weights = (tmp_path / "weights.npz").read_bytes()
    assert metrics["lpips"] == {"address": f"{tmp_path}/weights.npz", "crc32c": storage.crc32c(weights)}
    assert "<figcaption>LPIPS</figcaption>" in (tmp_path / "out" / "report.html").read_text()
    assert "| LPIPS |" in (tmp_path / "out" / "table.md").read_text()


def test_one_bad_picture_of_a_round_fails_alone():
    masks = [
        sample_mask(MaskSpec(generator="shapes", height=8 * 4, width=32, hole_ratio=(0.2, 0.3)), i) for i in (0, 1, 2)
    ]
    pictures = [np.full((32, 32, 3), value, np.uint8) for value in (10, 200, 30)]

    def network(image, mask):
        return np.where(image.max((1, 2, 3), keepdims=True) > 0.5, np.float32("nan"), np.float32(0.2)) + 0 * image

    model = predict.Model(predict=network, stride=2)
    filled = fill_round([Pair(*pair) for pair in zip(pictures, masks, strict=True)], model)
    assert isinstance(filled[1], NotFinite)
    for number in (0, 2):
        expected = np.where(masks[number][..., None] == 1, pictures[number], 51)
        np.testing.assert_array_equal(filled[number], expected)
    assert 0.2 < hole_ratio(masks[0]) <= 0.3 and fill_round([], model) == []


def test_pictures_beyond_the_limit_fail_alone(tmp_path):
    image = np.zeros((32, 33, 3), np.uint8)
    mask = sample_mask(MaskSpec(generator="shapes", height=32, width=32, hole_ratio=(0.2, 0.3)), 0)
    path = tmp_path / "a.png"
    path.write_bytes(rgb.encode_png(image))
    for limit, error in ((1056, None), (1055, "ImageError: expected at most 1055 pixels. Received 33 x 32.")):
        _, source = rounds.read_file((0, str(path).encode()), str(tmp_path), limit)
        decoded = rounds.decode_round((0, {"images": [source], "masks": [(0, mask_record(mask))]}), limit)
        assert [failure.error for failure in decoded.failures] == ([error] if error else [])
        assert len(decoded.cases) == (not error)


def test_a_mask_that_cannot_be_read_fails_its_pair_alone():
    masks = []
    for pair in range(3):
        mask = sample_mask(MaskSpec(generator="shapes", height=32, width=32, hole_ratio=(0.2, 0.3)), pair)
        data = encode_mask(mask)[: 40 if pair == 1 else None]
        values = {"mask/encoded": data, "mask/height": 32, "mask/width": 32, "mask/hole_ratio": 0.25, "mask/bucket": 2}
        values |= {"mask/touches_border": pair % 2, "mask/generator": "shapes", "mask/index": 70 + pair}
        masks.append((pair, records.encode_record(values, records.MASK_FEATURES)))
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    decoded = rounds.decode_round((0, {"images": [("a", rgb.encode_png(picture), "")], "masks": masks[::-1]}))
    _, pairs = rounds.to_pairs(decoded)
    filled = [picture, picture // 2]
    assert len(pairs) == 2
    rows = rounds.score_round((decoded, filled), "method")
    assert [(row["pair"], row["mask"], row["border"], "error" in row) for row in rows] == [
        (0, 70, 0, False),
        (1, 71, 1, True),
        (2, 72, 0, False),
    ]
    assert rows[0]["l1"] == 0 and rows[2]["l1"] > 0.1 and rows[1]["error"].startswith("ValueError: ")


def test_networks_know_where_they_come_from(made):
    one, two = methods.find_networks([f"{made}/run@1", f"b={made}/broken"])
    assert isinstance(one, Network) and (one.name, one.run) == ("run@1", f"{made}/run")
    assert (two.name, two.run) == ("b", f"{made}/broken") and two.pin == predict.find_model(f"{made}/broken")
    assert [n.name for n in methods.find_networks([f"{made}/run"])] == ["network"]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("runner", [TWO_PROCESSES, PORTABLE], ids=["two-processes", "portable"])
def test_every_runner_writes_the_same_bytes_over_those_of_another_run(made, in_process, runner, tmp_path):
    names = ["metrics.json", "pairs.jsonl", "report.html", "table.md"]
    assert sorted(path.name for path in in_process.iterdir()) == names
    (tmp_path / "out").mkdir()
    for name in names:
        (tmp_path / "out" / name).write_text("of another run\n" * 9999)
    options = arguments(made, tmp_path / "out", "--run", f"{made}/broken", *runner)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.evaluate", *options],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (in_process / name).read_bytes(), name
