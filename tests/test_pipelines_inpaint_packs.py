"""Outputs in tars: what they hold, and what becomes of them when a job ends too soon, is tried again, or goes on."""

from __future__ import annotations

import itertools
import json
import tarfile
from pathlib import Path

import pytest

from networks import small_config, write_run
from picture_files import block, counts, noise, save, save_mask
from pipelines.inpaint import main
from pipelines.inpainting import job, outputs, packs, pages, reports
from pipelines.inpainting.books import Books
from pipelines.inpainting.packs import Packed, Packer
from pipelines.inpainting.versions import pack_prefix
from pipelines.transforms.model_handler import FillModelHandler
from trainer import storage
from trainer.errors import UserError

IMAGES = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(str(tmp_path_factory.mktemp("run")), small_config(32))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, run):
    """A folder with images, one of which has no mask, and outputs that are files."""
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(IMAGES):
        save(f"{folder}/in/x/{number:02d}.png", noise(30, 40, 3, number))
        save_mask(f"{folder}/holes/x/{number:02d}_mask.png", block(30, 40))
    save(f"{folder}/in/none.png", noise(8, 8, 3))
    assert inpaint(folder, run, folder / "files") == 3
    return folder


def inpaint(inputs: Path, run: str, output: Path, *options: str) -> int:
    where = ["--images", f"{inputs}/in", "--masks", f"{inputs}/holes", "--hole", "black", "--run", run]
    return main([*where, "--output", str(output), *options])


def read_packs(output: Path) -> dict[str, bytes]:
    """Members of all packs that there are, which are those that the manifest names, and in which none is twice."""
    there = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.tar"))
    assert there == json.loads((output / "manifest.json").read_text())["packs"]
    found: dict[str, bytes] = {}
    for name in there:
        with tarfile.open(output / name) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def items_of(output: Path) -> list[dict]:
    names = json.loads((output / "manifest.json").read_text())["items"]
    lines = [json.loads(line) for name in names for line in (output / name).read_text().splitlines()]
    return sorted(lines, key=lambda line: line["image"])


def files_of(inputs: Path) -> dict[str, bytes]:
    return {f"x/{path.name}": path.read_bytes() for path in (inputs / "files" / "x").iterdir()}


def pack_small(monkeypatch, most_bytes: int) -> None:
    monkeypatch.setattr(job, "Packer", lambda books, claim, digits, _: Packer(books, claim, digits, most_bytes))


@pytest.mark.parametrize(
    ("per_share", "most_bytes"),
    [
        (1, 8000),
        pytest.param(1, 1 << 20, marks=(pytest.mark.soak, pytest.mark.slow)),
        pytest.param(pages.PER_SHARE, 1 << 20, marks=(pytest.mark.soak, pytest.mark.slow)),
    ],
)
def test_packs_have_what_files_would_have(inputs, run, tmp_path, monkeypatch, per_share, most_bytes):
    monkeypatch.setattr(pages, "PER_SHARE", per_share)
    pack_small(monkeypatch, most_bytes)
    output = tmp_path / "out"
    assert inpaint(inputs, run, output, "--pack", "tar") == 3
    assert read_packs(output) == files_of(inputs) and not [*output.rglob("*.png")]
    assert len([*output.rglob("*.tar")]) == 1 or per_share == 1
    files, packed = items_of(inputs / "files"), items_of(output)
    assert [{**line, "seconds": 0} for line in files] == [
        {key: value for key, value in (line | {"seconds": 0}).items() if key != "pack"} for line in packed
    ]
    for line in packed:
        if line["status"] == "done":
            with tarfile.open(output / line["pack"]) as tar:
                assert line["output"] in tar.getnames()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.tar")}
    for size in {per_share, 1}:  # also by other shares
        monkeypatch.setattr(pages, "PER_SHARE", size)
        assert inpaint(inputs, run, output, "--pack", "tar") == 3
        assert counts(str(output))["finished_before"] == IMAGES and read_packs(output) == files_of(inputs)
        assert {path: path.stat().st_mtime_ns for path in output.rglob("*.tar")} == before


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the pack", "before its books", "before the manifest"])
def test_a_job_that_ends_too_soon_leaves_nothing_twice(inputs, run, tmp_path, monkeypatch, moment):
    output, calls = tmp_path / "out", itertools.count(1)
    pack_small(monkeypatch, 8000)
    places = {"before the pack": (packs, "create_or_compare", 3), "before its books": (packs, "write_part", 3)}
    module, name, most = places.get(moment, (reports, "publish", 1))
    write = getattr(module, name)

    def fail(*arguments):
        if next(calls) >= most:
            raise OSError(5, "the power is off")
        return write(*arguments)

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(Exception, match="the power is off"):
        inpaint(inputs, run, output, "--pack", "tar")
    assert not (output / "manifest.json").exists()
    monkeypatch.setattr(module, name, write)
    there = {path.name for path in output.rglob("*.tar")}
    named = {
        json.loads(line).get("pack", {}).get("name")
        for part in (output / ".items").glob("part-*")
        for line in part.read_text().splitlines()
    } - {None}
    assert len(there) - len(named) == (moment == "before its books")
    assert inpaint(inputs, run, output, "--pack", "tar") == 3
    assert read_packs(output) == files_of(inputs)
    found = counts(str(output))
    assert (found["inputs"], found["outputs"], found["rejects"]) == (IMAGES + 1, IMAGES, 1)
    earlier = [line for line in items_of(output) if line["status"] == "finished before"]
    assert found["finished_before"] == len(earlier) and {line["pack"] for line in earlier} == named
    assert len(earlier) >= 2


@pytest.mark.soak
@pytest.mark.slow
def test_of_a_bundle_that_is_tried_again_the_later_packs_count(inputs, run, tmp_path, monkeypatch):
    """The first attempt has written some packs, and their books, when it fails."""
    output = tmp_path / "out"

    class Twice(Packer):
        def flush(self):
            first = Packer(self.books, self.claim, self.digits, 1 << 20, _begun="000000000001")
            for share, waiting in self._waiting.items():
                for packed in waiting[:5]:
                    list(first.add(packed))
                assert share == ""
            assert len(list(first.flush())) == 5 and len([*output.rglob("*.tar")]) == 1
            yield from super().flush()

    monkeypatch.setattr(job, "Packer", Twice)
    assert inpaint(inputs, run, output, "--pack", "tar") == 3
    monkeypatch.undo()
    assert read_packs(output) == files_of(inputs) and len([*output.rglob("*.tar")]) == 1
    assert inpaint(inputs, run, output, "--pack", "tar") == 3
    assert counts(str(output))["finished_before"] == IMAGES and read_packs(output) == files_of(inputs)


def make_inputs(folder) -> None:
    """Six images and their masks."""
    for number in range(6):
        save(f"{folder}/in/{number}.png", noise(30, 40, 3, number))
        save_mask(f"{folder}/holes/{number}.png", block(30, 40))


@pytest.mark.soak
@pytest.mark.slow
def test_what_is_in_one_pack_with_an_edited_image_is_made_again(run, tmp_path, monkeypatch):
    make_inputs(tmp_path)
    output = tmp_path / "out"
    pack_small(monkeypatch, 8000)
    assert inpaint(tmp_path, run, output, "--pack", "tar") == 0
    before, by_pack = read_packs(output), {line["output"]: line["pack"] for line in items_of(output)}
    assert len(set(by_pack.values())) > 1
    storage.delete(f"{tmp_path}/in/3.png")
    save(f"{tmp_path}/in/3.png", noise(30, 40, 3, 33))
    assert inpaint(tmp_path, run, output, "--pack", "tar") == 0
    after, items = read_packs(output), {line["output"]: line for line in items_of(output)}
    assert {name for name in before if before[name] != after[name]} == {"3.png"}
    again = {name for name, line in items.items() if line["status"] == "done"}
    assert again == {name for name, pack in by_pack.items() if pack == by_pack["3.png"]}
    assert all(line["pack"] == by_pack[name] for name, line in items.items() if name not in again)


def test_images_are_packed_while_others_are_filled(inputs, run, tmp_path, monkeypatch):
    """Or an engine would keep all that are filled, as Beam does in process of what it flattens."""
    order: list[str] = []
    fill, pack = FillModelHandler.run_inference, outputs.pack_result
    monkeypatch.setattr(FillModelHandler, "batch_weight", 1)
    monkeypatch.setattr(FillModelHandler, "run_inference", lambda *args: order.append("fill") or fill(*args))
    monkeypatch.setattr(outputs, "pack_result", lambda *args: order.append("pack") or pack(*args))
    assert inpaint(inputs, run, tmp_path / "out", "--pack", "tar") == 3
    assert order.count("fill") == order.count("pack") == IMAGES
    assert order.index("pack") < IMAGES


@pytest.mark.soak
@pytest.mark.slow
def test_a_pack_of_fewer_shares_with_an_edited_image_is_made_again(run, tmp_path, monkeypatch):
    """The others of the pack may be in shares that do not know of the edited one."""
    make_inputs(tmp_path)
    output = tmp_path / "out"
    assert inpaint(tmp_path, run, output, "--pack", "tar") == 0
    before = read_packs(output)
    monkeypatch.setattr(pages, "PER_SHARE", 1)
    storage.delete(f"{tmp_path}/in/3.png")
    save(f"{tmp_path}/in/3.png", noise(30, 40, 3, 33))
    with pytest.raises(UserError, match="1 packs, such as packs/-.* The same command makes the others again"):
        inpaint(tmp_path, run, output, "--pack", "tar")
    assert not (output / "manifest.json").exists()
    assert inpaint(tmp_path, run, output, "--pack", "tar") == 0
    after = read_packs(output)
    assert {name for name in before if before[name] != after[name]} == {"3.png"}


@pytest.mark.soak
@pytest.mark.slow
def test_an_image_that_is_broken_by_now_is_in_no_pack(run, tmp_path):
    for number in range(4):
        save(f"{tmp_path}/in/{number}.png", noise(30, 40, 3, number))
        save_mask(f"{tmp_path}/holes/{number}.png", block(30, 40))
    output = tmp_path / "out"
    assert inpaint(tmp_path, run, output, "--pack", "tar") == 0
    before = read_packs(output)
    Path(f"{tmp_path}/in/3.png").write_bytes(b"no image")
    assert inpaint(tmp_path, run, output, "--pack", "tar") == 3
    del before["3.png"]
    assert read_packs(output) == before
    found = counts(str(output))
    assert (found["inputs"], found["outputs"], found["rejects"]) == (4, 3, 1)


@pytest.mark.soak
@pytest.mark.slow
def test_outputs_of_images_that_are_no_inputs_of_a_run_stay(inputs, run, tmp_path):
    output = tmp_path / "out"
    rows = [f"{inputs}/in/x/{number:02d}.png,{inputs}/holes/x/{number:02d}_mask.png" for number in range(4)]
    where = ["--hole", "black", "--run", run, "--output", str(output), "--pack", "tar"]
    for chosen in (rows[:2], rows[2:], rows):
        (tmp_path / "pairs.csv").write_text("\n".join(["image,mask", *chosen, ""]))
        assert main([*where, "--pairs", str(tmp_path / "pairs.csv")]) == 0
    assert counts(str(output))["finished_before"] == 4
    files = files_of(inputs)
    assert read_packs(output) == {f"{number:02d}.png": files[f"x/{number:02d}.png"] for number in range(4)}


@pytest.mark.soak
@pytest.mark.slow
def test_overwrite_makes_all_packs_again(inputs, run, tmp_path):
    output = tmp_path / "out"
    for _ in range(2):
        assert inpaint(inputs, run, output, "--pack", "tar", "--overwrite") == 3
        assert read_packs(output) == files_of(inputs) and len([*output.rglob("*.tar")]) == 1
        assert counts(str(output))["finished_before"] == 0


def test_options_that_contradict_each_other():
    where = ["--images", "in", "--masks", "holes", "--run", "run", "--output", "out"]
    with pytest.raises(UserError, match="--pack: expected without --engine ray"):
        main([*where, "--engine", "ray", "--pack", "tar"])
    with pytest.raises(UserError, match="--pack-mb: expected with --pack"):
        main([*where, "--pack-mb", "10"])


@pytest.mark.soak
@pytest.mark.slow
def test_a_pack_that_is_gone_or_damaged_is_made_again(inputs, run, tmp_path):
    output = tmp_path / "out"
    assert inpaint(inputs, run, output, "--pack", "tar") == 3
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-512])):
        (path,) = output.rglob("*.tar")
        damage(path)
        assert inpaint(inputs, run, output, "--pack", "tar") == 3
        assert read_packs(output) == files_of(inputs) and counts(str(output))["finished_before"] == 0


@pytest.mark.soak
@pytest.mark.slow
def test_a_folder_has_packs_or_files(inputs, run, tmp_path):
    output = tmp_path / "out"
    assert inpaint(inputs, run, output, "--pack", "tar") == 3
    with pytest.raises(UserError, match='pack is null and was "tar": --overwrite, or choose another folder'):
        inpaint(inputs, run, output)
    with pytest.raises(UserError, match='pack is "tar" and was null'):
        inpaint(inputs, run, inputs / "files", "--pack", "tar")


def test_packs_are_bounded_and_the_same_outputs_are_the_same_pack(tmp_path):
    kept = Books(output=str(tmp_path), run="0badcafe")
    outputs = [
        Packed(f"{n % 16:x}000", {"output": f"{n:03d}.png", "bytes": 1000, "status": "done"}, bytes([n]) * 1000)
        for n in range(100)
    ]
    for _ in range(2):
        packer, lines = Packer(kept, None, 1, 20_000, _begun="0123456789ab"), []
        for number, packed in enumerate(outputs):
            lines += packer.add(packed)
            assert number + 1 - len(lines) < 20
        lines += packer.flush()
        assert sorted(line.outcome["output"] for line in lines) == [packed.record["output"] for packed in outputs]
    for path in (tmp_path / "packs").iterdir():
        share = pack_prefix(f"packs/{path.name}")
        with tarfile.open(path) as tar:
            assert {f"{int(name[:3]) % 16:x}" for name in tar.getnames()} == {share}
    names = {line.outcome["pack"]["name"] for line in lines}
    assert {f"packs/{path.name}" for path in (tmp_path / "packs").iterdir()} == names and len(names) > 16
