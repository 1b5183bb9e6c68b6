"""How people name images and masks, and what the inpainting job makes of it: pixels in the holes are the network's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from networks import small_config, write_run
from picture_files import counts, errors, load, model_of, noise, save, save_mask
from pipelines.inpaint import main
from trainer import storage
from trainer.errors import UserError
from trainer.inference import predict

IMAGE = noise(30, 40, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(str(tmp_path_factory.mktemp("run")), small_config(32))


def hole(top: int, left: int) -> np.ndarray:
    mask = np.ones((30, 40), np.uint8)
    mask[top : top + 6, left : left + 8] = 0
    return mask


FIRST, SECOND, THIRD = hole(3, 4), hole(12, 20), hole(22, 5)


def inpaint(folder: str, run: str, options: str) -> int:
    where = ["--hole", "black", "--run", run, "--output", f"{folder}/out"]
    return main([*(part.format(folder) for part in options.split()), *where])


def require_filled(folder: str, name: str, mask: np.ndarray, run: str) -> None:
    """The output is the network's in the holes of ``mask``, and the image elsewhere."""
    np.testing.assert_array_equal(load(f"{folder}/out/{name}"), predict.inpaint(IMAGE, mask, model_of(run, "best")))


def told(folder: str) -> tuple[int, ...]:
    """The counts of inputs, outputs, rejects, and outputs that were finished before."""
    found = counts(f"{folder}/out")
    return tuple(found[name] for name in ("inputs", "outputs", "rejects", "finished_before"))


def lines(folder: str) -> list[dict]:
    return [json.loads(line) for line in storage.read(f"{folder}/out/items.jsonl").splitlines()]


def test_two_files_are_a_pair(run, tmp_path):
    folder = str(tmp_path)
    save(f"{folder}/photo.png", IMAGE)
    save(f"{folder}/other.png", IMAGE)
    save_mask(f"{folder}/scribble.png", FIRST)
    assert inpaint(folder, run, "--images {0}/photo.png --masks {0}/scribble.png") == 0
    require_filled(folder, "photo.png", FIRST, run)
    assert counts(f"{folder}/out")["inputs"] == 1


def test_one_mask_is_that_of_all_images(run, tmp_path):
    folder = str(tmp_path)
    for name in ("a.png", "x/b.png", "logo.png"):
        save(f"{folder}/in/{name}", IMAGE)
    save(f"{folder}/in/small.png", noise(9, 9, 3))
    save_mask(f"{folder}/in/mask of all.png", FIRST)
    options = ["--images", f"{folder}/in", "--masks", f"{folder}/in/mask of all.png", "--hole", "black"]
    assert main([*options, "--run", run, "--output", f"{folder}/out"]) == 3
    for name in ("a.png", "x/b.png", "logo.png"):
        require_filled(folder, name, FIRST, run)
    assert errors(f"{folder}/out") == [
        "MaskError: expected a mask of the image's size, 9 x 9 as viewed. Received 40 x 30."
    ]
    with pytest.raises(UserError, match="--match one: expected --masks to be one file. Received .*/in"):
        inpaint(folder, run, "--images {0}/in --masks {0}/in --match one")


def test_one_image_takes_its_mask_from_a_folder(run, tmp_path):
    folder = str(tmp_path)
    save(f"{folder}/in/a.png", IMAGE)
    for name, mask in (("a", FIRST), ("b", SECOND), ("c", THIRD)):
        save_mask(f"{folder}/holes/{name}.png", mask)
    assert inpaint(folder, run, "--images {0}/in/a.png --masks {0}/holes") == 0
    require_filled(folder, "a.png", FIRST, run)
    assert told(folder) == (1, 1, 0, 0)


def test_names_of_masks_and_several_masks(run, tmp_path):
    folder = str(tmp_path)
    for name in ("a", "b", "c", "d", "e", "image_1"):
        save(f"{folder}/in/x/{name}.png", IMAGE)
    masks = {"a_mask.png": FIRST, "b.png.png": FIRST, "mask_1.png": SECOND, "e.png": FIRST, "e_mask.png": SECOND}
    masks |= {"c_mask_1.png": FIRST, "c_mask_2.png": SECOND, "c_mask_3.png": THIRD, "d-mask.png": THIRD}
    for name, mask in masks.items():
        save_mask(f"{folder}/holes/x/{name}", mask)
    arguments = "--images {0}/in --masks {0}/holes"
    assert inpaint(folder, run, arguments) == 3
    expected = {"a": FIRST, "b": FIRST, "c": FIRST & SECOND & THIRD, "d": THIRD, "image_1": SECOND}
    for name, mask in expected.items():
        require_filled(folder, f"x/{name}.png", mask, run)
    (error,) = errors(f"{folder}/out")
    assert "this image's alone" in error and error.endswith("Found x/e.png, x/e_mask.png.")
    (joined,) = [line for line in lines(folder) if line["image"].endswith("/c.png")]
    assert joined["mask"] == f"{folder}/holes/x/c_mask_1.png"
    assert joined["more_masks"] == [f"{folder}/holes/x/c_mask_{n}.png" for n in (2, 3)]
    assert joined["hole_ratio"] == 3 * 6 * 8 / 1200
    assert all("more_masks" not in line for line in lines(folder) if line != joined)
    # Finished outputs are those of the same masks.
    assert inpaint(folder, run, arguments) == 3
    assert told(folder) == (6, 5, 1, 5)
    storage.delete(f"{folder}/holes/x/c_mask_3.png")
    assert inpaint(folder, run, arguments) == 3
    assert counts(f"{folder}/out")["rejects"] == 2


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        ("--images {0}/data --masks {0}/data", 2),
        ("--images {0}/data/*.png --masks {0}/data/*_mask*.png", 2),
        ("--images {0}/data/a.png --masks {0}/data", 1),
        ("--images {0}/data --masks {0}/data/** --match stem", 2),
    ],
)
def test_images_and_masks_in_one_folder(options, inputs, run, tmp_path):
    folder = str(tmp_path)
    for name, masks in (("a", (FIRST,)), ("b", (SECOND, THIRD))):
        save(f"{folder}/data/{name}.png", IMAGE)
        for number, mask in enumerate(masks):
            save_mask(f"{folder}/data/{name}_mask{number:03d}.png", mask)
    assert inpaint(folder, run, options) == 0
    assert told(folder) == (inputs, inputs, 0, 0)
    require_filled(folder, "a.png", FIRST, run)
    if inputs == 2:
        require_filled(folder, "b.png", SECOND & THIRD, run)


def test_a_folder_of_masks_in_the_folder_of_images(run, tmp_path):
    folder = str(tmp_path)
    save(f"{folder}/data/a.png", IMAGE)
    save_mask(f"{folder}/data/masks/a.png", FIRST)
    assert inpaint(folder, run, "--images {0}/data --masks {0}/data/masks") == 0
    require_filled(folder, "a.png", FIRST, run)
    assert counts(f"{folder}/out")["inputs"] == 1


def test_images_are_not_their_own_masks(run, tmp_path):
    folder = str(tmp_path)
    for name in ("a.png", "b.png", "b.webp"):
        save(f"{folder}/data/{name}", IMAGE, name.rpartition(".")[2])
    assert inpaint(folder, run, "--images {0}/data --masks {0}/data") == 3
    assert told(folder) == (3, 0, 3, 0)
    assert sum("Found none" in error for error in errors(f"{folder}/out")) == 1


def test_masks_of_a_list_are_joined(run, tmp_path):
    folder = str(tmp_path)
    save(f"{folder}/a.png", IMAGE)
    for name, mask in (("1", FIRST), ("2", SECOND), ("3", THIRD)):
        save_mask(f"{folder}/m/{name}.png", mask)
    table = "Image;Mask\r\na.png;m/1.png\r\n;;\r\na.png; m/3.png\r\n"
    storage.create(f"{folder}/list.csv", table.encode("utf-16"))
    assert inpaint(folder, run, "--pairs {0}/list.csv") == 0
    require_filled(folder, "a.png", FIRST & THIRD, run)


def test_joined_masks_fit_one_by_one(run, tmp_path):
    folder = str(tmp_path)
    save(f"{folder}/in/a.png", IMAGE)
    save_mask(f"{folder}/holes/a_mask_1.png", FIRST)
    save_mask(f"{folder}/holes/a_mask_2.png", SECOND.repeat(2, 0).repeat(2, 1))
    assert inpaint(folder, run, "--images {0}/in --masks {0}/holes") == 3
    (error,) = errors(f"{folder}/out")
    assert error.startswith("MaskError: expected a mask of the image's size, 40 x 30") and "a_mask_2.png" in error
    assert inpaint(folder, run, "--images {0}/in --masks {0}/holes --resize-masks --overwrite") == 0
    require_filled(folder, "a.png", FIRST & SECOND, run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--images {0}/photos.zip --masks {0}/holes",
            "--images: {0}/photos.zip is a ZIP archive. .* image files: unpack it",
        ),
        (
            "--images {0}/in --masks {0}/holes.tgz",
            "--masks: {0}/holes.tgz is a compressed tar. .* image files: unpack it",
        ),
        ("--images {0}/zips --holes alpha", "--images: {0}/zips is a folder of archives. .* unpack them"),
        ("--images {0}/list.csv --masks {0}/holes", "--images: {0}/list.csv is a file .csv. .*: --pairs takes lists"),
        (
            "--images {0}/set --masks {0}/holes",
            "--images: {0}/set is a dataset. .* image files: its records are no files",
        ),
        ("--images {0}/in --masks {0}/set", "--masks: {0}/set is a dataset. .* image files: its records are no files"),
        ("--images {0}/in --masks {0}/holes --output {0}/a.png", "--output: expected a folder. Received .*file .png"),
        ("--images {0}/in --masks {0}/holes --output {0}/list.csv", "--output: expected a folder. Received the file"),
        ("--pairs {0}/in", "--pairs: {0}/in is a folder of image files. Expected a list, .csv or .jsonl .--images and"),
        ("--pairs {0}/in/a.png", "--pairs: {0}/in/a.png is an image file. Expected a list"),
        ("--pairs {0}/*.csv", "--pairs: {0}/.*.csv lists no images"),
        ("--pairs {0}/none.csv", "--pairs: {0}/none.csv does not exist"),
        ("--images {0}/in/a.png --masks {0}/in/a.png", "--masks: expected another file than the image. Received"),
        ("--images {0}/in --masks {0}/holes --output {0}/in/out", "--output: expected a folder in which .* matches no"),
        ("--images {0}/in --masks {0}/holes --run {0}/in", "{0}/in has no config.json: .* but a folder of image files"),
        ("--images {0}/in --masks {0}/holes --run {run}/checkpoints", "is a folder in the training run .*: {run}.$"),
        (
            "--images {0}/in --masks {0}/holes --run {step}",
            "is a checkpoint of a .* the run: {run} .*--checkpoint STEP",
        ),
        (
            "--images {0}/in --masks {0}/holes --model {run}",
            "{run} is the folder of a training run. .*--run {run} takes",
        ),
    ],
)
def test_one_thing_where_another_is_expected(options, message, run, tmp_path):
    folder = str(tmp_path)
    save(f"{folder}/in/a.png", IMAGE)
    save_mask(f"{folder}/holes/a.png", FIRST)
    step = [address for address in storage.find(f"{run}/checkpoints") if address.endswith("/state.json")][0]
    names = {"run": run, "step": step.removesuffix("/state.json")}
    for name in ("photos.zip", "zips/1.zip"):
        storage.create(f"{folder}/{name}", b"PK\3\4")
    for name in ("list.csv", "set/manifest.json", "set/train-00000-of-00001.tfrecord"):
        storage.create(f"{folder}/{name}", b"image,mask\n")
    storage.create(f"{folder}/holes.tgz", b"\x1f\x8b\x08")
    arguments = [part.format(folder, **names) for part in options.split()]
    rest = {"--hole": "black", "--output": f"{folder}/out", "--run": run}
    if "--model" in arguments:
        del rest["--run"]
    if "--holes" in arguments:
        del rest["--hole"]
    arguments += [part for option, value in rest.items() if option not in arguments for part in (option, value)]
    with pytest.raises(UserError, match=message.format(folder, **names)) as caught:
        main(arguments)
    assert "\n" not in str(caught.value) and not storage.find(f"{folder}/out")
