"""Which form of images an address holds, and where each one lies."""

from __future__ import annotations

import io
import os
import tarfile

import apache_beam as beam
import pytest

from pipelines.image_dataset import convert, ilsvrc
from pipelines.image_dataset.parts import Item, list_part, sample_items
from pipelines.image_dataset.sources import find_source
from trainer import storage
from trainer.errors import UserError
from trainer.storage.names import to_text


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """Address of an empty folder, local and in a bucket."""
    return str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("bucket") + "/place"


def make_tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write(place: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        storage.create(f"{place}/{name}", data)


def listed(source) -> dict[str, tuple[str, bytes]]:
    """Synset and bytes of every image by its key."""
    found = {}
    for item in (item for part in source.parts for item in list_part(part)):
        key = to_text(item.key)
        assert key not in found
        found[key] = (to_text(item.synset), storage.read_range(to_text(item.address), item.start, item.size))
    return found


def test_a_tree(place):
    files = {"train/n2/a.png": b"1", "train/n1/b/c.png": b"22", "train/x.png": b"333", "val/n3/a.png": b"4444"}
    write(place, files | {"other/n4/a.png": b"", "train/.cache/a.png": b"", "readme": b""})
    source = find_source(place)
    assert listed(source) == {k: (k.split("/")[1] if "/n" in k else "", data) for k, data in files.items()}
    assert source.synsets == ("n1", "n2", "n3")
    assert sorted((part.split, part.synset, part.bytes) for part in source.parts) == [
        ("train", "", 3),
        ("train", "n1", 2),
        ("train", "n2", 1),
        ("val", "n3", 4),
    ]
    assert set(listed(find_source(place, ("val",)))) == {"val/n3/a.png"}


def test_folders_whose_names_look_like_patterns(place):
    files = {"train/n[1]/a.png": b"1", "train/n1/a.png": b"2", "train/n*/a.png": b"3"}
    write(place, files)
    assert {key: data for key, (_, data) in listed(find_source(place)).items()} == files


def test_tars_beside_a_tree(place):
    classes = {"n2.tar": make_tar({"a.png": b"1", "./b.png": b"22"}), "n1.tar": make_tar({"a.png": b"333"})}
    write(place, {"ILSVRC2012_img_train.tar": make_tar(classes), "val/n3/a.png": b"4444"})
    source = find_source(place)
    assert listed(source) == {
        "train/n2/a.png": ("n2", b"1"),
        "train/n2/b.png": ("n2", b"22"),
        "train/n1/a.png": ("n1", b"333"),
        "val/n3/a.png": ("n3", b"4444"),
    }
    assert source.synsets == find_source(place, ("val",)).synsets == ("n1", "n2", "n3")


def test_any_images(place):
    files = {"a.png": b"1", "deep/b.jpg": b"22", "deep/er/c.jpg": b"333", "deep/.d.jpg": b""}
    write(place, files)
    expected = {f"train/{name}": ("", data) for name, data in files.items() if "/." not in name}
    assert listed(find_source(place)) == expected and find_source(place).synsets == ()
    found = listed(find_source(place + "/deep/**/*.jpg", ("celeb-a",)))
    assert found == {"celeb-a/b.jpg": ("", b"22"), "celeb-a/er/c.jpg": ("", b"333")}
    assert listed(find_source(place + "/a.png")) == {"train/a.png": ("", b"1")}
    with pytest.raises(UserError, match="--split: expected one name for images without splits. Received 'a,b'."):
        find_source(place, ("a", "b"))


def test_what_lies_among_the_class_tars_is_a_reject(tmp_path):
    write(str(tmp_path), {"images_train.tar": make_tar({"n1.tar": make_tar({"a.png": b"1"}), "LICENSE": b"text"})})
    source = find_source(f"{tmp_path}/images_train.tar")
    (line,) = source.rejects
    assert (line.member, line.stage, line.split) == ("LICENSE", "index", "train") and list(listed(source)) == [
        "train/n1/a.png"
    ]


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.png").write_bytes(b"1")
    (part,) = find_source(str(tmp_path)).parts
    (item,) = list_part(part)
    assert item.key == b"train/caf\xe9/caf\xe9.png" and item.address == os.fsencode(tmp_path) + b"/caf\xe9/caf\xe9.png"


def test_a_sample_is_spread_over_the_parts(tmp_path):
    write(str(tmp_path), {f"train/n{c:02d}/{i}.png": b"x" * (i + 1) for c in range(40) for i in range(5)})
    items = sample_items(list(find_source(str(tmp_path)).parts), 32)
    assert len(items) == 32 and len({item.synset for item in items}) == 16
    assert {b"n00", b"n37"} <= {item.synset for item in items}
    again = sample_items(list(find_source(str(tmp_path)).parts), 32)
    assert [item.key for item in items] == [item.key for item in again]


def test_between_workers_items_are_plain_tuples(tmp_path):
    """Which Beam's coders write field by field; they would pickle the NamedTuple."""
    write(str(tmp_path), {"train/n1/a.png": b"123"})
    (part,) = find_source(str(tmp_path)).parts
    (item,), (row,) = list_part(part), convert.list_rows(part)
    assert type(row) is tuple and Item(*row) == item
    coder = beam.coders.registry.get_coder(beam.typehints.typehints.normalize(convert.Row))
    data = coder.encode(row)
    assert coder.is_deterministic() and coder.decode(data) == row
    assert len(data) <= sum(len(value) for value in row if not isinstance(value, int)) + 2 * len(row)


TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({TRUTH: b"1\n2\n"}, "expected .* and meta.mat .or map_clsloc.txt.. Received .*ground_truth.txt"),
        ({"map_clsloc.txt": b"n00000001 1 a\n"}, "expected ILSVRC2012_validation_ground_truth.txt"),
        (
            {TRUTH: b"1\n2\n", "map_clsloc.txt": b"n00000001 1 a\n"},
            "no synset for id 2 of the ground truth",
        ),
        ({TRUTH: b"1\n", "meta.mat": b"MATLAB 5.0 MAT-file"}, "is not a development kit of ILSVRC: "),
        (
            {TRUTH: b"one\n", "map_clsloc.txt": b"n00000001 1 a\n"},
            "is not a development kit of ILSVRC: invalid literal",
        ),
        (
            {"ILSVRC2012_devkit_t12.tar.gz": b"\x1f\x8b but no more"},
            "devkit_t12.tar.gz is not a development kit of ILSVRC: ",
        ),
    ],
)
def test_development_kits_that_are_none(files, message, tmp_path):
    write(str(tmp_path), files)
    (address,) = storage.select(f"{tmp_path}/*.gz").find() or [str(tmp_path)]
    with pytest.raises(UserError, match=message):
        ilsvrc.read_devkit(address)


def test_tables_without_a_line_are_refused(tmp_path):
    write(str(tmp_path), {"LOC_val_solution.csv": b"ImageId,PredictionString\n"})
    with pytest.raises(
        UserError, match="LOC_val_solution.csv: expected lines such as ILSVRC2012_val_00048981,n03995372"
    ):
        ilsvrc.validation_synsets(f"{tmp_path}/LOC_val_solution.csv")


@pytest.mark.parametrize("line", ["n02119789 1 kit_fox", "1 n02119789 kit fox, Vulpes macrotis", "1\tn02119789"])
def test_lines_of_ids_and_synsets(line):
    assert ilsvrc.read_synset_lines(f"{line}\n# 7 of them\n\n") == {1: "n02119789"}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ILSVRC2012_val_00048981.JPEG", 48981),
        ("a/ILSVRC2012_val_1.jpg", 1),
        ("n1_val.JPEG", None),
        ("val_x.JPEG", None),
    ],
)
def test_numbers_of_validation_images(name, number):
    assert ilsvrc.image_number(name) == number
