"""The jobs in folders that lie: links, pipes, names that are not UTF-8, and other jobs in the same folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from networks import small_config, write_run
from picture_files import block, counts, errors, noise, save, save_mask
from pipelines import build_imagenet, build_masks, evaluate, inpaint
from pipelines.inpainting.books import Writer
from pipelines.inpainting.outputs import claim_output
from pipelines.launch import claim_dataset
from trainer import storage
from trainer.errors import UserError
from trainer.storage import claims

NAMES = ("a", "sub/b", "sub/c")
MASKS = ["--count", "40", "--size", "32", "--num-shards", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(str(tmp_path_factory.mktemp("run")), small_config(32))


@pytest.fixture
def files(tmp_path):
    """Folder with ``in``, images, and ``holes``, a mask for each."""
    for name in NAMES:
        save(f"{tmp_path}/in/{name}.png", noise(30, 40, 3, len(name)))
        save_mask(f"{tmp_path}/holes/{name}.png", block(30, 40))
    return tmp_path


@pytest.fixture
def victim(tmp_path):
    """A folder that is none of ours, with names that our jobs use, and is checked at the end."""
    theirs = {name: b"theirs" for name in ("job.json", "a.png.json", "train.jsonl", "a.jsonl", "a.png", "notes")}
    (tmp_path / "victim").mkdir()
    for name, data in theirs.items():
        (tmp_path / "victim" / name).write_bytes(data)
    yield tmp_path / "victim"
    assert {path.name: path.read_bytes() for path in (tmp_path / "victim").iterdir()} == theirs


def fill(files, run: str, *options: str) -> int:
    where = ["--images", f"{files}/in", "--masks", f"{files}/holes", "--hole", "black"]
    return inpaint.main([*where, "--run", run, "--output", f"{files}/out", *options])


def draw(folder, *options: str) -> int:
    return build_masks.main(["--output", str(folder), *MASKS, *options])


def contents(folder) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def at_write(monkeypatch, ending: str, number: int, action) -> list:
    """Calls ``action`` once, right before write ``number`` of an address with an ending; its result is in the list."""
    seen, results = [], []

    def watched(write):
        def write_after_action(address, data):
            if address.endswith(ending) and "/." not in address:
                seen.append(address)
                if len(seen) == number and not results:
                    results.append(None)
                    results[0] = action()
            write(address, data)

        return write_after_action

    for name in ("create", "overwrite"):
        monkeypatch.setattr(storage, name, watched(getattr(storage, name)))
    return results


# Links that lead out of the folder


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_records_are_kept_in_no_link(options, files, run, victim):
    (files / "out").mkdir()
    (files / "out" / ".items").symlink_to(victim)
    with pytest.raises(UserError, match="out/.items is a link: nothing is written or deleted through it"):
        fill(files, run, *options)


def test_outputs_are_written_through_no_link(files, run, victim):
    (files / "out").mkdir()
    (files / "out" / "sub").symlink_to(victim)
    assert fill(files, run, "--overwrite") == 3
    assert counts(f"{files}/out") == {"inputs": 3, "outputs": 1, "rejects": 2, "finished_before": 0, "without_holes": 0}
    assert all("out/sub is a link" in error for error in errors(f"{files}/out"))


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_rejects_of_a_dataset_are_written_and_deleted_through_no_link(options, tmp_path, victim):
    assert draw(tmp_path / "set") == 0
    if not options:
        (tmp_path / "set" / "manifest.json").unlink()
    (tmp_path / "set" / "rejects").symlink_to(victim)
    with pytest.raises(UserError, match="set/rejects is a link"):
        draw(tmp_path / "set", *options)


def test_overwriting_a_dataset_deletes_nothing_of_others(tmp_path):
    assert draw(tmp_path / "set") == 0
    others = {"mine.tfrecord": b"1", "train-1.tfrecord": b"2", "rejects/mine.jsonl": b"3", "deep/manifest.json": b"4"}
    for name, data in others.items():
        storage.create(f"{tmp_path}/set/{name}", data)
    assert draw(tmp_path / "set", "--overwrite", "--seed", "1") == 0
    found = contents(tmp_path / "set")
    assert {name: found[name] for name in others} == others and len(found) == len(others) + 4 + 2


# Other jobs in the same folder


def test_of_two_jobs_that_replace_outputs_the_later_wins(files, run, monkeypatch):
    """The second starts and ends while the first is about to write its second output."""
    assert fill(files, run, "--checkpoint", "latest", "--overwrite") == 0
    expected = {name: data for name, data in contents(files / "out").items() if name.endswith(".png")}
    shutil.rmtree(files / "out")
    assert fill(files, run) == 0
    second = at_write(monkeypatch, ".png", 2, lambda: fill(files, run, "--checkpoint", "latest", "--overwrite"))
    with pytest.raises(UserError, match="out (is being|was) written by another job"):
        fill(files, run, "--overwrite")
    assert second == [0]
    found = contents(files / "out")
    # The output that the first was about to write is the only one that its claim could not keep it from.
    assert sum(found[name] != data for name, data in expected.items()) <= 1
    manifest, items = json.loads(found["manifest.json"]), found["items.jsonl"].splitlines()
    assert manifest["model"]["address"].rpartition("/")[2].startswith("step-00000002-")
    assert {json.loads(line)["output"] for line in items} == set(expected)


@pytest.mark.parametrize("step", [".png", "items.jsonl", "manifest.json"])
def test_a_job_whose_folder_is_claimed_at_any_moment_does_not_end_well(step, files, run, monkeypatch):
    claimed = at_write(monkeypatch, step, 1, lambda: claim_output(f"{files}/out", {"model": "another"}, True))
    with pytest.raises(UserError, match="out is being written by another job"):
        fill(files, run)
    assert len(claimed) == 1 and not storage.exists(f"{files}/out/manifest.json")


@pytest.mark.parametrize(("step", "number"), [(".tfrecord", 1), (".tfrecord", 4), ("manifest.json", 1)])
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_dataset_whose_folder_is_claimed_while_it_is_written_is_none(step, number, options, tmp_path, monkeypatch):
    """The second job has deleted what was written so far, and is slower than the first."""
    claimed = at_write(monkeypatch, step, number, lambda: claim_dataset(f"{tmp_path}/set", True))
    with pytest.raises(UserError, match="set is being written by another job"):
        draw(tmp_path / "set", *options)
    assert len(claimed) == 1 and not storage.exists(f"{tmp_path}/set/manifest.json")


def test_of_two_jobs_that_replace_a_dataset_the_later_wins(tmp_path, monkeypatch):
    assert draw(tmp_path / "alone", "--seed", "2") == draw(tmp_path / "set", "--seed", "1") == 0
    second = at_write(monkeypatch, ".tfrecord", 2, lambda: draw(tmp_path / "set", "--seed", "2", "--overwrite"))
    with pytest.raises(UserError, match="set (is being|was) written by another job"):
        draw(tmp_path / "set", "--seed", "1", "--overwrite")
    assert second == [0]
    found, alone = contents(tmp_path / "set"), contents(tmp_path / "alone")
    assert sum(found.get(name) != data for name, data in alone.items()) <= 1 and found.keys() == alone.keys()


def test_two_jobs_that_make_the_same_dataset_make_it(tmp_path, monkeypatch):
    assert draw(tmp_path / "alone") == 0
    second = at_write(monkeypatch, ".tfrecord", 2, lambda: draw(tmp_path / "set"))
    assert draw(tmp_path / "set") == 0 and second == [0]
    assert contents(tmp_path / "set") == contents(tmp_path / "alone")


def take_away(folder: Path) -> None:
    """Removes a folder at once, though other threads write into it."""
    shutil.rmtree(folder.rename(folder.with_name("taken")), ignore_errors=True)


@pytest.mark.parametrize("number", [2, *(pytest.param(one, marks=pytest.mark.soak) for one in (1, 3))])
def test_outputs_that_are_gone_at_the_end_are_missed(number, files, run, monkeypatch):
    at_write(monkeypatch, ".png", number, lambda: take_away(files / "out"))
    with pytest.raises(UserError, match="out/.items/job.json is gone: the folder was removed or emptied"):
        fill(files, run)
    assert not storage.exists(f"{files}/out/manifest.json")
    assert fill(files, run) == 0
    assert counts(f"{files}/out")["outputs"] == 3


def test_an_output_that_is_gone_at_the_end_is_missed(files, run, monkeypatch):
    flush = Writer.flush

    def flush_and_lose(self):
        flush(self)
        storage.delete(f"{files}/out/a.png")

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "flush", flush_and_lose)
        with pytest.raises(UserError, match="1 of 3 files that this job wrote are missing or changed, such as a.png"):
            fill(files, run)
    assert fill(files, run) == 0 and storage.exists(f"{files}/out/a.png")


def test_shards_that_are_gone_at_the_end_are_missed(tmp_path, monkeypatch):
    at_write(monkeypatch, ".tfrecord", 3, lambda: take_away(tmp_path / "set"))
    with pytest.raises(UserError, match="2 of 4 files that this job wrote are missing"):
        draw(tmp_path / "set")
    assert draw(tmp_path / "set") == 0


# What killed jobs left


def test_drafts_of_killed_jobs_are_swept(files, run):
    drafts = [".a.png.0123abcd", "sub/.b.png.0123abcd", ".items/sub/.b.png.json.0123abcd", ".manifest.json.0123abcd"]
    for name in [*drafts, ".notes.20240101", ".items/.claims"]:
        (files / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (files / "out" / name).write_bytes(b"half")
    assert fill(files, run) == 0
    hidden = sorted(name for name in contents(files / "out") if os.path.basename(name).startswith("."))
    assert hidden == [".items/.claims", ".notes.20240101"]
    drafts = [".train-00001-of-00004.tfrecord.0123abcd", "rejects/.train.jsonl.0123abcd", ".contact_sheet.png.0123abcd"]
    for name in drafts:
        (files / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (files / "set" / name).write_bytes(b"half")
    assert draw(files / "set", "--overwrite") == 0
    assert len(contents(files / "set")) == 4 + 2


# Inputs


def make_odd(folder, name: str) -> None:
    """A pipe, a socket and a device beside a file, each of which would be waited for or read for ever."""
    os.mkfifo(folder / f"pipe{name}")
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(folder / f"socket{name}"))
    os.symlink("/dev/zero", folder / f"device{name}")


def sources(output) -> dict[str, str]:
    """Error by name of each reject."""
    paths = [*output.glob("rejects.jsonl"), *output.glob("rejects/*.jsonl")]
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return {line["source"].rpartition("/")[2]: line["error"] for line in lines}


@pytest.mark.timeout(300)
def test_images_with_odd_names_and_what_is_no_file_are_rejects(files, run):
    whole = (files / "in" / "a.png").read_bytes()
    for kind in ("in", "holes"):
        (files / kind / os.fsdecode(b"caf\xe9.png")).write_bytes(whole)
    make_odd(files / "in", ".png")
    for name in ("pipe", "socket", "device"):
        save_mask(f"{files}/holes/{name}.png", block(30, 40))
    (files / "in" / "loop").symlink_to(".")
    (files / "in" / "sub" / "up").symlink_to("..")
    assert fill(files, run) == 3
    # The mask of such a name is a reject of its own, as a mask without an image is.
    assert counts(f"{files}/out") == {"inputs": 8, "outputs": 3, "rejects": 5, "finished_before": 0, "without_holes": 0}
    found = sources(files / "out")
    assert found.pop(r"caf\xe9.png") == "ValueError: expected a path in UTF-8"
    assert set(found) == {"pipe.png", "socket.png", "device.png"}
    assert all("expected a regular file" in error for error in found.values())


@pytest.mark.timeout(300)
def test_pairs_with_names_that_are_not_utf8_are_rejects(files, run):
    lines = [{"image": f"in/{name}.png", "mask": f"holes/{name}.png"} for name in ("a", "caf\udce9", "\ud800")]
    (files / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--pairs", f"{files}/pairs.jsonl", "--hole", "black", "--run", run, "--output", f"{files}/out"]
    assert inpaint.main(arguments) == 3
    assert counts(f"{files}/out") == {"inputs": 3, "outputs": 1, "rejects": 2, "finished_before": 0, "without_holes": 0}
    assert set(sources(files / "out")) == {r"caf\xe9.png", r"\ud800.png"}


@pytest.mark.timeout(300)
def test_mask_files_with_odd_names_and_what_is_no_file_are_rejects(files):
    (files / "holes" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"any")
    make_odd(files / "holes", ".png")
    (files / "holes" / "loop").symlink_to(".")
    build_masks.main(
        ["--output", f"{files}/set", "--generator", "files", "--mask-files", f"{files}/holes", "--hole", "black"]
        + ["--count", "6", "--size", "32"]
    )
    counted = json.loads((files / "set" / "manifest.json").read_text())["counts"]
    assert counted == {"inputs": 10, "records": 6, "rejects": 4}
    found = sources(files / "set")
    assert found.pop(r"caf\xe9.png") == "ValueError: expected a path in UTF-8"
    assert set(found) == {"pipe.png", "socket.png", "device.png"}
    assert all("expected a regular file" in error for error in found.values())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_dataset", [True, False])
def test_images_to_score_may_have_any_name(is_dataset, files, run):
    shutil.rmtree(files / "in" / "sub")
    (files / "in" / os.fsdecode(b"caf\xe9.png")).write_bytes((files / "in" / "a.png").read_bytes())
    (files / "in" / "loop").symlink_to(".")
    rows, failed = 2 * 6, 0
    if is_dataset:
        build_imagenet.main(["--input", f"{files}/in", "--output", f"{files}/records", "--split", "val"])
    else:
        make_odd(files / "in", ".png")
        rows, failed = 5 * 6, 3 * 6
    build_masks.main(["--output", f"{files}/masks", "--size", "32", "--count", f"{rows}", "--split", "val"])
    images = f"{files}/records" if is_dataset else f"{files}/in/**"
    options = ["--images", images, "--masks", f"{files}/masks", "--run", run, "--output", f"{files}/report"]
    code = evaluate.main([*options, "--baseline", "", "--per-cell", "all"])
    found = [json.loads(line) for line in (files / "report" / "pairs.jsonl").read_text().splitlines()]
    assert code == (3 if failed else 0) and len(found) == rows and sum("error" in row for row in found) == failed
    names = {row["image"].rpartition("/")[2] for row in found if "error" not in row}
    assert names == {"a.png", r"caf\xe9.png"}


def test_a_report_whose_folder_is_claimed_meanwhile_is_none(files, run, monkeypatch):
    build_masks.main(["--output", f"{files}/masks", "--size", "32", "--count", "6", "--split", "val"])
    options = ["--images", f"{files}/in/*", "--masks", f"{files}/masks", "--run", run, "--output", f"{files}/report"]
    at_write(monkeypatch, "table.md", 1, lambda: claims.take(f"{files}/report", replaces=True))
    with pytest.raises(UserError, match="report is being written by another job"):
        evaluate.main([*options, "--baseline", "", "--per-cell", "all"])


def test_folders_whose_names_are_not_utf8_are_refused_in_one_line(files, run):
    odd = os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match=r"expected an address in UTF-8. Received .*caf\\xe9"):
        draw(files / odd)
    os.rename(files / "in", files / odd)
    with pytest.raises(UserError, match=r"expected an address in UTF-8. Received .*caf\\xe9"):
        inpaint.main(["--images", f"{files}/{odd}", "--holes", "alpha", "--run", run, "--output", f"{files}/out"])


def test_starts_at_the_same_moment_end_well_or_are_refused(files):
    """As many processes behind a barrier: no one meets an error that it does not understand."""
    start = threading.Barrier(8)

    def claim(number):
        start.wait()
        try:
            return claim_output(f"{files}/out-{number // 8}", {"model": number % 2}, number >= 24)
        except UserError as error:
            return error

    for rounds in range(6):
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(claim, range(8 * rounds, 8 * rounds + 8)))
        (job,) = (files / f"out-{rounds}" / ".items").glob("job.json")
        model = json.loads(job.read_bytes())["model"]
        won = [number % 2 for number, outcome in enumerate(outcomes) if not isinstance(outcome, UserError)]
        assert won and (rounds >= 3 or set(won) == {model}), outcomes
