"""An evaluation of image files with their own mask files: every number again with NumPy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from masks.coverage import bucket_of
from networks import small_config, write_run
from picture_files import model_of, noise, save, save_mask
from pipelines.evaluate import main
from pipelines.evaluation.file_pairs import to_rgb
from trainer import storage
from trainer.errors import UserError
from trainer.inference import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(str(tmp_path_factory.mktemp("run")), small_config(32))


def hole(height: int, width: int, top: int, left: int) -> np.ndarray:
    mask = np.ones((height, width), np.uint8)
    mask[top : top + 12, left : left + 9] = 0
    return mask


PAIRS = {
    "a": (noise(40, 56, 3, 1), hole(40, 56, 20, 20)),
    "x/b": (noise(33, 48, 3, 2), hole(33, 48, 1, 30) & hole(33, 48, 20, 2)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("place"))
    for name, (image, _) in PAIRS.items():
        save(f"{folder}/in/{name}.png", image)
    save(f"{folder}/in/alone.png", noise(9, 9, 3))
    save(f"{folder}/in/small.png", noise(9, 9, 3))
    save_mask(f"{folder}/holes/a_mask.png", PAIRS["a"][1])
    save_mask(f"{folder}/holes/x/b_mask_1.png", hole(33, 48, 1, 30))
    save_mask(f"{folder}/holes/x/b_mask_2.png", hole(33, 48, 20, 2))
    save_mask(f"{folder}/holes/small.png", np.ones((9, 9), np.uint8))
    table = "image;mask\r\nin/a.png;holes/a_mask.png\r\nin/x/b.png;holes/x/b_mask_1.png\r\n"
    storage.create(f"{folder}/list.csv", (table + "in/x/b.png;holes/x/b_mask_2.png\r\n").encode("utf-16"))
    return folder


def read_rows(folder: str) -> list[dict]:
    return [json.loads(line) for line in storage.read(f"{folder}/pairs.jsonl").splitlines()]


def test_files_are_scored_at_their_own_size(place, run, capsys):
    arguments = ["--images", f"{place}/in", "--masks", f"{place}/holes", "--hole", "black", "--run", run]
    assert main([*arguments, "--output", f"{place}/out", "--baseline", "mean"]) == 3
    rows = read_rows(f"{place}/out")
    failures = {0: False, 1: True, 2: True, 3: False}  # a, alone, small, x/b
    expected = [(pair, method, failed) for pair, failed in failures.items() for method in ("network", "mean")]
    assert [(row["pair"], row["method"], "error" in row) for row in rows] == expected
    assert "expected a mask file named alone.*" in rows[2]["error"] and "expected a hole" in rows[4]["error"]
    model = model_of(run, "latest")
    for row, (name, (image, mask)) in zip(rows[::6], PAIRS.items(), strict=True):
        filled = predict.inpaint(image, mask, model)
        error = (filled.astype(float) - image) / 255
        assert row["image"] == f"{name}.png" and row["hole_ratio"] == np.mean(mask == 0)
        assert row["bucket"] == bucket_of(np.mean(mask == 0)) and row["border"] == int(name == "x/b")
        np.testing.assert_allclose(row["psnr_holes"], -10 * np.log10(np.mean(error[mask == 0] ** 2)), rtol=1e-6)
        np.testing.assert_allclose(row["l1"], np.mean(np.abs(error)), rtol=1e-6)
    found = json.loads(storage.read(f"{place}/out/metrics.json"))
    assert found["counts"] == {"masks": 4, "pairs": 4, "rows": 8, "failed": 4}
    pairs = {"images": f"{place}/in", "masks": f"{place}/holes"}
    assert found["data"] == {"pairs": pairs, "files": 4, "hole": "black", "threshold": None}
    assert "4 of 8 images failed" in capsys.readouterr().err
    assert storage.read(f"{place}/out/report.html").count(b"data:image/jpeg;base64,") == 8  # two pairs, four pictures


def test_a_list_and_a_single_pair_give_the_same_scores(place, run):
    options = ["--hole", "black", "--run", run, "--baseline", "mean"]
    assert main(["--pairs", f"{place}/list.csv", *options, "--output", f"{place}/listed"]) == 0
    one = ["--images", f"{place}/in/a.png", "--masks", f"{place}/holes/a_mask.png"]
    assert main([*one, *options, "--output", f"{place}/single"]) == 0
    listed, single = read_rows(f"{place}/listed"), read_rows(f"{place}/single")
    assert [row["image"] for row in listed] == ["a.png", "a.png", "x/b.png", "x/b.png"] and len(single) == 2
    assert listed[:2] == single
    assert json.loads(storage.read(f"{place}/listed/metrics.json"))["counts"]["failed"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--images {0}/in", "expected --images and --masks, or --pairs"),
        ("--images {0}/in --masks {0}/holes", "--hole: say whether holes in the mask files are black or white"),
        ("--images {0}/in --masks {0}/holes --hole black --per-cell 5", "--per-cell: expected with a dataset of masks"),
        ("--images {0}/in/x --masks {0}/in --hole black", "no image has a mask: .*expected"),
        ("--pairs {0}/in --hole black", "--pairs: {0}/in is a folder of image files. Expected a list"),
        ("--images {0}/in --masks {0}/holes --hole black --output {0}/holes/o", "not in --masks {0}/holes. Received"),
    ],
)
def test_what_does_not_go_together(options, message, place, run):
    arguments = [part.format(place) for part in options.split()]
    output = [] if "--output" in arguments else ["--output", f"{place}/never"]
    with pytest.raises(UserError, match=message.format(place)):
        main([*arguments, "--run", run, *output])
    assert not storage.find(f"{place}/never")


def test_masks_are_read_as_the_inpainting_job_reads_them(place, run):
    """Labels of which one is the hole, and a threshold, give the scores of the same mask in black and white."""
    image, valid = f"{place}/in/a.png", PAIRS["a"][1] == 1
    labels = np.where(valid, 0, 7).astype(np.uint8)
    labels[:2, :2] = 200
    save(f"{place}/more/labels.png", labels[..., None])
    save(f"{place}/more/gray.png", np.where(valid, 100, 10).astype(np.uint8)[..., None])
    found = []
    for name, options in (("labels", ["--hole-label", "7"]), ("gray", ["--hole", "black", "--threshold", "0.2"])):
        where = ["--images", image, "--masks", f"{place}/more/{name}.png", "--output", f"{place}/{name}"]
        assert main([*where, *options, "--run", run, "--baseline", "mean"]) == 0
        found.append(read_rows(f"{place}/{name}"))
    assert len(found[0]) == 2 and found[0] == found[1]
    assert all(row["hole_ratio"] == np.mean(~valid) for row in found[0])


def test_other_images_are_scored_as_rgb():
    gray = np.uint16([[[0], [257], [65535]]])
    np.testing.assert_array_equal(to_rgb(gray), [[[0, 0, 0], [1, 1, 1], [255, 255, 255]]])
    color = noise(3, 4, 4)
    np.testing.assert_array_equal(to_rgb(color), color[..., :3])
    np.testing.assert_array_equal(to_rgb(noise(3, 4, 2)), noise(3, 4, 2)[..., :1].repeat(3, 2))
