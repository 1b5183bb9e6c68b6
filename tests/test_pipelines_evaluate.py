"""The evaluation job: every number again with NumPy, scikit-image and OpenCV, from the same pairs."""

from __future__ import annotations

import io
import json
import re

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from skimage.metrics import structural_similarity

from pipelines import build_imagenet, build_masks, evaluation
from pipelines.evaluate import main
from trainer import checkpoints, predict, presets, storage
from trainer.command import UserError
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.unet import build_unet

SIZE = 24
# Fourteen masks take turns through the six intervals; three images take turns with every six masks.
IMAGE_OF_PAIR = [0] * 6 + [1] * 6 + [2] * 2
NETWORK, TELEA, MEAN = "network", "telea", "mean"
METRICS = ("psnr", "psnr_holes", "ssim", "ssim_holes", "l1", "l1_holes")
CONFIG = TrainConfig(unet=UNetConfig(image_size=24, filters=(4, 6), kernels=(5, 3)), initial=PhaseConfig(steps=1))


def draw_photo(number: int, height: int, width: int) -> bytes:
    """JPEG of a gradient and a disc: something that neighbours say something about."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    disc = (np.hypot(y - 0.4, x - 0.3) < 0.2) * 0.4
    pixels = np.stack([x + disc, 0.7 * y + 0.1 * number, 0.3 + disc], -1) * 200
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with datasets of images (3, and 1 in train) and masks (14), and a run of a network of random weights."""
    folder = tmp_path_factory.mktemp("made")
    for number, (height, width) in enumerate([(24, 24), (24, 37), (48, 51)]):
        storage.create(f"{folder}/tree/val/n0/{number}.JPEG", draw_photo(number, height, width))
    storage.create(f"{folder}/tree/train/n0/other.JPEG", draw_photo(5, 30, 30))
    build_imagenet.main(["--input", f"{folder}/tree", "--output", f"{folder}/images", "--num-shards", "2"])
    options = ["--count", "14", "--size", str(SIZE), "--split", "val", "--num-shards", "3"]
    build_masks.main(["--output", f"{folder}/masks", *options])
    unet, rng = build_unet(CONFIG.unet), np.random.default_rng(0)
    arrays = checkpoints.read_variables(unet.variables)
    for name, array in arrays.items():
        if not name.endswith("kernel"):
            arrays[name] = rng.uniform(0.2, 1.2, array.shape).astype(array.dtype)
    state = {"step": 1, "phase": "initial", "examples": 6}
    checkpoints.save_checkpoint(f"{folder}/run", {"model": arrays, "optimizer": {}}, state, keep=1)
    storage.create(f"{folder}/run/config.json", presets.to_json(CONFIG))
    return folder


def evaluate(made, output, *options: str) -> int:
    data = ["--images", f"{made}/images", "--masks", f"{made}/masks", "--run", f"{made}/run"]
    return main([*data, "--output", str(output), "--batch-size", "1", *options])


@pytest.fixture(scope="module")
def report(made, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "out"
    assert evaluate(made, output) == 0
    return output


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


def centre_square(image: np.ndarray) -> np.ndarray:
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


@pytest.fixture(scope="module")
def expected(made) -> list[dict]:
    """Rows of all pairs and methods."""
    images = read_examples(made / "images", "val")
    masks = {int(e["mask/index"]): e for e in read_examples(made / "masks", "val")}
    model = predict.load_model(predict.find_model(f"{made}/run"))
    rows = []
    for pair, position in enumerate(IMAGE_OF_PAIR):
        target = centre_square(np.asarray(Image.open(io.BytesIO(images[position]["image/encoded"]))))
        mask = np.asarray(Image.open(io.BytesIO(masks[pair]["mask/encoded"]))).astype(np.uint8)
        colour = np.uint8(np.rint(target[mask == 1].mean(0)))
        mean = np.where(mask[..., None] == 1, target, colour)
        telea = cv2.inpaint(mean, 1 - mask, 3, cv2.INPAINT_TELEA)
        telea = np.where(mask[..., None] == 1, target, telea)
        filled = {NETWORK: predict.inpaint(target, mask, model), TELEA: telea, MEAN: mean}
        name = images[position]["image/filename"].decode()
        for method, picture in filled.items():
            row = {"pair": pair, "image": name, "method": method, "hole_ratio": np.float32(np.mean(mask == 0))}
            rows.append(row | {"bucket": pair % 6} | score(picture, target, mask))
    return rows


def test_every_pair_by_hand(report, expected):
    rows = [json.loads(line) for line in (report / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 42
    for row, want in zip(rows, expected, strict=True):
        for key in ("pair", "image", "method", "bucket"):
            assert row[key] == want[key]
        assert row["hole_ratio"] == pytest.approx(want["hole_ratio"], abs=1e-7)
        for name in METRICS:
            assert row[name] == pytest.approx(want[name], rel=1e-6, abs=1e-9), (row["pair"], row["method"], name)
    assert len({row["image"] for row in rows}) == 3


def test_every_mean_by_hand(report, expected, made):
    metrics = json.loads((report / "metrics.json").read_text())
    assert [(c["bucket"], c["method"]) for c in metrics["cells"]] == [
        (bucket, method) for bucket in range(6) for method in (NETWORK, TELEA, MEAN)
    ]
    for cell in metrics["cells"]:
        rows = [r for r in expected if (r["bucket"], r["method"]) == (cell["bucket"], cell["method"])]
        assert cell["pairs"] == len(rows) == (3 if cell["bucket"] < 2 else 2)
        for name in METRICS:
            assert cell[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-6, abs=1e-9)
    pin = predict.find_model(f"{made}/run").checkpoint
    assert metrics["model"] == {"address": pin.address, "crc32c": pin.crc32c}
    assert metrics["parameters"]["pairs"] == 14


def test_table_shows_the_means(report, capsys, made):
    lines = (report / "table.md").read_text().splitlines()
    cells = json.loads((report / "metrics.json").read_text())["cells"]
    assert len(lines) == 2 + 18
    bounds = ["(0.01, 0.1]", "(0.1, 0.2]", "(0.2, 0.3]", "(0.3, 0.4]", "(0.4, 0.5]", "(0.5, 0.6]"]
    for line, cell in zip(lines[2:], cells, strict=True):
        interval, method, pairs, *values = (part.strip() for part in line.strip("|").split("|"))
        assert (interval, method, int(pairs)) == (bounds[cell["bucket"]], cell["method"], cell["pairs"])
        percents = [cell[name] * (100 if "l1" in name else 1) for name in METRICS]
        np.testing.assert_allclose([float(value) for value in values], percents, atol=0.0051)


def test_a_second_run_gives_identical_files_over_those_of_another(made, report, tmp_path):
    names = ["metrics.json", "pairs.jsonl", "table.md"]
    assert sorted(path.name for path in report.iterdir()) == names
    for name in names:
        (tmp_path / name).write_text("of another run\n" * 9999)
    assert evaluate(made, tmp_path) == 0
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {n: (report / n).read_bytes() for n in names}


def test_fewer_pairs_and_one_baseline(made, report, tmp_path, capsys):
    assert evaluate(made, tmp_path, "--pairs", "8", "--baseline", "mean") == 0
    kept = [json.loads(x) for x in (report / "pairs.jsonl").read_text().splitlines()]
    rows = [json.loads(x) for x in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows == [row for row in kept if row["pair"] < 8 and row["method"] != TELEA]
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "table.md").read_text() + f"8 pairs, report in {tmp_path}\n"


@pytest.mark.parametrize(("num_images", "num_pairs"), [(3, 20), (1, 5), (7, 100), (50, 12)])
def test_image_pairs(num_images, num_pairs):
    found = {}
    for position in range(num_images):
        for pair, record in evaluation.image_pairs((position, b"record %d" % position), num_images, num_pairs):
            assert pair not in found
            found[pair] = record
    assert found == {n: b"record %d" % (n // 6 % num_images) for n in range(num_pairs)}


def test_every_image_meets_every_interval():
    for position in range(5):
        intervals = [pair % 6 for pair, _ in evaluation.image_pairs((position, b""), num_images=5, num_pairs=60)]
        assert sorted(intervals) == sorted([*range(6)] * 2)


def test_square_target_keeps_the_middle():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert np.all(evaluation.square_target(image, 16) == 200)
    assert np.all(evaluation.square_target(image.transpose(1, 0, 2), 5) == 200)


def test_means_do_not_depend_on_the_order_of_rows():
    values = [1e16, 1.0, -1e16, 3.0]  # added from left to right 3, the other way 0
    rows = [{"pair": i, "bucket": 2, "method": NETWORK, **dict.fromkeys(METRICS, v)} for i, v in enumerate(values)]
    rows += [{**row, "bucket": bucket} for row in rows for bucket in (5, 1)]
    cells = evaluation.summarize(rows)
    assert [cell["bucket"] for cell in cells] == [1, 2, 5] and {cell["l1"] for cell in cells} == {0.75}
    assert evaluation.summarize(rows[::-1]) == cells


def test_masks_outside_the_intervals_have_a_row_of_their_own():
    row = {"pair": 0, "method": NETWORK, **dict.fromkeys(METRICS, 0.5)}
    cells = evaluation.summarize([row | {"bucket": 0}, row | {"bucket": -1, "pair": 1}])
    assert [(cell["bucket"], cell["pairs"]) for cell in cells] == [(-1, 1), (0, 1)]
    assert evaluation.format_table(cells).splitlines()[2] == (
        "| other | network | 1 | 0.50 | 0.50 | 0.500 | 0.500 | 50.00 | 50.00 |"
    )


def test_a_corrupt_shard_is_named(made, tmp_path):
    for path in (made / "masks").iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:-1] + b"?" if "00001-of" in path.name else data)
    with pytest.raises(
        UserError, match=r"^/\S+/val-00001-of-00003.tfrecord is corrupt: expected crc32c \S+ Received \S+$"
    ):
        evaluate(made, tmp_path / "out", "--masks", str(tmp_path))
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "0"], "--pairs: expected 1 to 14, the number of masks. Received 0."),
        (["--pairs", "15"], "--pairs: expected 1 to 14, the number of masks. Received 15."),
        (["--batch-size", "0"], "--batch-size: expected 1 or more. Received 0."),
        (["--baseline", "telea,nearest"], "--baseline: expected names of ['mean', 'telea']. Received 'nearest'."),
        (["--split", "test"], "split: expected one of ['train', 'val']. Received 'test'."),
        (["--mask-split", "train"], "split: expected one of ['val']. Received 'train'."),
        (["--images", "{0}/masks"], "expected a dataset of image records. Received mask records."),
        (["--images", "{0}/tree"], "{0}/tree has no manifest.json: the job that writes this dataset did not finish"),
        (["--masks", "{0}/none"], "mask dataset {0}/none does not exist"),
        (["--run", "{0}/none"], "run {0}/none does not exist"),
    ],
)
def test_wrong_values_are_refused_at_launch(options, message, made, tmp_path):
    with pytest.raises(UserError, match=re.escape(message.format(made))):
        evaluate(made, tmp_path / "out", *(option.format(made) for option in options))
    assert not (tmp_path / "out").exists()
