"""Files of other kinds through the whole job: their pixels in the outputs, and what is said of them."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from networks import small_config, write_run
from picture_files import block, noise, save_mask
from pipelines.inpaint import main
from press_profile import PRESS, through_littlecms
from trainer import storage
from trainer.command import SOME_REJECTED

HEIGHT, WIDTH = 30, 40
HOLE = block(HEIGHT, WIDTH) == 0


def by_pillow(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def by_tifffile(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder of the outputs, what valid pixels are expected to be by name, exit code, what the job printed)."""
    folder = str(tmp_path_factory.mktemp("colors"))
    colors, wide = noise(HEIGHT, WIDTH, 3), noise(HEIGHT, WIDTH, 4, dtype=np.uint16)
    inks = noise(HEIGHT, WIDTH, 4)
    cmyk = io.BytesIO()
    Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()).save(cmyk, "TIFF", icc_profile=PRESS)
    frames = [Image.fromarray(noise(HEIGHT, WIDTH, 3, seed)) for seed in range(3)]
    pages = io.BytesIO()
    frames[0].save(pages, "TIFF", save_all=True, append_images=frames[1:])
    files = {
        "white-is-zero.tif": (by_tifffile(65_535 - wide[..., 0], photometric="miniswhite"), wide[..., 0]),
        "planes.tif": (
            by_tifffile(np.ascontiguousarray(np.moveaxis(wide[..., :3], 2, 0)), photometric="rgb", planarconfig=2),
            wide[..., :3],
        ),
        "extra.tif": (by_tifffile(wide, photometric="rgb", extrasamples=["unspecified"]), wide[..., :3]),
        "inks.tif": (cmyk.getvalue(), through_littlecms(inks)),
        "pages.tif": (pages.getvalue(), np.asarray(frames[0])),
        "jp2.jp2": (by_pillow(colors, "JPEG2000"), colors),
        "density.png": (by_pillow(colors, "PNG", dpi=(300, 300)), colors),
        "float.tif": (by_tifffile(wide[..., :3].astype(np.float32), photometric="rgb"), None),
        "jxl.jxl": (b"\xff\x0a" + bytes(50), None),
    }
    for name, (data, _) in files.items():
        storage.create(f"{folder}/in/{name}", data)
        save_mask(f"{folder}/masks/{name.split('.')[0]}.png", block(HEIGHT, WIDTH))
    run = write_run(str(tmp_path_factory.mktemp("run")), small_config(32))
    arguments = ["--images", f"{folder}/in", "--masks", f"{folder}/masks", "--hole", "black", "--run", run]
    code = main([*arguments, "--output", f"{folder}/out"])
    items = [json.loads(line) for line in storage.read(f"{folder}/out/items.jsonl").splitlines()]
    records = {item["image"].rsplit("/", 1)[1]: item for item in items}
    return f"{folder}/out", {name: pixels for name, (_, pixels) in files.items()}, code, records, arguments


def test_valid_pixels_are_those_of_the_input(done):
    out, expected, code, records, _ = done
    assert code == SOME_REJECTED
    assert sorted(name for name, item in records.items() if item["status"] == "rejected") == ["float.tif", "jxl.jxl"]
    for name, pixels in expected.items():
        if pixels is None:
            continue
        data = storage.read(f"{out}/{name.split('.')[0]}.png")
        if pixels.dtype == np.uint16 and pixels.ndim == 3:
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
        else:
            found = np.asarray(Image.open(io.BytesIO(data)))
        assert found.dtype == pixels.dtype and found.shape == pixels.shape, name
        np.testing.assert_array_equal(found[~HOLE], pixels[~HOLE], err_msg=name)
        assert (found[HOLE] != pixels[HOLE]).mean() > 0.5, name


def test_what_is_not_in_the_output_is_said(done):
    _, _, _, records, _ = done
    assert records["pages.tif"]["frames"] == 3
    assert records["extra.tif"]["notes"] == ["1 extra channel, not said to be alpha, left out"]
    assert not any("frames" in item for name, item in records.items() if name != "pages.tif")
    assert not any("notes" in item for name, item in records.items() if name != "extra.tif")
    assert "TIFF of 32-bit floating point" in records["float.tif"]["error"]
    assert "convert it to gray or RGB of 8 or 16 bits" in records["float.tif"]["error"]
    assert "JPEG XL is not read: convert it to PNG" in records["jxl.jxl"]["error"]


def test_the_last_line_tells_of_further_pages_also_when_all_is_finished(done, capsys):
    out, *_, arguments = done
    assert main([*arguments, "--output", out]) == SOME_REJECTED
    line = capsys.readouterr().out.splitlines()[-1]
    assert "7 images: 7 inpainted" in line and "; 1 with further pages or frames, which are not read" in line
    assert json.loads(storage.read(f"{out}/manifest.json"))["counts"]["several_frames"] == 1
    found = Image.open(io.BytesIO(storage.read(f"{out}/density.png")))
    assert found.info["dpi"] == pytest.approx((300, 300), abs=0.01)
