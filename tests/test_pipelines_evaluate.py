"""The evaluation job: every number again with NumPy, scikit-image and OpenCV, from the same pairs."""

from __future__ import annotations

import io
import json
import re
from hashlib import blake2b

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from skimage.metrics import structural_similarity

from pipelines import build_imagenet, build_masks
from pipelines.evaluate import main
from pipelines.evaluation.job import Data
from trainer import checkpoints, presets, storage
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.errors import UserError
from trainer.inference import baselines, export_formats, predict
from trainer.model.unet import build_unet

SIZE, MASKS = 24, 204  # twelve cells of 17
METHODS = ["first", "second", "telea", "ns", "mean"]
METRICS = ("psnr", "psnr_holes", "ssim", "ssim_holes", "l1", "l1_holes")
INTERVALS = ["(0.01, 0.1]", "(0.1, 0.2]", "(0.2, 0.3]", "(0.3, 0.4]", "(0.4, 0.5]", "(0.5, 0.6]"]
CONFIG = TrainConfig(unet=UNetConfig(image_size=24, filters=(4, 6), kernels=(5, 3)), initial=PhaseConfig(steps=1))


def draw_photo(number: int, height: int, width: int) -> bytes:
    """JPEG of a gradient and a disc: something that neighbors say something about."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    disc = (np.hypot(y - 0.4, x - 0.3) < 0.2) * 0.4
    pixels = np.stack([x + disc, 0.7 * y + 0.1 * number, 0.3 + disc], -1) * 200
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).save(file, "JPEG", quality=95)
    return file.getvalue()


def save_run(folder: str, seeds: dict[int, int]) -> None:
    """A run with a network of random weights at each step."""
    unet = build_unet(CONFIG.unet)
    for step, seed in seeds.items():
        rng = np.random.default_rng(seed)
        arrays = checkpoints.read_variables(unet.variables)
        for name, array in arrays.items():
            low, high = (-0.2, 0.25) if name.endswith("kernel") else (0.2, 1.2)
            arrays[name] = rng.uniform(low, high, array.shape).astype(array.dtype)
        state = {"step": step, "phase": "initial", "examples": 6}
        checkpoints.save_checkpoint(folder, {"model": arrays, "optimizer": {}}, state, keep=9)
    storage.create(f"{folder}/config.json", presets.to_json(CONFIG))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with datasets of images (5, and 1 in train) and masks (204), and a run of two checkpoints."""
    folder = tmp_path_factory.mktemp("made")
    for number, (height, width) in enumerate([(24, 24), (24, 37), (48, 51), (30, 24), (48, 48)]):
        storage.create(f"{folder}/tree/val/n0/{number}.JPEG", draw_photo(number, height, width))
    storage.create(f"{folder}/tree/train/n0/other.JPEG", draw_photo(5, 30, 30))
    build_imagenet.main(["--input", f"{folder}/tree", "--output", f"{folder}/images", "--num-shards", "2"])
    options = ["--count", str(MASKS), "--stratify", "--size", str(SIZE), "--split", "val", "--num-shards", "3"]
    build_masks.main(["--output", f"{folder}/masks", *options])
    save_run(f"{folder}/run", {1: 0, 2: 1})
    return folder


def evaluate(made, output, *options: str) -> int:
    return main(["--images", f"{made}/images", "--masks", f"{made}/masks", "--output", str(output), *options])


def two_runs(made) -> list[str]:
    return ["--run", f"first={made}/run@1", "--run", f"second={made}/run"]


@pytest.fixture(scope="module")
def report(made, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "out"
    assert evaluate(made, output, *two_runs(made), "--seed", "5") == 0
    return output


def read_rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


def read_metrics(folder) -> dict:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)


def read_examples(folder, split) -> list[dict]:
    """Examples of a split in the order of the manifest, parsed without the project's code."""
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    paths = [str(folder / shard["name"]) for shard in shards if shard["split"] == split]
    examples = (tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(paths))
    return [
        {
            key: [*v.bytes_list.value, *v.int64_list.value, *v.float_list.value][0]
            for key, v in e.features.feature.items()
        }
        for e in examples
    ]


def center_square(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side].astype(int)
    if side == 2 * SIZE:
        square = square.reshape(SIZE, 2, SIZE, 2, 3).sum((1, 3))
        return np.uint8((square + 2) // 4)
    return np.uint8(square)


def score(picture, target, mask) -> dict[str, float]:
    x, y, hole = picture / 255, target / 255, mask == 0
    options = dict(channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    mean, full = structural_similarity(x, y, full=True, **options)
    return {
        "psnr": 10 * np.log10(1 / np.mean((x - y) ** 2)),
        "psnr_holes": 10 * np.log10(1 / np.mean((x - y)[hole] ** 2)),
        "ssim": mean,
        "ssim_holes": full[hole].mean(),
        "l1": np.mean(abs(x - y)),
        "l1_holes": np.mean(abs(x - y)[hole]),
    }


def in_order(kind: str, numbers) -> list[int]:
    return sorted(numbers, key=lambda number: blake2b(f"{kind} 5 {number}".encode(), digest_size=8).digest())


@pytest.fixture(scope="module")
def expected(made) -> list[dict]:
    """Rows of all pairs and methods."""
    images = read_examples(made / "images", "val")
    masks = {int(e["mask/index"]): e for e in read_examples(made / "masks", "val")}
    cells = [(bucket, border) for bucket in range(6) for border in (0, 1)]
    members = {cell: in_order("mask", [i for i in masks if (i % 6, i // 6 % 2) == cell]) for cell in cells}
    turns = in_order("image", range(5))
    models = {
        name: predict.load_model(predict.find_model(f"{made}/run", step))
        for name, step in (("first", 1), ("second", 2))
    }
    rows = []
    for pair in range(MASKS):
        bucket, border = cells[pair % 12]
        record, index = images[turns[pair // 12 % 5]], members[bucket, border][pair // 12]
        target = center_square(np.asarray(Image.open(io.BytesIO(record["image/encoded"]))))
        mask = np.asarray(Image.open(io.BytesIO(masks[index]["mask/encoded"]))).astype(np.uint8)
        color = np.uint8(np.rint(target[mask == 1].mean(0)))
        mean = np.where(mask[..., None] == 1, target, color)
        filled = {name: predict.inpaint(target, mask, model) for name, model in models.items()}
        for name, method in (("telea", cv2.INPAINT_TELEA), ("ns", cv2.INPAINT_NS)):
            filled[name] = np.where(mask[..., None] == 1, target, cv2.inpaint(mean, 1 - mask, 3, method))
        filled["mean"] = mean
        common = {"pair": pair, "image": record["image/filename"].decode(), "mask": index, "bucket": bucket}
        common |= {"border": border, "hole_ratio": np.mean(mask == 0)}
        rows += [common | {"method": name} | score(picture, target, mask) for name, picture in filled.items()]
    return rows


def close(value):
    return pytest.approx(value, rel=0, abs=1e-6)


def test_every_pair_by_hand(report, expected):
    rows = read_rows(report)
    assert len(rows) == MASKS * 5
    for row, want in zip(rows, expected, strict=True):
        assert row == {key: close(value) if isinstance(value, float) else value for key, value in want.items()}


def numbers_of(rows, cell, name) -> np.ndarray:
    """Values of a metric in a cell of the report, in pair order."""
    borders = {"none": [0], "touch": [1], "all": [0, 1]}[cell["border"]]
    buckets = range(6) if cell["interval"] == "all" else [INTERVALS.index(cell["interval"])]
    return np.array([r[name] for r in rows if r["border"] in borders and r["bucket"] in buckets])


def test_every_cell_by_hand(report, expected, made):
    metrics = read_metrics(report)
    places = [(interval, border) for interval in (*INTERVALS, "all") for border in ("none", "touch", "all")]
    assert [(c["interval"], c["border"], c["method"]) for c in metrics["cells"]] == [
        (*place, method) for place in places for method in METHODS
    ]
    assert [(d["interval"], d["border"], d["method"], d["minus"]) for d in metrics["differences"]] == [
        (*place, method, "first") for place in places for method in METHODS[1:]
    ]
    by_method = {method: [row for row in expected if row["method"] == method] for method in METHODS}
    for cell in metrics["cells"] + metrics["differences"]:
        for name in METRICS:
            values = numbers_of(by_method[cell["method"]], cell, name)
            if "minus" in cell:
                values = values - numbers_of(by_method[cell["minus"]], cell, name)
            found = cell["metrics"][name]
            assert cell["pairs"] == found["count"] == len(values) and len(values) in (17, 34, 102, 204)
            assert found["mean"] == close(values.mean())
            assert found["error"] == close(values.std(ddof=1) / np.sqrt(len(values)))
            assert cell["failed"] == cell["exact"] == 0
    pin = predict.find_model(f"{made}/run", 1).checkpoint
    assert (metrics["methods"][0]["address"], metrics["methods"][0]["crc32c"]) == (pin.address, pin.crc32c)
    assert metrics["methods"][0]["config"]["unet"]["filters"] == [4, 6]
    for kind, records in (("masks", 204), ("images", 5)):
        data, manifest = metrics["data"][kind], made / kind / "manifest.json"
        assert data["crc32c"] == storage.crc32c(manifest.read_bytes()) and data["records"] == records
    assert {(m["interval"], m["masks"]) for m in metrics["masks_found"]} == {(i, 17) for i in INTERVALS} | {
        ("other", 0)
    }


def test_table_shows_the_cells(report):
    cells = read_metrics(report)["cells"]
    lines = [
        [part.strip() for part in line.strip("|").split("|")] for line in (report / "table.md").read_text().split("\n")
    ]
    for cell in cells:
        ((*_, pairs, psnr, _, _, ssim, l1, _),) = (
            line for line in lines if line[:3] == [cell["interval"], cell["border"], cell["method"]]
        )
        found = cell["metrics"]
        assert int(pairs) == cell["pairs"]
        for text, name, factor, digits in ((psnr, "psnr", 1, 2), (ssim, "ssim_holes", 1, 3), (l1, "l1", 100, 2)):
            assert text == f"{factor * found[name]['mean']:.{digits}f} ± {factor * found[name]['error']:.{digits}f}"


def test_the_page_has_three_pictures_of_each_interval_and_every_cell(report):
    page = (report / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6 * 3 * 7 and page.count('class="card"') == 18
    ranked = {(r["bucket"], r["pair"]): r["psnr_holes"] for r in read_rows(report) if r["method"] == "first"}
    best = [max((v, p) for (b, p), v in ranked.items() if b == bucket)[1] for bucket in range(6)]
    worst = [min((v, p) for (b, p), v in ranked.items() if b == bucket)[1] for bucket in range(6)]
    shown = re.findall(r"<b>(\w+)</b> \d+ % holes · pair (\d+)<", page)
    assert [int(pair) for rank, pair in shown if rank == "best"] == best
    assert [int(pair) for rank, pair in shown if rank == "worst"] == worst
    for cell in read_metrics(report)["cells"]:
        assert f"{cell['metrics']['psnr']['mean']:.2f}" in page


def test_an_export_scores_as_its_checkpoint(made, tmp_path, capsys):
    checkpoint = checkpoints.load_checkpoint(checkpoints.find(f"{made}/run", 2), ("model",))
    export_formats.export_model(f"{made}/run", CONFIG, checkpoint, {}, folder=f"{tmp_path}/export")
    both = ["--run", f"{made}/run", "--run", f"{tmp_path}/export/model.keras"]
    assert evaluate(made, tmp_path / "out", *both, "--per-cell", "2", "--baseline", "") == 0
    metrics = read_metrics(tmp_path / "out")
    assert [m["name"] for m in metrics["methods"]] == ["run", "model"] and metrics["counts"]["pairs"] == 24
    assert {d["metrics"][name]["mean"] for d in metrics["differences"] for name in METRICS} == {0.0}
    shown = capsys.readouterr().out
    assert f"24 pairs of 204 masks; {tmp_path}/out/report.html\n" in shown and "| all | all | model | 24 |" in shown


def test_images_may_be_a_file_or_a_folder_of_files(made):
    for images, count in (("tree/val/n0/3.JPEG", 1), ("tree/val", 5), ("tree", 6), ("tree/val/**", 5)):
        found = Data.find(f"{made}/{images}", "val", f"{made}/masks", "val", seed=0)
        assert (found.num_images, found.images, len(found.image_files)) == (count, None, count)
    assert Data.find(f"{made}/images", "val", f"{made}/masks", "val", seed=0).image_files == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per-cell", "0"], "--per-cell: expected 1 or more, or all. Received 0."),
        (["--per-cell", "few"], "--per-cell: expected 1 or more, or all. Received few."),
        (["--batch-size", "0"], "--batch-size: expected 1 or more. Received 0."),
        (
            ["--baseline", "telea,nearest"],
            "--baseline: expected names of ['interpolation', 'mean', 'ns', 'patchmatch', 'telea']. Rec",
        ),
        (["--split", "test"], "split: expected one of ['train', 'val']. Received 'test'."),
        (["--mask-split", "train"], "split: expected one of ['val']. Received 'train'."),
        (["--images", "{0}/masks"], "expected a dataset of image records. Received mask records."),
        (["--images", "{0}/run"], "{0}/run is the folder of a training run. Expected the folder of a dataset of image"),
        (["--masks", "{0}/tree"], "{0}/tree is a folder of image files. Expected the folder of a dataset of mask rec"),
        (["--masks", "{0}/tree/val", "--images", "{0}/tree/train"], "--hole: say whether holes in the mask files are"),
        (["--pairs", "{0}/pairs.csv"], "expected --images and --masks, or --pairs"),
        (["--hole", "black"], "--hole: expected with mask files. Received a dataset of mask records."),
        (["--threshold", "0.5"], "--threshold: expected with mask files. Received a dataset of mask records."),
        (
            ["--images", "{0}/tree", "--output", "{0}/tree/new"],
            "--output: expected a folder that is not in --images {0}/t",
        ),
        (["--images", "{0}/tree/*.gif"], "{0}/tree/*.gif: no file matches."),
        (["--masks", "{0}/none"], "mask dataset {0}/none does not exist"),
        (["--run", "{0}/none"], "run {0}/none does not exist"),
        (["--run", "{0}/none/model.keras"], "{0}/none/model.keras does not exist"),
        (["--run", "{0}/run@7"], "7"),
        (["--run", "{0}/run"], "--run: expected different names (NAME=ADDRESS). Received 'run' twice."),
        (["--run", "mean={0}/run"], "--run: expected another name than a baseline's (NAME=ADDRESS). Received 'mean'."),
    ],
)
def test_wrong_values_are_refused_at_launch(options, message, made, tmp_path):
    with pytest.raises(UserError, match=re.escape(message.format(made))):
        evaluate(made, tmp_path / "out", "--run", f"{made}/run", *(option.format(made) for option in options))
    assert not (tmp_path / "out").exists()


def test_a_baseline_says_which_package_it_needs(monkeypatch, made, tmp_path):
    monkeypatch.setitem(baselines.EXTRAS, "patchmatch", "no_such_module")
    message = "--baseline: patchmatch is an optional package: pip install 'pconv[patchmatch]'."
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate(made, tmp_path / "out", "--run", f"{made}/run", "--baseline", "telea,patchmatch")
