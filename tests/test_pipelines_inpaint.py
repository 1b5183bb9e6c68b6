"""The inpainting job on files of many sizes and states, with a small network of random weights."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from pipelines.inpaint import main
from trainer import checkpoints, presets, storage
from trainer.command import SOME_REJECTED
from trainer.config import PhaseConfig, TrainConfig, UNetConfig
from trainer.errors import UserError
from trainer.inference import predict
from trainer.model.unet import build_unet

CONFIG = TrainConfig(unet=UNetConfig(image_size=32, filters=(4, 6, 8), kernels=(5, 3, 3)), initial=PhaseConfig(steps=1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Address of a run's folder with one checkpoint."""
    folder = str(tmp_path_factory.mktemp("run"))
    unet, rng = build_unet(CONFIG.unet), np.random.default_rng(0)
    arrays = checkpoints.read_variables(unet.variables)
    for name, array in arrays.items():
        if not name.endswith("kernel"):  # statistics and biases that are not those of a new network
            arrays[name] = rng.uniform(0.2, 1.2, array.shape).astype(array.dtype)
    state = {"step": 1, "phase": "initial", "examples": 6}
    checkpoints.save_checkpoint(folder, {"model": arrays, "optimizer": {}}, state, keep=1)
    storage.create(f"{folder}/config.json", presets.to_json(CONFIG))
    return folder


@pytest.fixture(scope="module")
def model(run):
    return predict.load_model(predict.find_model(run))


def draw(name: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and mask of a name: uint8 [height, width, 3] noise, and a block and a strip of holes."""
    rng = np.random.default_rng(list(name.encode()))
    mask = np.ones((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 : width - 2] = mask[-2:, : width // 2] = 0
    return rng.integers(0, 256, (height, width, 3), np.uint8), mask


def to_bytes(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def from_bytes(data: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    return np.asarray(picture)


REPORTS = ("items.jsonl", "manifest.json", "rejects.jsonl")
SIZES = {"a": (24, 32), "sub/b": (37, 53), "sub/deep/a": (16, 41), "tiny": (1, 3), "same-size": (24, 32)}
GOOD = {name: draw(name, *size) for name, size in SIZES.items()}


def write(folder: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        storage.create(f"{folder}/{name}", data)


def write_good(folder: str) -> None:
    """Images of several kinds and masks of several kinds; holes are black."""
    write(f"{folder}/in", {f"{name}.png": to_bytes(image) for name, (image, _) in GOOD.items()})
    write(f"{folder}/in", {"a.bmp": to_bytes(255 - GOOD["a"][0], "BMP")})  # a second image for the mask of a.png
    masks = {name: mask * 255 for name, (_, mask) in GOOD.items()}
    write(f"{folder}/holes", {f"{name}.png": to_bytes(mask) for name, mask in masks.items() if name != "sub/b"})
    write(f"{folder}/holes", {"sub/b.jpg": to_bytes(masks["sub/b"], "JPEG", quality=80)})  # not of 0 and 255 alone


def expected_outputs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Image and mask by the name of the output."""
    pairs = {f"{name}.png": pair for name, pair in GOOD.items() if name != "a"}
    return pairs | {"a.png.png": GOOD["a"], "a.bmp.png": (255 - GOOD["a"][0], GOOD["a"][1])}


def inpaint(folder: str, run: str, *options: str, images="in", masks="holes", hole="black", output="out") -> int:
    where = ["--images", f"{folder}/{images}", "--masks", f"{folder}/{masks}", "--output", f"{folder}/{output}"]
    return main([*where, "--run", run, "--hole", hole, *options])


def outputs(folder: str) -> dict[str, bytes]:
    return {storage.relative(a, folder): storage.read(a) for a in storage.find(folder)}


@pytest.fixture(scope="module")
def done(run, tmp_path_factory):
    """Folder in which good files were inpainted one at a time."""
    folder = str(tmp_path_factory.mktemp("good"))
    write_good(folder)
    assert inpaint(folder, run, "--batch-size", "1") == 0
    return folder


def test_valid_pixels_are_kept_bit_for_bit_and_holes_are_the_networks(done, model):
    found = outputs(f"{done}/out")
    assert sorted(found) == sorted([*expected_outputs(), *REPORTS])
    for name, (image, mask) in expected_outputs().items():
        picture = from_bytes(found[name])
        assert picture.shape == image.shape
        np.testing.assert_array_equal(picture[mask == 1], image[mask == 1])
        np.testing.assert_array_equal(picture, predict.inpaint(image, mask, model))
        if min(mask.shape) > 1:
            assert np.any(picture[mask == 0] != image[mask == 0]) and len(np.unique(picture[mask == 0])) > 5


def test_what_lies_under_the_holes_does_not_matter(done, run, tmp_path):
    for name, (image, mask) in GOOD.items():
        storage.create(f"{tmp_path}/in/{name}.png", to_bytes(np.where(mask[..., None] == 1, image, np.uint8(9))))
    assert inpaint(str(tmp_path), run, "--batch-size", "1", "--masks", f"{done}/holes") == 0
    for name in GOOD:
        there = f"{done}/out/{name}.png" if name != "a" else f"{done}/out/a.png.png"
        assert storage.read(f"{tmp_path}/out/{name}.png") == storage.read(there)


def counts(folder: str) -> dict[str, int]:
    return json.loads(storage.read(f"{folder}/manifest.json"))["counts"]


def items(folder: str) -> list[dict]:
    return [json.loads(line) for line in storage.read(f"{folder}/items.jsonl").splitlines()]


def test_outcome_of_a_run_without_rejects(done, run):
    manifest = json.loads(storage.read(f"{done}/out/manifest.json"))
    assert manifest["counts"] == {"inputs": 6, "outputs": 6, "rejects": 0, "finished_before": 0, "without_holes": 0}
    expected = {"images": f"{done}/in", "masks": f"{done}/holes", "hole": "black", "format": "png", "match": "stem"}
    assert expected.items() <= manifest["parameters"].items()
    pin = predict.find_model(run).checkpoint
    assert manifest["model"] == {"address": pin.address, "crc32c": pin.crc32c}
    assert storage.read(f"{done}/out/rejects.jsonl") == b""
    lines = {item["output"]: item for item in items(f"{done}/out")}
    assert list(lines) == sorted(lines, key=lambda name: lines[name]["image"]) and len(lines) == 6
    for name, (image, mask) in expected_outputs().items():
        data = storage.read(f"{done}/out/{name}")
        measured = {"hole_ratio": np.mean(mask == 0), "height": image.shape[0], "width": image.shape[1], "windows": 1}
        written = {"status": "done", "bytes": len(data), "crc32c": storage.crc32c(data)}
        assert (measured | written).items() <= lines[name].items()
        assert lines[name]["image"].startswith(f"{done}/in/") and lines[name]["mask"].startswith(f"{done}/holes/")
        assert lines[name]["seconds"] > 0


def test_white_holes_and_batches(done, run, tmp_path):
    """The other polarity and other batches give the same pictures."""
    for name, data in outputs(f"{done}/holes").items():
        mask = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        storage.create(f"{tmp_path}/holes/{name.partition('.')[0]}.bmp", to_bytes(255 - mask, "BMP"))
    arguments = ["--images", f"{done}/in/**", "--masks", f"{tmp_path}/holes/**/*.bmp", "--hole", "white"]
    assert main([*arguments, "--run", run, "--output", f"{tmp_path}/out", "--batch-size", "4"]) == 0
    found = outputs(f"{tmp_path}/out")
    assert found.keys() == outputs(f"{done}/out").keys()
    for name in expected_outputs():
        assert found[name] == storage.read(f"{done}/out/{name}")


def test_from_bucket_to_bucket(bucket, done, run):
    write_good(bucket)
    for name, data in outputs(run).items():
        storage.create(f"{bucket}/runs/a/{name}", data)
    assert inpaint(bucket, f"{bucket}/runs/a", "--batch-size", "1", images="in/**", masks="holes/**") == 0
    found = outputs(f"{bucket}/out")
    assert {n: d for n, d in found.items() if n.endswith(".png")} == {
        name: data for name, data in outputs(f"{done}/out").items() if name.endswith(".png")
    }
    assert counts(f"{bucket}/out") == {
        "inputs": 6,
        "outputs": 6,
        "rejects": 0,
        "finished_before": 0,
        "without_holes": 0,
    }


def test_every_input_is_an_output_or_a_reject_with_a_reason(run, tmp_path, capsys):
    image, mask = GOOD["a"]
    png, hole = to_bytes(image), to_bytes(mask * 255)
    names = ("good.png", "alone.png", "two.png", "size.png", "mask-text.png", "mask-half.png")
    images = {"half.png": png[: len(png) // 2], "text.png": b"no image", "empty.jpg": b""}
    write(f"{tmp_path}/in", images | dict.fromkeys(names, png))
    names = ("good.png", "two.png", "two.bmp", "half.png", "text.png", "empty.png", "extra.png")
    masks = {"size.png": to_bytes(mask[:, :-1] * 255), "mask-text.gif": b"no image", "mask-half.png": hole[:-40]}
    write(f"{tmp_path}/holes", masks | dict.fromkeys(names, hole))
    storage.create(f"{tmp_path}/out/manifest.json", b"of an earlier run")
    assert inpaint(str(tmp_path), run) == SOME_REJECTED == 3
    shown = capsys.readouterr()
    assert shown.out == f"1 image: 1 inpainted; {tmp_path}/out\n"
    assert shown.err.splitlines()[-1] == f"9 of 10 inputs rejected, see {tmp_path}/out/rejects.jsonl"
    found = outputs(f"{tmp_path}/out")
    assert sorted(found) == ["good.png", *REPORTS]
    assert counts(f"{tmp_path}/out") == {
        "inputs": 10,
        "outputs": 1,
        "rejects": 9,
        "finished_before": 0,
        "without_holes": 0,
    }
    assert {item["status"] for item in items(f"{tmp_path}/out")} == {"done", "rejected"}
    rejects = [json.loads(line) for line in found["rejects.jsonl"].splitlines()]
    expected = {
        "holes/extra.png": ("match", r"expected an image file named extra\.\*. Found none"),
        "in/alone.png": (
            "match",
            r"expected a mask file named alone\.\*, alone_mask\.\* or alone\.png\.\*\. Found none",
        ),
        "in/empty.jpg": ("decode", "ImageError: the file is empty"),
        "in/half.png": ("decode", "ImageError: .*truncated"),
        "in/mask-half.png": ("decode", r"ImageError: .*truncated.* \(.*/holes/mask-half.png\)"),
        "in/mask-text.png": ("decode", r"ImageError: the file is not an image \(.*/holes/mask-text.gif\)"),
        "in/size.png": ("match", "expected a mask of the image's size, 32 x 24 as viewed. Received 31 x 24"),
        "in/text.png": ("decode", "ImageError: the file is not an image"),
        "in/two.png": ("match", r"expected masks that are this image's alone: .* Found two\.\w+, two\.\w+"),
    }
    assert [reject["source"] for reject in rejects] == [f"{tmp_path}/{name}" for name in expected]
    for reject, (stage, reason) in zip(rejects, expected.values(), strict=True):
        assert reject["stage"] == stage and re.search(reason, reject["error"]), reject


MARK = 77  # first value of the image that the network below fails on


def test_an_image_that_the_network_cannot_compute_is_one_reject(run, tmp_path, monkeypatch):
    fill_batch = predict.fill_batch

    def fail_on_marked(images, masks, model):
        if any(image[0, 0, 0] == MARK for image in images):
            raise ValueError("out of\nmemory")
        return fill_batch(images, masks, model)

    monkeypatch.setattr(predict, "fill_batch", fail_on_marked)
    for number in range(4):
        image = np.full((16, 16, 3), MARK + number - 2, np.uint8)
        mask = np.eye(16, dtype=np.uint8) * 255
        write(str(tmp_path), {f"in/{number}.png": to_bytes(image), f"holes/{number}.png": to_bytes(mask)})
    assert inpaint(str(tmp_path), run, "--batch-size", "4") == SOME_REJECTED
    found = outputs(f"{tmp_path}/out")
    assert sorted(found) == ["0.png", "1.png", "3.png", *REPORTS]
    (reject,) = (json.loads(line) for line in found["rejects.jsonl"].splitlines())
    assert (reject["source"], reject["stage"]) == (f"{tmp_path}/in/2.png", "inpaint")
    assert reject["error"] == "ValueError: out of memory"


def test_an_output_that_cannot_be_written_is_a_reject(run, tmp_path):
    image, mask = GOOD["a"]
    for name in ("x", "y"):
        write(str(tmp_path), {f"in/{name}.png": to_bytes(image), f"holes/{name}.png": to_bytes(mask * 255)})
    (tmp_path / "out" / "x.png").mkdir(parents=True)
    assert inpaint(str(tmp_path), run) == SOME_REJECTED
    (reject,) = (json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert (reject["source"], reject["stage"]) == (f"{tmp_path}/in/x.png", "write")
    assert (tmp_path / "out" / "y.png").is_file()


def test_a_corrupt_checkpoint_is_named_and_leaves_no_manifest(done, run, tmp_path):
    storage.create(f"{tmp_path}/out/manifest.json", b"of an earlier run")
    for name, data in outputs(run).items():
        storage.create(f"{tmp_path}/{name}", data[:-1] + b"?" if name.endswith("model.npz") else data)
    with pytest.raises(UserError, match=r"^/.*/model.npz is corrupt: expected crc32c \S+ Received \S+$"):
        inpaint(done, str(tmp_path), "--output", f"{tmp_path}/out")
    assert outputs(f"{tmp_path}/out") == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hole", "gray"], "--hole: invalid choice: 'gray' (choose from "),
        (["--batch-size", "0"], "--batch-size: expected 1 or more. Received 0."),
        (["--images", "{0}/none"], "--images: no files at {0}/none"),
        (["--masks", "{0}/holes/*.tif"], "--masks: no files at {0}/holes/*.tif"),
        (["--run", "{0}/none"], "run {0}/none does not exist"),
        (["--run", "{0}/in"], "{0}/in has no config.json: it is not the folder of a training run"),
        (["--output", "{0}/in"], "--output: expected a folder without inputs. Received {0}/in, where {0}/in/"),
        (["--output", "{0}/holes"], "--output: expected a folder without inputs. Received {0}/holes, where"),
        (["--output", "{0}/in/new"], "--output: expected a folder in which {0}/in matches no files"),
        (["--output", "{0}/out/tiny.png/new"], "cannot write to {0}/out/tiny.png/new"),
        (["--format", "gif"], "--format: invalid choice: 'gif' (choose from "),
        (["--quality", "0"], "--quality: expected 1 to 100. Received 0."),
        (["--window", "9"], "--window: expected 64 to 8192. Received 9."),
        (["--device", "tpu"], "--device: invalid choice: 'tpu' (choose from "),
        (["--precision", "double"], "--precision: invalid choice: 'double' (choose from "),
        (["--match", "name"], "--match: invalid choice: 'name' (choose from "),
        (["--match", "csv"], "--match: csv goes with --pairs"),
        (["--pairs", "{0}/list.csv"], "argument --pairs: not allowed with argument --images"),
        (["--holes", "alpha"], "argument --holes: not allowed with argument --masks"),
        (["--model", "{0}"], "argument --model: not allowed with argument --run"),
        (["--checkpoint", "best"], "has no best checkpoint yet: none was validated"),
        (["--checkpoint", "7"], "has no checkpoint of step 7. Steps it has: 1."),
        (["--checkpoint", "newest"], "checkpoint: expected latest, best or the number of a step. Received 'newest'."),
    ],
)
def test_wrong_values_are_refused_at_launch(options, message, done, run):
    before = outputs(done)
    with pytest.raises(UserError) as caught:
        inpaint(done, run, *(option.format(done) for option in options), output="new")
    assert message.format(done) in str(caught.value)
    assert outputs(done) == before
