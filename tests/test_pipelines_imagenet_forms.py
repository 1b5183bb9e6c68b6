"""The image job on a synthetic ILSVRC of 50 classes: its tars, folders and Kaggle's, with every kind of file."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tensorflow as tf
from PIL import Image

from pipelines.build_imagenet import main
from trainer import storage
from trainer.data import records
from trainer.data.manifest import load_manifest

PHOTOS = sorted((Path(__file__).resolve().parents[1] / "pipelines" / "photos").rglob("*.jpg"))
CLASSES = sorted(f"n{number:08d}" for number in random.Random(1).sample(range(10**7, 10**8), 50))
IDS = dict(zip(random.Random(2).sample(CLASSES, 50), range(1, 51), strict=True))  # not in sorted order, as in ILSVRC
PLANTED = CLASSES[7]
OPTIONS = ["--num-shards", "3", "--min-side", "16", "--max-pixels", "1000000"]


def encode(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(rng: random.Random) -> bytes:
    """A piece of a photograph, as a JPEG."""
    with Image.open(rng.choice(PHOTOS)) as whole:
        side = rng.randint(100, min(whole.size))
        x, y = rng.randint(0, whole.width - side), rng.randint(0, whole.height - side)
        size = rng.randint(48, 96), rng.randint(48, 96)
        return encode(whole.convert("RGB").resize(size, box=(x, y, x + side, y + side)), quality=90)


SCENE = Image.open(PHOTOS[0]).convert("RGB").resize((60, 44))


def ycck() -> bytes:
    """As Photoshop stores CMYK: inks inverted, the three colors of them as YCC, and 2 in Adobe's marker says so."""
    y, cb, cr = Image.eval(SCENE, lambda value: 255 - value).convert("YCbCr").split()
    stored = [Image.eval(band, lambda value: 255 - value) for band in (y, cb, cr)]  # Pillow inverts what it writes
    data = encode(Image.merge("CMYK", [*stored, Image.new("L", SCENE.size, 0)]), quality=95)
    transform = data.index(b"\xff\xee\x00\x0eAdobe") + 15
    return data[:transform] + b"\x02" + data[transform + 1 :]


def sixteen_bits() -> bytes:
    return encode(Image.fromarray(np.asarray(SCENE.convert("L")).astype(np.uint16) * 257), "PNG")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(SCENE.transpose(Image.Transpose.ROTATE_90), quality=95, exif=exif)


def bomb() -> bytes:
    """A PNG of 70 bytes that promises 9,000 x 9,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


CHANGED = {  # show the scene, once they are RGB and upright
    "cmyk.JPEG": encode(SCENE.convert("CMYK"), quality=95),
    "ycck.JPEG": ycck(),
    "png.JPEG": encode(SCENE, "PNG"),
    "rotated.JPEG": rotated(),
    "alpha.png": encode(SCENE.convert("RGBA"), "PNG"),
    "web.webp": encode(SCENE, "WEBP", quality=95),
    "animated.gif": encode(SCENE, "GIF", save_all=True, append_images=[Image.new("RGB", SCENE.size)]),
    "gray.JPEG": encode(SCENE.convert("L"), quality=95),
    "sixteen.png": sixteen_bits(),
}
KEPT = {
    "caf\udce9.JPEG": encode(SCENE, quality=91),  # a name in Latin-1
    "long" * 40 + ".JPEG": encode(SCENE, quality=92),  # longer than a tar's header has room for
    "progressive.JPEG": encode(SCENE, quality=93, progressive=True),
}
WRONG = {
    "truncated.JPEG": (encode(SCENE)[:-200], "ImageError: the pixels cannot be decoded: .*truncated"),
    "empty.JPEG": (b"", "ImageError: the file is empty"),
    "text.JPEG": (b"A text.\n", "ImageError: the file is not an image"),
    "bomb.png": (bomb(), "ImageError: expected at most 1000000 pixels. Received 9000 x 9000."),
    "small.JPEG": (
        encode(SCENE.resize((60, 15))),
        "ImageError: expected sides of 16 pixels or more. Received 60 x 15.",
    ),
    "\udcff.JPEG": (b"?", "ImageError: the file is not an image"),
}


@pytest.fixture(scope="module")
def ilsvrc():
    """name below split/synset/ -> bytes, of each (split, synset)."""
    rng = random.Random(0)
    found = {("train", s): {f"{s}_{rng.randrange(10**5)}.JPEG": photo(rng) for _ in range(4)} for s in CLASSES}
    found["train", PLANTED] |= CHANGED | KEPT | {name: data for name, (data, _) in WRONG.items()}
    for number in range(1, 101):
        synset = CLASSES[(number - 1) % 50] if number <= 50 else rng.choice(CLASSES)
        found.setdefault(("val", synset), {})[f"ILSVRC2012_val_{number:08d}.JPEG"] = photo(rng)
    found["test", ""] = {f"ILSVRC2012_test_{number:08d}.JPEG": photo(rng) for number in range(1, 11)}
    return found


def make_tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def make_devkit(ilsvrc) -> dict[str, bytes]:
    classes = {
        int(name[15:23]): synset for (split, synset), files in ilsvrc.items() if split == "val" for name in files
    }
    rows = [(id_, synset, "words", 0) for synset, id_ in IDS.items()]
    rows += [(51, "n00001740", "entity", 3)]  # inner nodes of the tree follow
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, kinds).reshape(-1, 1)})
    truth = "".join(f"{IDS[classes[number]]}\n" for number in sorted(classes))
    folder = "ILSVRC2012_devkit_t12/data/"
    return {folder + "meta.mat": meta.getvalue(), folder + "ILSVRC2012_validation_ground_truth.txt": truth.encode()}


@pytest.fixture(scope="module")
def tars(ilsvrc, tmp_path_factory):
    """ILSVRC's own form: three tars and the development kit."""
    root = tmp_path_factory.mktemp("tars")
    shuffled = random.Random(3).sample(CLASSES, 50)  # ILSVRC's is not sorted either
    hidden = {"._n1.JPEG": b"resource fork"}
    inner = {f"{synset}.tar": make_tar(ilsvrc["train", synset] | hidden) for synset in shuffled}
    (root / "ILSVRC2012_img_train.tar").write_bytes(make_tar(inner))
    validation = {n: data for (split, _), files in ilsvrc.items() if split == "val" for n, data in files.items()}
    (root / "ILSVRC2012_img_val.tar").write_bytes(make_tar(validation))
    test = {"./test/" + name: data for name, data in ilsvrc["test", ""].items()}
    (root / "ILSVRC2012_img_test_v10102019.tar").write_bytes(make_tar(test))
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        for name, data in make_devkit(ilsvrc).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return root


def write_tree(root: Path, ilsvrc, flat_val=False) -> None:
    for (split, synset), files in ilsvrc.items():
        folder = root / split / ("" if flat_val and split == "val" else synset)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    (root / "train" / PLANTED / ".DS_Store").write_bytes(b"")


@pytest.fixture(scope="module")
def tree(ilsvrc, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_tree(root, ilsvrc)
    return root


def build(source, output, *options) -> Path:
    code = main(["--input", str(source), "--output", str(output), *OPTIONS, *options])
    assert code == (3 if load_manifest(str(output), "image").counts["rejects"] else 0)
    return Path(output)


def shard_bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.tfrecord"))}


def read_all(folder) -> dict[str, dict]:
    found = {}
    for path in sorted(Path(folder).glob("*.tfrecord")):
        for serialized in tf.data.TFRecordDataset(str(path)):
            record = {key: value.numpy() for key, value in records.parse_image(serialized).items()}
            found[record["image/filename"].decode(errors="surrogateescape")] = record
    return found


def join(*names: str) -> str:
    return "/".join(filter(None, names))


def read_rejects(folder) -> list[dict]:
    return [json.loads(x) for path in sorted(Path(folder).glob("rejects/*")) for x in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tars, tmp_path_factory):
    return build(tars, tmp_path_factory.mktemp("written") / "set")


def test_every_image_is_a_record_with_its_label(written, ilsvrc):
    manifest, found = load_manifest(str(written), "image"), read_all(written)
    expected = {join(*place, name): data for place, files in ilsvrc.items() for name, data in files.items()}
    rejected = [f"train/{PLANTED}/{name}" for name in WRONG]
    assert manifest.counts == {"inputs": len(expected), "records": len(expected) - 6, "rejects": 6}
    assert sorted(found) == sorted(set(expected) - set(rejected)) and manifest.synsets == tuple(CLASSES)
    changed = {f"train/{PLANTED}/{name}" for name in CHANGED}
    for name, record in found.items():
        split, *middle, _ = name.split("/")
        assert record["image/class/synset"].decode() == "".join(middle)
        assert record["image/class/label"] == (CLASSES.index(middle[0]) if middle else -1), name
        assert (record["image/encoded"] == expected[name]) == (name not in changed), name
        pixels = tf.io.decode_jpeg(record["image/encoded"]).numpy()
        assert pixels.shape == (record["image/height"], record["image/width"], 3)
    assert sum(name.startswith("val/") for name in found) == 100


@pytest.mark.parametrize("name", CHANGED)
def test_other_kinds_become_the_same_picture_upright_in_rgb(name, written):
    pixels = tf.io.decode_jpeg(read_all(written)[f"train/{PLANTED}/{name}"]["image/encoded"]).numpy().astype(float)
    gray = name in ("gray.JPEG", "sixteen.png")
    expected = np.asarray(SCENE.convert("L").convert("RGB") if gray else SCENE, float)
    error = np.abs(pixels - expected).mean()
    wrong = [pixels[::-1], pixels[:, ::-1], 255 - pixels, *([] if gray else [pixels[..., ::-1]])]
    assert error < 6 and all(np.abs(other - expected).mean() > 2 * error for other in wrong)


def shown(name: str) -> str:
    """A name as rejects have it: bytes that are not UTF-8 as backslash, x and two digits."""
    return name.replace("\udcff", "\\xff")


def test_rejects_name_the_archive_the_member_and_the_reason(written, tars):
    lines = {line["member"]: line for line in read_rejects(written)}
    assert sorted(lines) == sorted(f"{PLANTED}.tar/{shown(name)}" for name in WRONG)
    for name, (_, reason) in WRONG.items():
        line = lines[f"{PLANTED}.tar/{shown(name)}"]
        assert line["source"] == str(tars / "ILSVRC2012_img_train.tar")
        assert (line["stage"], line["split"]) == ("decode", "train") and re.match(reason, line["error"]), line


def test_folders_give_the_same_bytes(tree, written, tmp_path):
    assert shard_bytes(build(tree, tmp_path)) == shard_bytes(written)
    names = {Path(line["source"]).relative_to(tree / "train" / PLANTED).as_posix() for line in read_rejects(tmp_path)}
    assert names == set(map(shown, WRONG))


def test_kaggles_folders_give_the_same_bytes(ilsvrc, written, tmp_path):
    root = tmp_path / "kaggle"
    write_tree(root / "ILSVRC" / "Data" / "CLS-LOC", ilsvrc, flat_val=True)
    validation = [(synset, name) for (split, synset), names in ilsvrc.items() if split == "val" for name in names]
    rows = [f"{name[:-5]},{synset} 1 2 3 4 {synset} 5 6 7 8" for synset, name in validation]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{synset} words, more words\n" for synset in CLASSES))
    assert shard_bytes(build(root, tmp_path / "a")) == shard_bytes(written)
    assert shard_bytes(build(root / "ILSVRC" / "Data" / "CLS-LOC", tmp_path / "b")) == shard_bytes(written)


def test_a_devkit_of_text_files_elsewhere(ilsvrc, tars, written, tmp_path):
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_img_test_v10102019.tar"):
        (tmp_path / name).symlink_to(tars / name)
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "map_clsloc.txt").write_text("".join(f"{synset} {id_} a_word\n" for synset, id_ in IDS.items()))
    for name, data in make_devkit(ilsvrc).items():
        if name.endswith(".txt"):
            (tmp_path / "kit" / Path(name).name).write_bytes(data)
    output = build(tmp_path, tmp_path / "set", "--devkit", str(tmp_path / "kit"))
    assert shard_bytes(output) == shard_bytes(written)


def test_one_tar_alone_has_the_same_shards(tars, written, tmp_path):
    for split, devkit in (("val", ["--devkit", str(tars / "ILSVRC2012_devkit_t12.tar.gz")]), ("train", [])):
        (tmp_path / split).mkdir()
        tar = tmp_path / split / f"ILSVRC2012_img_{split}.tar"
        tar.symlink_to(tars / tar.name)
        output = build(tar, tmp_path / f"{split}-set", *devkit)
        assert shard_bytes(output) == {n: data for n, data in shard_bytes(written).items() if n.startswith(split)}
    # Without the development kit a validation tar says nothing of classes.
    output = build(tmp_path / "val", tmp_path / "unknown")
    assert {record["image/class/label"] for record in read_all(output).values()} == {-1}


def test_labels_do_not_depend_on_the_splits_that_are_read(tree, written, tmp_path):
    for split in ("train", "val"):
        output = build(tree, tmp_path / split, "--split", split)
        assert shard_bytes(output) == {n: data for n, data in shard_bytes(written).items() if n.startswith(split)}
        assert load_manifest(str(output), "image").synsets == tuple(CLASSES)


def test_from_tars_in_a_bucket(bucket, tars, written):
    for path in tars.iterdir():
        storage.create(f"{bucket}/in/{path.name}", path.read_bytes())
    assert main(["--input", f"{bucket}/in", "--output", f"{bucket}/out", *OPTIONS]) == 3
    for name, data in shard_bytes(written).items():
        assert storage.read(f"{bucket}/out/{name}") == data
