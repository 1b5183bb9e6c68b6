"""What is said of things that lie where something else is expected."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import zipfile

import pytest

from trainer import runs, storage
from trainer.checkpoints import files
from trainer.data import manifest
from trainer.errors import NotFound, UserError
from trainer.inference import export_formats
from trainer.storage import recognize


def tar(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", b"")
    return file.getvalue()


STEP = "run/checkpoints/step-00000001-aa"
FILES = {
    **dict.fromkeys(["photos/n01/a.JPG", "photos/manifest.json", "photos/config.json", "notes.txt", "list.csv"], b"x"),
    **dict.fromkeys(
        ["sets/images/manifest.json", "sets/images/train-00000-of-00001.tfrecord", "half/a.tfrecord"], b"x"
    ),
    **dict.fromkeys(["run/config.json", f"{STEP}/config.json", f"{STEP}/state.json", f"{STEP}/model.npz"], b"x"),
    **dict.fromkeys(["run/exports/step-1/card.json", "run/exports/step-1/model.keras", "a.jpg"], b"x"),
    "zips/a.zip": zipped(),
    "a.zip": zipped(),
    "a.tar": tar("w"),
    "a.tgz": tar("w:gz"),
    "a.tar.xz": tar("w:xz"),
    "tarlike": tar("w"),
}
EXPECTED = {
    "photos": ("images", "a folder of image files", ""),
    "photos/n01": ("images", "a folder of image files", ""),
    "photos/*.jpg": ("pattern", "a pattern", ""),
    "a.jpg": ("image", "an image file", ""),
    "notes.txt": ("file", "a file", ""),
    "list.csv": ("list", "a file .csv", ""),
    "sets": ("parent", "a folder that holds others: images (a dataset)", ""),
    "sets/images": ("dataset", "a dataset", ""),
    "sets/images/manifest.json": ("file", "a file of the dataset {0}/sets/images", "sets/images"),
    "half": ("shards", "a folder of shards", ""),
    "run": ("run", "the folder of a training run", ""),
    "run/config.json": ("file", "a file of the training run {0}/run", "run"),
    "run/checkpoints": ("folder", "a folder in the training run {0}/run", "run"),
    STEP: ("checkpoint", "a checkpoint of a training run", "run"),
    f"{STEP}/model.npz": ("file", "a file of the training run {0}/run", "run"),
    "run/exports/step-1": ("export", "an exported network", "run"),
    "run/exports/step-1/model.keras": ("network", "a network in a file .keras", "run"),
    "a.zip": ("archive", "a ZIP archive", ""),
    "a.tar": ("tar", "a tar", ""),
    "a.tgz": ("archive", "a compressed tar", ""),
    "a.tar.xz": ("archive", "an xz archive", ""),
    "tarlike": ("tar", "a tar", ""),
    "zips": ("archives", "a folder of archives", ""),
    "nothing/here": ("nothing", "nothing", ""),
}


def fill(root: str) -> str:
    for name, data in FILES.items():
        storage.create(f"{root}/{name}", data)
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return fill(str(tmp_path_factory.mktemp("place")))


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_what_lies_there(where, request):
    root = request.getfixturevalue("place") if where == "folder" else fill(request.getfixturevalue("bucket"))
    for name, (kind, what, whole) in EXPECTED.items():
        expected = recognize.Thing(kind, what.format(root), whole and f"{root}/{whole}")
        assert recognize.look(f"{root}/{name}") == expected, name


def test_documents_have_the_names_that_others_give_them():
    assert (runs.CONFIG, manifest.MANIFEST, export_formats.CARD) == ("config.json", "manifest.json", "card.json")
    assert "state.json" in files.__doc__ and export_formats.MODEL.endswith(recognize._EXPORTS)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "photos/n01",
            "image",
            "is a folder of image files. Expected .* image records, which .*build_imagenet --input {0}/photos/n01",
        ),
        (
            "photos/n01",
            "mask",
            "is a folder of image files. Expected .* mask records, which .*--mask-files {0}/photos/n01 --hole ",
        ),
        ("photos/*.jpg", "image", "is a pattern. Expected the folder of a dataset of image records.$"),
        ("a.jpg", "mask", "is an image file. .* which python -m pipelines.build_masks --generator files "),
        ("a.zip", "image", "is a ZIP archive. .* which .*build_imagenet .* makes .archives: unpack them first"),
        ("a.tar", "image", "is a tar. .* which .*build_imagenet --input {0}/a.tar --output DATASET makes.$"),
        ("a.tar", "mask", "is a tar. .* which .*build_masks .* makes"),
        ("run", "image", "is the folder of a training run. Expected the folder of a dataset of image records.$"),
        ("sets", "image", "is a folder that holds others: images .a dataset.. Expected the folder of a dataset"),
        ("sets/images/manifest.json", "image", "is a file of the dataset .* image records: {0}/sets/images.$"),
        ("half", "image", "has no manifest.json: the job that writes this dataset did not finish; run it again"),
        ("zips", "mask", "is a folder of archives. .* unpack them first"),
    ],
)
def test_what_is_no_dataset(name, kind, message, place):
    with pytest.raises(UserError, match=f"^{place}/{name.replace('*', '.')} " + message.format(place)) as caught:
        manifest.load_manifest(f"{place}/{name}", kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos/n01", "has no config.json: it is not the folder of a training run, but a folder of image files"),
        ("run/checkpoints", "is a folder in the training run .* Expected the folder of a training run: {0}/run.$"),
        (f"{STEP}/model.npz", "is a file of the training run .* Expected the folder of a training run: {0}/run.$"),
        ("run/exports/step-1", "is an exported network. .* .inpaint takes a .keras file as --model"),
        ("run/exports/step-1/model.keras", "is a network in a file .keras. .* as --model"),
    ],
)
def test_what_is_no_run(name, message, place):
    with pytest.raises(UserError, match=f"^{place}/{name} " + message.format(place)):
        runs.read_config(f"{place}/{name}")
    with pytest.raises(NotFound, match="nothing does not exist"):
        runs.read_config(f"{place}/nothing")


def test_files_are_no_folders(place):
    for name in ("new", "sets/images", "v1.2", "photos", "run.v3"):
        recognize.require_folder("--output", f"{place}/{name}")
    for name in ("out.png", "report.html", "model.keras", "masks.TFRECORD", "a.b.zip"):
        with pytest.raises(
            UserError, match=f"--output: expected a folder. Received {place}/{name}, the name of a file"
        ):
            recognize.require_folder("--output", f"{place}/{name}")
    with pytest.raises(UserError, match=f"--output: expected a folder. Received the file {place}/notes.txt."):
        recognize.require_folder("--output", f"{place}/notes.txt")
    storage.create(f"{place}/named.png/a.txt", b"")
    recognize.require_folder("--output", f"{place}/named.png")


def test_what_may_not_be_listed_is_no_obstacle(tmp_path, monkeypatch):
    """Whatever a user runs this as: who may list a folder is decided here."""
    (tmp_path / "closed").mkdir()
    storage.create(f"{tmp_path}/a.jpg", b"x")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert recognize.look(str(tmp_path)).kind == "images"
