"""The inpainting job on masks that are not black and white, soft edges, and holes that are grown."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

from networks import small_config, write_run
from picture_files import block, counts, errors, load, model_of, noise, save, save_mask
from pipelines.inpaint import main
from pipelines.inpainting import loading
from pipelines.inpainting.colors import HoleColor, find_color, find_ring
from trainer import storage
from trainer.errors import MaskError, UserError
from trainer.images.pictures import Picture
from trainer.inference import predict

MASK = block(30, 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(str(tmp_path_factory.mktemp("run")), small_config(32))


def to_file(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def items(folder: str) -> dict[str, dict]:
    lines = map(json.loads, storage.read(f"{folder}/items.jsonl").splitlines())
    return {line["image"].rpartition("/")[2].partition(".")[0]: line for line in lines}


def write(folder: str, masks: dict[str, bytes]) -> list[str]:
    """An image for each mask; the options that read them."""
    for name, data in masks.items():
        save(f"{folder}/in/{name}.png", noise(30, 40, 3))
        storage.create(f"{folder}/holes/{name}.png", data)
    return ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--output", f"{folder}/out"]


def test_a_mask_is_read_by_what_it_holds(run, tmp_path, capsys):
    """Files that said nothing, so that images were copied as if they had no hole; nor is a pixel guessed."""
    folder, hole = str(tmp_path), 1 - MASK
    read = {
        "labels": to_file(hole),
        "wide": to_file(hole.astype(np.uint16) * 255),
        "paint": to_file(np.dstack([hole * 255, hole * 0, hole * 0])),
        "alpha": to_file(np.dstack([hole * 0, hole * 255])),
        "plain": to_file(hole * 255),
    }
    three = (hole * 128).astype(np.uint8)
    three[20:28, 25:35] = 255
    refused = {"three": to_file(three)}
    arguments = write(folder, read | refused | {"none": to_file(hole * 0)})
    assert main([*arguments, "--hole", "white", "--run", run]) == 3
    expected = predict.inpaint(noise(30, 40, 3), MASK, model_of(run, "best"))
    for name in read:
        np.testing.assert_array_equal(load(f"{folder}/out/{name}.png"), expected)
    np.testing.assert_array_equal(load(f"{folder}/out/none.png"), noise(30, 40, 3))
    (error,) = errors(f"{folder}/out")
    assert error.startswith("MaskError: expected black and white. Received gray levels 0, 128 and 255")
    assert "--hole-label 128,255" in error and error.endswith(f"({folder}/holes/three.png)")
    assert capsys.readouterr().out == f"6 images: 5 inpainted, 1 without holes; {folder}/out\n"
    expected = {"inputs": 7, "outputs": 6, "rejects": 1, "finished_before": 0, "without_holes": 1}
    assert counts(f"{folder}/out") == expected
    told = {name: item["mask_read_as"] for name, item in items(f"{folder}/out").items() if name != "three"}
    assert told.pop("wide") == "two gray levels, 0 and 255" and told.pop("none") == "all black"
    assert told == {
        "labels": "two gray levels, 0 and 1",
        "paint": "two colors, #000000 and #ff0000",
        "alpha": "alpha",
        "plain": "black and white",
    }


def test_labels_of_holes_may_be_given(run, tmp_path):
    folder = str(tmp_path)
    labels = (1 - MASK) * np.uint8(15)
    labels[20:28, 25:35] = 255
    arguments = [*write(folder, {"a": to_file(labels)}), "--run", run]
    assert main([*arguments, "--hole-label", "15"]) == 0
    expected = predict.inpaint(noise(30, 40, 3), MASK, model_of(run, "best"))
    np.testing.assert_array_equal(load(f"{folder}/out/a.png"), expected)
    with pytest.raises(UserError, match='hole_label is "15,255" and was "15"'):
        main([*arguments, "--hole-label", "15,255"])
    with pytest.raises(
        UserError, match="--hole-label: expected labels, such as 1, 1,3-5 or #ff0000. Received 'person'"
    ):
        main([*arguments, "--hole-label", "person"])
    with pytest.raises(UserError, match="--hole-label: cannot be combined with --hole"):
        main([*arguments, "--hole-label", "15", "--hole", "white"])
    with pytest.raises(UserError, match="--threshold: .*expected more than 0 and at most 1. Received '2'"):
        main([*arguments, "--hole", "white", "--threshold", "2"])
    assert main([*arguments, "--hole", "white", "--threshold", "0.05", "--overwrite"]) == 0
    both = predict.inpaint(noise(30, 40, 3), (labels < 13).astype(np.uint8), model_of(run, "best"))
    np.testing.assert_array_equal(load(f"{folder}/out/a.png"), both)


def test_outputs_of_masks_that_were_read_otherwise_are_not_taken_for_finished(run, tmp_path):
    """As a job of an earlier version leaves its folder: what a mask said by brightness alone is finished there."""
    folder = str(tmp_path)
    arguments = [*write(folder, {"a": to_file(1 - MASK)}), "--hole", "white", "--run", run]
    assert main(arguments) == 0
    job = json.loads(storage.read(f"{folder}/out/.items/job.json"))
    assert {"grow", "hole_label", "threshold", "mask_reading"} <= job.keys()
    for name in ("grow", "hole_label", "threshold", "mask_reading"):
        del job[name]
    storage.overwrite(f"{folder}/out/.items/job.json", json.dumps(job).encode())
    with pytest.raises(UserError, match='mask_reading is "by content" and was null: --overwrite, or choose another'):
        main(arguments)


# Growing


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 60])
def test_growing_takes_all_pixels_within_a_radius(radius):
    mask = (np.random.default_rng(0).random((40, 50)) > 0.01).astype(np.uint8)
    rows, columns = np.nonzero(mask == 0)
    there = np.mgrid[:40, :50]
    squares = (there[0][..., None] - rows) ** 2 + (there[1][..., None] - columns) ** 2
    kept = mask.copy()
    grown = loading.grow_holes(mask, radius)
    np.testing.assert_array_equal(grown, (squares.min(axis=-1) > radius**2).astype(np.uint8))
    np.testing.assert_array_equal(mask, kept)
    assert grown.dtype == np.uint8
    np.testing.assert_array_equal(loading.grow_holes(np.ones((4, 5), np.uint8), radius), np.ones((4, 5)))


def test_a_pixel_grows_to_a_cross_and_a_disc():
    mask = np.ones((5, 7), np.uint8)
    mask[0, 3] = 0
    grown = loading.grow_holes(mask, 2)
    assert ["".join(map(str, row)) for row in grown] == ["1000001", "1100011", "1110111", "1111111", "1111111"]


def test_holes_of_every_kind_are_grown(run, tmp_path):
    folder, image = str(tmp_path), noise(30, 40, 3) // 2
    grown = loading.grow_holes(MASK, 3)
    assert np.count_nonzero(grown == 0) > 1.5 * np.count_nonzero(MASK == 0)
    painted = np.where(MASK[..., None] == 1, image, np.uint8([255, 0, 255]))
    half = np.where(MASK == 1, 200, 0).astype(np.uint8)  # what is grown over is seen through, too
    save(f"{folder}/in/a.png", image)
    save(f"{folder}/painted/a.png", painted)
    save(f"{folder}/erased/a.png", np.dstack([image, half]))
    save_mask(f"{folder}/holes/a.png", MASK)
    expected = predict.inpaint(image, grown, model_of(run, "best"))
    where = {
        "in": ["--masks", f"{folder}/holes", "--hole", "black"],
        "painted": ["--holes", "color=#ff00ff"],
        "erased": ["--holes", "alpha,1"],
    }
    for name, options in where.items():
        arguments = ["--images", f"{folder}/{name}", *options, "--run", run, "--output", f"{folder}/out-{name}"]
        assert main([*arguments, "--grow", "3"]) == 0
        found = load(f"{folder}/out-{name}/a.png")
        np.testing.assert_array_equal(found[..., :3], expected)
        if name == "erased":
            np.testing.assert_array_equal(found[..., 3], np.where(grown == 0, 255, 200))
        assert items(f"{folder}/out-{name}")["a"]["hole_ratio"] == np.mean(grown == 0)
        with pytest.raises(UserError, match="grow is null and was 3"):
            main(arguments)
    with pytest.raises(UserError, match="--grow: expected 0 to 1024. Received -1"):
        main([*arguments, "--grow", "-1"])


# Alpha


def erased(radius: float = 4.0) -> np.ndarray:
    """An image with a hole that a soft eraser has made: uint8 [60, 80, 4]."""
    alpha = Image.fromarray(np.pad(block(30, 40), 20, constant_values=1)[:60] * np.uint8(255))
    alpha = np.asarray(alpha.filter(ImageFilter.GaussianBlur(radius)).resize((80, 60)))
    return np.dstack([noise(60, 80, 3), alpha])


def test_nothing_is_seen_through_where_a_soft_eraser_was(run, tmp_path):
    folder, image = str(tmp_path), erased()
    ring = (image[..., 3] > 0) & (image[..., 3] < 255)
    assert 100 < np.count_nonzero(ring) < np.count_nonzero(image[..., 3] == 255)
    save(f"{folder}/in/a.png", image)
    arguments = ["--images", f"{folder}/in", "--run", run, "--output"]
    assert main([*arguments, f"{folder}/all", "--holes", "alpha"]) == 0
    mask = (image[..., 3] == 255).astype(np.uint8)
    found = load(f"{folder}/all/a.png")
    assert np.all(found[..., 3] == 255)
    np.testing.assert_array_equal(found[mask == 1], image[mask == 1])
    expected = predict.inpaint(image[..., :3], mask, model_of(run, "best"))
    np.testing.assert_array_equal(found[..., :3], expected)
    assert main([*arguments, f"{folder}/half", "--holes", "alpha,128"]) == 0
    found, mask = load(f"{folder}/half/a.png"), image[..., 3] >= 128
    np.testing.assert_array_equal(found[mask], image[mask])
    assert np.all(found[~mask][:, 3] == 255)


def test_an_image_without_an_opaque_pixel_says_so():
    pixels = np.full((4, 5, 2), 254, np.uint8)
    with pytest.raises(MaskError, match="Received none with an alpha of 255 or more: --holes alpha,N takes"):
        loading.holes_in(Picture(pixels), loading.parse_holes("alpha"))
    assert loading.holes_in(Picture(pixels), loading.parse_holes("alpha,254")).all()
    wide = np.uint16([[[0, 65535], [0, 65534], [0, 257 * 128], [0, 257 * 128 - 1], [0, 0]]])
    for text, valid in (("alpha", [1, 0, 0, 0, 0]), ("alpha,128", [1, 1, 1, 0, 0]), ("alpha,1", [1, 1, 1, 1, 0])):
        np.testing.assert_array_equal(loading.holes_in(Picture(wide), loading.parse_holes(text)), [valid])


@pytest.mark.parametrize("text", ["alpha,", "alpha,0", "alpha,256", "alpha,x"])
def test_thresholds_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="--holes: expected alpha or color"):
        loading.parse_holes(text)


# Colors that JPEG has changed


def painted(kind: str, **options) -> tuple[np.ndarray, np.ndarray]:
    """A gradient with a painted disc, as a format keeps it: uint8 [128, 160, 3], and bool of the disc."""
    rows, columns = np.mgrid[:128, :160]
    disc = (rows - 40) ** 2 + (columns - 100) ** 2 <= 20**2
    pixels = np.dstack([columns, rows, (rows + columns) // 2]).astype(np.uint8)
    pixels[disc] = (255, 0, 255)
    return np.asarray(Image.open(io.BytesIO(to_file(pixels, kind, **options)))), disc


@pytest.mark.parametrize("quality", [60, 75, 90, 95])
def test_a_ring_of_near_colors_is_told_with_the_tolerance_that_takes_it(quality):
    pixels, disc = painted("JPEG", quality=quality)
    color = HoleColor(rgb=(255, 0, 255))
    assert np.count_nonzero(find_color(pixels, color)) < 0.4 * np.count_nonzero(disc)
    ring = find_ring(pixels, color)
    better = HoleColor(rgb=color.rgb, tolerance=ring.tolerance)
    found = find_color(pixels, better)
    assert np.count_nonzero(found & disc) > 0.95 * np.count_nonzero(disc)
    assert np.count_nonzero(found & ~disc) < 0.01 * np.count_nonzero(disc)
    assert ring.pixels > 0.5 * np.count_nonzero(disc) and find_ring(pixels, better) is None
    deep = pixels.astype(np.uint16) * 257
    assert find_ring(deep, color) == ring


def test_no_ring_without_one():
    color = HoleColor(rgb=(255, 0, 255))
    assert find_ring(painted("PNG")[0], color) is None
    assert find_ring(noise(128, 160, 3), color) is None
    assert find_ring(np.full((9, 9, 1), 128, np.uint8), HoleColor(rgb=(255, 255, 255))) is None
    # A soft brush leaves a ring in any format.
    soft = cv2.GaussianBlur(painted("PNG")[0], (0, 0), 3)
    assert find_ring(soft, color).tolerance > 8


def test_the_job_warns_of_rings(run, tmp_path, capsys):
    folder = str(tmp_path)
    for name, kind in (("a.jpg", "JPEG"), ("b.jpg", "JPEG"), ("c.png", "PNG")):
        storage.create(
            f"{folder}/in/{name}", to_file(painted("PNG")[0], kind, **({"quality": 90} if kind == "JPEG" else {}))
        )
    arguments = ["--images", f"{folder}/in", "--run", run, "--output", f"{folder}/out", "--holes"]
    assert main([*arguments, "color=#ff00ff"]) == 0
    said = capsys.readouterr()
    assert said.out == f"3 images: 3 inpainted; {folder}/out\n"
    rings = {name: item.get("ring") for name, item in items(f"{folder}/out").items()}
    assert rings["c"] is None and rings["a"] == rings["b"] and rings["a"]["color"] == "#ff00ff"
    tolerance = rings["a"]["tolerance"]
    (warning,) = json.loads(storage.read(f"{folder}/out/manifest.json"))["warnings"]
    assert warning.startswith("2 images: pixels near #ff00ff surround the holes")
    assert f"--holes color=#ff00ff,{tolerance} takes most of them" in warning
    assert said.err.splitlines()[-1] == f"warning: {warning}"
    assert main([*arguments, f"color=#ff00ff,{tolerance}", "--overwrite"]) == 0
    assert "warning" not in capsys.readouterr().err
