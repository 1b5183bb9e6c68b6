"""What the options of the inpainting job change: where holes come from, and formats."""

from __future__ import annotations

import json

import numpy as np
import pytest

from networks import small_config, write_run
from picture_files import block, counts, errors, load, model_of, noise, save, save_mask
from pipelines.inpaint import main
from pipelines.inpainting import loading
from trainer import storage
from trainer.errors import UserError
from trainer.images.pictures import Metadata, Picture, encode
from trainer.inference import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(str(tmp_path_factory.mktemp("run")), small_config(32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "one of the arguments --images --pairs is required"),
        ("--images in", "--images: also needs --masks or --holes"),
        ("--images in --holes alpha --hole black", "--hole: cannot be combined with --holes"),
        ("--images in --masks m --match csv", "--match: csv goes with --pairs"),
        ("--pairs list.csv --match stem", "--match: csv goes with --pairs"),
        ("--pairs list.csv --masks m", "--masks: cannot be combined with --pairs"),
        ("--pairs empty.csv --hole black", "--pairs: .*/empty.csv lists no images"),
        ("--images in --holes beta", "--images: no files at .*/in"),
    ],
)
def test_options_that_do_not_go_together_are_named(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("image,mask\n")
    with pytest.raises(UserError, match=message):
        main([*options.split(), "--run", "run", "--output", "out"])


def test_a_checkpoint_is_of_a_run(tmp_path):
    arguments = ["--images", "in", "--holes", "alpha", "--output", "out", "--checkpoint", "best"]
    with pytest.raises(UserError, match="one of the arguments --run --model is required"):
        main(arguments)
    with pytest.raises(UserError, match="--checkpoint: cannot be combined with --model"):
        main([*arguments, "--model", "exported"])


# Where holes come from


def test_transparent_pixels_are_holes_and_come_out_opaque(run, tmp_path):
    folder, mask = str(tmp_path), block(30, 40)
    for channels in (2, 4):
        pixels = noise(30, 40, channels, channels)
        pixels[..., -1] = np.maximum(pixels[..., -1], 1) * mask  # almost transparent is valid
        save(f"{folder}/in/{channels}.png", pixels)
    save(f"{folder}/in/opaque.png", noise(9, 9, 3))
    assert main(["--images", f"{folder}/in", "--holes", "alpha,1", "--run", run, "--output", f"{folder}/out"]) == 3
    assert errors(f"{folder}/out") == ["MaskError: expected an alpha channel, which tells the holes. Received none."]
    for channels in (2, 4):
        pixels, found = load(f"{folder}/in/{channels}.png"), load(f"{folder}/out/{channels}.png")
        np.testing.assert_array_equal(found[mask == 1], pixels[mask == 1])
        assert np.all(found[mask == 0][:, -1] == 255)
        expected = predict.inpaint(pixels, mask, model_of(run, "best"))
        np.testing.assert_array_equal(found[mask == 0][:, :-1], expected[mask == 0][:, :-1])


def test_pixels_of_a_color_are_holes(run, tmp_path):
    folder, mask = str(tmp_path), block(30, 40)
    pixels = noise(30, 40, 3) // 2
    pixels[mask == 0] = (255, 0, 255)
    pixels[0, 0] = (250, 5, 250)
    save(f"{folder}/in/a.png", pixels)
    where = ["--images", f"{folder}/in/*.png", "--run", run]
    assert main([*where, "--holes", "color=#ff00ff", "--output", f"{folder}/exact"]) == 0
    assert main([*where, "--holes", "color=#FF00FF,5", "--output", f"{folder}/near"]) == 0
    model = model_of(run, "best")
    np.testing.assert_array_equal(load(f"{folder}/exact/a.png"), predict.inpaint(pixels, mask, model))
    mask[0, 0] = 0
    np.testing.assert_array_equal(load(f"{folder}/near/a.png"), predict.inpaint(pixels, mask, model))


def test_colors_of_other_depths():
    pixels = np.zeros((1, 4, 3), np.uint16)
    pixels[0] = [[65535, 0, 32896], [65535, 0, 32896 + 257], [65534, 0, 32896], [65535, 257, 32896]]
    exact = loading.holes_in(Picture(pixels), loading.parse_holes("color=#ff0080"))
    np.testing.assert_array_equal(exact, [[0, 1, 1, 1]])
    near = loading.holes_in(Picture(pixels), loading.parse_holes("color=#ff0080,1"))
    np.testing.assert_array_equal(near, [[0, 0, 0, 0]])
    gray = loading.holes_in(Picture(np.uint8([[[255], [0], [128]]])), loading.parse_holes("color=#ffffff"))
    np.testing.assert_array_equal(gray, [[0, 1, 1]])


@pytest.mark.parametrize("text", ["", "beta", "color=#ff00f", "color=ff00ff", "color=#ff00ff,", "color=#ff00ff,256"])
def test_holes_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="--holes: expected alpha or color"):
        loading.parse_holes(text)


def test_lists_of_pairs(run, tmp_path):
    folder = str(tmp_path)
    image, mask = noise(30, 40, 3), block(30, 40)
    for name in ("x/a.png", "y/a.png", "y/b.png", "y/c.png"):
        save(f"{folder}/{name}", image)
    save_mask(f"{folder}/m/one.png", mask)
    lines = ["image,mask", "x/a.png,m/one.png", "y/a.png,m/one.png", "y/b.png,m/none.png", "y/c.png,"]
    lines += ["y/a.png,m/other.png"]  # another mask of the same image
    storage.create(f"{folder}/list.csv", "\n".join(lines).encode())
    arguments = ["--pairs", f"{folder}/list.csv", "--hole", "black", "--run", run, "--output", f"{folder}/out"]
    assert main(arguments) == 3
    assert counts(f"{folder}/out") == {
        "inputs": 4,
        "outputs": 1,
        "rejects": 3,
        "finished_before": 0,
        "without_holes": 0,
    }
    np.testing.assert_array_equal(load(f"{folder}/out/x/a.png"), predict.inpaint(image, mask, model_of(run, "best")))
    found = errors(f"{folder}/out")
    assert sum("m/other.png does not exist" in error for error in found) == 1
    assert sum("m/none.png does not exist" in error for error in found) == 1
    assert sum("expected a mask in the list" in error for error in found) == 1


def test_masks_of_another_size(run, tmp_path):
    folder = str(tmp_path)
    image, mask = noise(30, 40, 3), block(30, 40)
    save(f"{folder}/in/a.png", image)
    save_mask(f"{folder}/holes/a.png", mask.repeat(2, 0).repeat(3, 1))
    arguments = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--run", run, "--hole", "black"]
    assert main([*arguments, "--output", f"{folder}/no"]) == 3
    assert errors(f"{folder}/no") == [
        "MaskError: expected a mask of the image's size, 40 x 30 as viewed. Received 120 x 60."
    ]
    assert main([*arguments, "--output", f"{folder}/yes", "--resize-masks"]) == 0
    np.testing.assert_array_equal(load(f"{folder}/yes/a.png"), predict.inpaint(image, mask, model_of(run, "best")))


def test_resizing_takes_the_pixel_under_each_center():
    mask = np.uint8([[0, 1, 1, 0, 1]])
    np.testing.assert_array_equal(loading.fit_mask(mask, (2, 10), True), mask.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(loading.fit_mask(mask, (1, 1), True), [[1]])
    np.testing.assert_array_equal(loading.fit_mask(mask, (1, 3), True), [[0, 1, 1]])


def test_masks_of_viewed_images_fit_turned_ones(run, tmp_path):
    """The image is stored on its side; its mask is as a viewer shows it."""
    folder = str(tmp_path)
    image, mask = noise(30, 40, 3), block(30, 40)
    stored = np.ascontiguousarray(np.rot90(image, 1))
    storage.create(f"{folder}/in/a.png", encode(Picture(stored, Metadata(orientation=6))))
    save_mask(f"{folder}/holes/a.png", mask)
    arguments = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--run", run, "--hole", "black"]
    assert main([*arguments, "--output", f"{folder}/out"]) == 0
    expected = predict.inpaint(image, mask, model_of(run, "best"))
    np.testing.assert_array_equal(load(f"{folder}/out/a.png"), np.rot90(expected, 1))


def test_the_manifest_of_masks_may_name_the_color(run, tmp_path):
    folder = str(tmp_path)
    save(f"{folder}/in/a.png", noise(30, 40, 3))
    save_mask(f"{folder}/holes/a.png", 1 - block(30, 40))
    arguments = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--run", run, "--output", f"{folder}/out"]
    with pytest.raises(UserError, match="--hole: say whether holes in the mask files are black or white"):
        main(arguments)
    storage.create(f"{folder}/holes/manifest.json", b'{"hole": "white"}')
    with pytest.raises(UserError, match="--hole: the manifest.json of .* says 'white'. Received 'black'"):
        main([*arguments, "--hole", "black"])
    assert main(arguments) == 0
    (line,) = (json.loads(x) for x in storage.read(f"{folder}/out/items.jsonl").splitlines())
    assert line["hole_ratio"] == 7 * 12 / 1200
    storage.create(f"{folder}/list.csv", b"image,mask\nin/a.png,holes/a.png\n")
    assert main(["--pairs", f"{folder}/list.csv", "--run", run, "--output", f"{folder}/listed"]) == 0
    assert storage.read(f"{folder}/listed/a.png") == storage.read(f"{folder}/out/a.png")


# Formats


def test_formats(run, tmp_path):
    folder, mask = str(tmp_path), block(30, 40)
    for channels in (1, 3, 4):
        save(f"{folder}/in/{channels}.png", noise(30, 40, channels))
        save_mask(f"{folder}/holes/{channels}.png", mask)
    save(f"{folder}/in/16.png", noise(30, 40, 3, dtype=np.uint16))
    save_mask(f"{folder}/holes/16.png", mask)
    arguments = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--run", run, "--hole", "black"]
    assert main([*arguments, "--output", f"{folder}/webp", "--format", "webp"]) == 3
    assert main([*arguments, "--output", f"{folder}/jpeg", "--format", "JPG", "--quality", "98"]) == 3
    assert main([*arguments, "--output", f"{folder}/png"]) == 0
    assert errors(f"{folder}/webp") == [
        "ImageError: webp holds 8 bits per channel. Received 16: --format png holds both."
    ]
    assert errors(f"{folder}/jpeg") == [
        "ImageError: jpeg holds 8 bits per channel. Received 16: --format png holds both.",
        "ImageError: jpeg holds no transparency. Received an alpha channel: --format png or webp holds it.",
    ]
    for channels in (1, 3, 4):
        png = load(f"{folder}/png/{channels}.png")
        found = load(f"{folder}/webp/{channels}.webp")
        np.testing.assert_array_equal(found, png.repeat(3, 2) if channels == 1 else png)
        if channels < 4:
            jpeg = load(f"{folder}/jpeg/{channels}.jpg").astype(int)
            assert jpeg.shape == png.shape and 0 < np.abs(jpeg - png).mean() < 25


def test_files_without_holes_are_copied_if_they_are_of_the_format(run, tmp_path, capsys):
    folder, picture = str(tmp_path), Picture(noise(30, 40, 3))
    for kind, name in (("png", "a.png"), ("jpeg", "b.jpg")):
        storage.create(f"{folder}/in/{name}", encode(picture, kind))
        save_mask(f"{folder}/holes/{name[0]}.png", np.ones((30, 40), np.uint8))
    arguments = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--run", run, "--hole", "black"]
    assert main([*arguments, "--output", f"{folder}/png"]) == 0
    assert main([*arguments, "--output", f"{folder}/jpeg", "--format", "jpeg"]) == 0
    assert storage.read(f"{folder}/png/a.png") == storage.read(f"{folder}/in/a.png")
    assert storage.read(f"{folder}/jpeg/b.jpg") == storage.read(f"{folder}/in/b.jpg")
    np.testing.assert_array_equal(load(f"{folder}/png/b.png"), load(f"{folder}/in/b.jpg"))
    for line in storage.read(f"{folder}/png/items.jsonl").splitlines():
        assert json.loads(line)["windows"] == 0 and json.loads(line)["without_holes"] is True
    assert capsys.readouterr().out.splitlines()[-1] == f"2 images: 0 inpainted, 2 without holes; {folder}/jpeg"
    # One with a hole beside them, of which the others are told apart, in a second run too.
    save(f"{folder}/in/c.png", noise(30, 40, 3))
    save_mask(f"{folder}/holes/c.png", block(30, 40))
    assert main([*arguments, "--output", f"{folder}/png"]) == 0
    told = f"3 images: 1 inpainted, 2 without holes; 2 of them from an earlier run; {folder}/png"
    assert capsys.readouterr().out.splitlines()[-1] == told
    expected = {"inputs": 3, "outputs": 3, "rejects": 0, "finished_before": 2, "without_holes": 2}
    assert counts(f"{folder}/png") == expected
    lines = [json.loads(line) for line in storage.read(f"{folder}/png/items.jsonl").splitlines()]
    assert [line["without_holes"] for line in lines] == [True, True, False]
