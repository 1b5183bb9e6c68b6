"""The demo's own parts: the photographs it inpaints, their scores, the contact sheet and the table."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines import demo
from trainer.errors import UserError
from trainer.images import rgb

COLORS = [[(200, 10, 10), (10, 200, 10), (10, 10, 200)], [(200, 200, 10), (10, 200, 200), (200, 10, 200)]]
SHAPES = [(30, 60), (80, 40)]  # wide, tall


def draw(captions=("one", "two", "three"), columns=("first", "second", "third"), title="A title"):
    rows = []
    for (height, width), colors in zip(SHAPES, COLORS, strict=True):
        rows.append(([np.full((height, width, 3), color, np.uint8) for color in colors], captions))
    return np.asarray(demo.draw_sheet(title, columns, rows)).astype(int)


def box_of(sheet: np.ndarray, color) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of what has the color; it has to fill its box."""
    found = np.all(sheet == color, axis=2)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert found[box[0] : box[1], box[2] : box[3]].all()
    return box


def is_drawn(area: np.ndarray) -> bool:
    return bool(area.size and np.any(area != 255))


def test_images_stand_in_rows_and_columns_of_their_shape():
    sheet = draw()
    boxes = [[box_of(sheet, color) for color in row] for row in COLORS]
    for (height, width), row in zip(SHAPES, boxes, strict=True):
        assert len({(top, bottom) for top, bottom, _, _ in row}) == 1
        for top, bottom, left, right in row:
            assert right - left == 300 and bottom - top == 300 * height // width
    lefts = [[left for _, _, left, _ in row] for row in boxes]
    assert lefts[0] == lefts[1] == sorted(set(lefts[0]))
    assert all(right < left for (_, _, _, right), (_, _, left, _) in zip(boxes[0][:-1], boxes[0][1:], strict=True))
    assert boxes[0][0][1] < boxes[1][0][0] and boxes[1][2][1] < len(sheet) and boxes[0][2][3] < sheet.shape[1]


def test_title_headings_and_captions_are_drawn_by_their_images():
    sheet, bare = draw(), draw(("", "", ""), ("", "", ""), "")
    boxes = [[box_of(sheet, color) for color in row] for row in COLORS]
    first_row = boxes[0][0][0]
    assert is_drawn(sheet[:first_row]) and not is_drawn(bare[:first_row])
    for title, columns in (("", ("", "second", "")), ("A title", ("", "", ""))):
        top = draw(("", "", ""), columns, title)[:first_row]
        assert is_drawn(top) and is_drawn(top[:, 312:624]) == bool(columns[1]) and not is_drawn(top[:, 624:])
    for number in range(2):
        captions = ["", "", ""]
        captions[number] = "caption"
        sheet = draw(captions)
        for row in boxes:
            below = [sheet[bottom : bottom + 22, left:right] for _, bottom, left, right in row]
            assert [is_drawn(area) for area in below] == [i == number for i in range(3)]


@pytest.mark.parametrize("change", [{"captions": ("one", "two")}, {"columns": ("first", "second", "third", "fourth")}])
def test_a_column_too_many_is_an_error(change):
    with pytest.raises(ValueError):
        draw(**change)


def test_holes_are_shown_white():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    mask = np.array([[1, 0, 1, 1], [0, 1, 1, 1]], np.uint8)
    shown = demo.show_holes(image, mask)
    assert shown.dtype == np.uint8 and shown[0, 1].tolist() == shown[1, 0].tolist() == [255, 255, 255]
    assert np.array_equal(shown[mask == 1], image[mask == 1])


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Folder with images and holes of two photographs, and their names."""
    for name, size in (("b/wide", (90, 50)), ("a/tall", (40, 64))):
        path = tmp_path / "photos" / "val" / f"{name}.jpg"
        path.parent.mkdir(parents=True)
        Image.radial_gradient("L").resize(size).convert("RGB").save(path, quality=95)
    monkeypatch.setattr(demo, "PHOTOS", tmp_path / "photos")
    for folder in ("pictures", "holes", "inpainted", "inpainted-starter"):
        (tmp_path / folder).mkdir()
    return tmp_path, demo.write_images(tmp_path)


def test_photographs_are_scaled_and_get_holes(photos):
    folder, names = photos
    assert sorted(names) == ["tall.png", "wide.png"]
    sides = {"tall.png": (round(demo.SHORT_SIDE * 64 / 40), demo.SHORT_SIDE)}
    sides["wide.png"] = (demo.SHORT_SIDE, round(demo.SHORT_SIDE * 90 / 50))
    for name in names:
        image = np.asarray(Image.open(folder / "pictures" / name))
        mask = np.asarray(Image.open(folder / "holes" / name).convert("L"))
        assert image.shape == (*sides[name], 3) and mask.shape == sides[name]
        low, high = demo.HOLE_RATIO
        assert low < np.mean(mask == 0) <= high and set(np.unique(mask)) == {0, 255}
    first, second = ((folder / "holes" / name).read_bytes() for name in names)
    before = [(folder / "holes" / name).read_bytes() for name in names]
    assert first != second and demo.write_images(folder) == names
    assert before == [(folder / "holes" / name).read_bytes() for name in names]


def test_scores_are_psnr_inside_the_holes(photos):
    folder, names = photos
    targets, holes = {}, {}
    for name in names:
        targets[name] = np.asarray(Image.open(folder / "pictures" / name)).astype(int)
        holes[name] = np.asarray(Image.open(folder / "holes" / name).convert("L")) == 0
        network = np.where(holes[name][..., None], np.abs(targets[name] - 10), targets[name])
        (folder / "inpainted" / name).write_bytes(rgb.encode_png(network.astype(np.uint8)))
        starter = np.where(holes[name][..., None], np.abs(targets[name] - 20), targets[name])
        (folder / "inpainted-starter" / name).write_bytes(rgb.encode_png(starter.astype(np.uint8)))
    scores = demo.compare(folder, names)
    assert [score.name for score in scores] == names
    for score in scores:
        target, hole = targets[score.name], holes[score.name]
        network = np.abs(target - 10)
        mean = np.rint(target[~hole].mean(0))

        def psnr(image, target=target, hole=hole):
            return 10 * np.log10(255**2 / np.mean((image - target)[hole] ** 2))

        assert score.hole_ratio == pytest.approx(np.mean(hole))
        assert score.network == pytest.approx(psnr(network), abs=1e-6)
        assert score.starter == pytest.approx(psnr(np.abs(target - 20)), abs=1e-6)
        assert score.mean == pytest.approx(psnr(np.broadcast_to(mean, target.shape)), abs=1e-6)
        assert score.mean < score.telea < 99  # a gradient is what Telea's method is good at
    with Image.open(folder / "report.png") as sheet:
        assert sheet.format == "PNG" and sheet.mode == "RGB" and min(sheet.size) > 300


def test_the_table_has_a_line_for_each_photograph(capsys):
    demo.print_scores(
        [demo.Score("a.png", 0.254, 21.456, 22.5, 20.0, 14.3), demo.Score("b.png", 0.3, 9.0, 9.5, 8.125, 7.0)]
    )
    heading, *lines = capsys.readouterr().out.strip().splitlines()
    assert "PSNR inside the holes, dB" in heading
    assert [line.split() for line in lines] == [
        ["a.png", "25%", "21.46", "22.50", "20.00", "14.30"],
        ["b.png", "30%", "9.00", "9.50", "8.12", "7.00"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_stage_that_fails_ends_the_demo(capfd):
    demo.run_stage("compileall", "-q", "--help")
    with pytest.raises(UserError, match="compileall ended with exit code 2"):
        demo.run_stage("compileall", "--no-such-option", "with space")
    shown = capfd.readouterr()
    assert "$ python -m compileall --no-such-option 'with space'\n" in shown.out
    assert "Traceback" not in shown.err


# What an earlier demo left


EARLIER = [
    "masks/manifest.json",
    "masks/train-00000-of-00001.tfrecord",
    "masks/contact_sheet.png",
    "test-masks/val-00000-of-00001.tfrecord",
    "records/rejects/train.jsonl",
    "run/config.json",
    "run/data.json",
    "run/checkpoints/step-00000600-0123abcd/model.npz",
    "run/checkpoints/.latest.json.lock",
    "run/exports/step-00000600/saved_model/variables/variables.index",
    "run/logs/events.out.tfevents.1.0",
    "pictures/coffee.png",
    "holes/coffee.png",
    "inpainted/coffee.png",
    "inpainted/items.jsonl",
    "inpainted-starter/manifest.json",
    "inpainted/.items/job.json",
    "inpainted/.claims/000001-0123456789abcdef",
    "report/report.html",
    "report.png",
]


def leave(folder, names, data="left") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(data)


def files_in(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_an_earlier_demo_left_is_removed(tmp_path):
    demo.make_folders(tmp_path / "new")
    assert files_in(tmp_path / "new") == [demo.MARK]
    leave(tmp_path / "new", [*EARLIER, "notes.txt", "other/a.png"])
    demo.make_folders(tmp_path / "new")
    assert files_in(tmp_path / "new") == [demo.MARK, "notes.txt", "other/a.png", "report.png"]
    assert (tmp_path / "new" / "pictures").is_dir()


def test_a_demo_of_an_earlier_version_is_known_by_its_masks(tmp_path):
    leave(tmp_path, EARLIER)
    leave(tmp_path, ["masks/manifest.json"], '{"kind": "mask", "parameters": {"count": 6000, "height": 128}}')
    demo.make_folders(tmp_path)
    assert files_in(tmp_path) == [demo.MARK, "report.png"]


@pytest.mark.parametrize("name", ["pictures/holiday.jpg", "run/config.json", "report/report.html", "report.png"])
def test_folders_that_no_demo_made_are_refused(name, tmp_path):
    """A home folder may well have one of these names in it."""
    leave(tmp_path, [name])
    with pytest.raises(
        UserError,
        match=f"expected a folder of the demo's. Received {tmp_path}, which holds {name.partition(chr(47))[0]}",
    ):
        demo.main(["--output", str(tmp_path)])
    assert files_in(tmp_path) == [name]


@pytest.mark.parametrize(
    "name", ["pictures/holiday.png", "masks/mine.tfrecord", "run/notes.txt", "report/x/report.html"]
)
def test_files_that_were_put_beside_those_of_a_demo_are_refused(name, tmp_path):
    demo.make_folders(tmp_path)
    leave(tmp_path, [*EARLIER, name])
    with pytest.raises(UserError, match=f"--output: {tmp_path}/{name} is not of the demo: move it away, or choose"):
        demo.main(["--output", str(tmp_path)])
    assert files_in(tmp_path) == sorted([*EARLIER, name, demo.MARK])


def test_a_link_is_not_followed(tmp_path):
    demo.make_folders(tmp_path / "new")
    leave(tmp_path, ["theirs/a.png"])
    (tmp_path / "new" / "report").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="new/report is not of the demo"):
        demo.main(["--output", str(tmp_path / "new")])
    assert files_in(tmp_path / "theirs") == ["a.png"]
