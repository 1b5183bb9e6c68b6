"""The books of the inpainting job, and what becomes of them when a job ends too soon or a folder grows."""

from __future__ import annotations

import itertools
import json
import posixpath
from pathlib import Path

import pytest

from networks import small_config, write_run
from picture_files import block, counts, noise, save, save_mask
from pipelines.inpaint import main
from pipelines.inpainting import books, outputs, pages, reports, resume
from pipelines.inpainting.books import Books, Line, Writer
from pipelines.inpainting.inputs import Item
from pipelines.pairs.names import root_of
from pipelines.transforms.rejects import Reject
from trainer.errors import UserError

# Books


def record(name: str, **more) -> dict:
    known = {"image": f"in/{name}", "mask": "", "output": name, "bytes": 3, "crc32c": "AAAAAA==", "status": "done"}
    return known | more


LOST = Reject(source="in/b.png", stage="decode", error='a "quoted" one')


@pytest.fixture
def kept(tmp_path):
    folder = str(tmp_path / "out")
    return Books(output=folder, run="0badcafe")


def lines_of(kept: Books, share: str = "") -> list:
    found = books.read_parts(kept, books.list_parts(kept.output), share)
    return [books.parse_record(line) if output else books.parse_reject(line) for _, output, line in found]


def test_lines_are_read_as_they_were_written(kept):
    writer = Writer(kept, None, digits=1)
    odd = record('x/"é\\n".png', versions=[[1, "AAAAAA==", ""]])
    for line in (Line("3f00", record("a.png")), Line("3fff", odd), Line("4000", LOST)):
        writer.add(line)
    writer.flush()
    assert {books.part_prefix(name) for name in books.list_parts(kept.output)} == {"3", "4"}
    assert lines_of(kept, "4") == [LOST]
    assert sorted(lines_of(kept, "3"), key=lambda line: line["image"]) == [
        {"share": "3f00", **record("a.png")},
        {"share": "3fff", **odd},
    ]
    assert lines_of(kept, "3ff") == [{"share": "3fff", **odd}]


@pytest.mark.parametrize("damaged", [b"", b"[]", b"\xff", b'{"share": "3f00", "output": "b.png"', b"}, {", b"1, 2"])
def test_records_are_read_as_lines_are(damaged, kept):
    writer = Writer(kept, None, digits=1)
    for number in range(8):
        writer.add(Line(f"3f0{number}", record(f'"{number}\u00e9.png', hole_ratio=number / 7)))
    writer.add(Line("3fff", LOST))
    writer.flush()
    strange = [
        b'{"share": "3g00", "output": "a", ',
        b'{"share":"3f00", "output": "a", ',
        b'{"output": "a", "share": "3f00", ',
    ]
    whole = json.dumps(record("a")).encode()[1:]
    for path in Path(kept.output, ".items").iterdir():
        path.write_bytes(damaged + b"\n" + b"".join(begin + whole + b"\n" for begin in strange) + path.read_bytes())
    names = books.list_parts(kept.output)
    for share in ("", "3", "3f", "3f07", "4"):
        single = ((output, books.parse_record(line), line) for _, output, line in books.read_parts(kept, names, share))
        assert list(books.read_records(kept, names, share)) == [found for found in single if found[0] and found[1]]
    assert len(list(books.read_records(kept, names, ""))) == 8


def test_the_same_lines_are_the_same_part(kept):
    for _ in range(2):
        writer = Writer(kept, None, digits=0)
        writer.add(Line("3f00", record("a.png")))
        writer.flush()
        writer.flush()
    assert len(books.list_parts(kept.output)) == 1


@pytest.mark.parametrize("value", ["\u00e9\n\u2028", 0.1, 2**70, {"b": [1, None], "a": True}])
def test_a_line_of_the_report_may_have_whatever_a_book_has(value):
    line = reports.dump_item({"b": value, "a": 1})
    assert json.loads(line) == {"a": 1, "b": value} and line.startswith(b'{"a"')
    assert line.count(b"\n") == 1 and line.endswith(b"\n")


@pytest.mark.parametrize("cut", [1, 12, 40, -2])
def test_damaged_lines_are_passed_over(cut, kept):
    writer = Writer(kept, None, digits=0)
    writer.add(Line("3f00", record("a.png")))
    writer.flush()
    (path,) = Path(kept.output, ".items").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + b"\n" + whole + b"\xff\n[]\n" + b'{"share": "3f00", "output": "b", "bytes": 1}\n')
    assert [line for line in lines_of(kept) if line] == [{"share": "3f00", **record("a.png")}]


def test_lines_are_written_when_there_are_many_or_after_a_moment(kept, monkeypatch):
    clock = iter([100.0, 100.0, *[100.5] * 10, 103.0, 103.0])
    monkeypatch.setattr(books.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(books, "MOST_LINES", 5)
    writer, there = Writer(kept, None, digits=0), []
    for number in range(12):
        writer.add(Line("3f00", record(f"{number}.png")))
        there.append(len(lines_of(kept)))
    # The first after a pause is written at once, then each five; 2.5 seconds after the last part, however few.
    assert there == [1, 1, 1, 1, 1, 6, 6, 6, 6, 6, 11, 12]


# Chunks


@pytest.mark.parametrize(("digits", "size"), [(0, 7), (1, 31), (2, 125), (3, 256), (4, 256)])
def test_chunks_have_all_items_in_order(digits, size):
    items = [Item(f"in/{n}", "", f"{n}.png", ("m",) * (n % 3), "3f00", ("AAAAAA==",) * (n % 2)) for n in range(1000)]
    chunks = list(resume.pack_items(items, digits))
    assert {chunk.number for chunk in chunks} <= {size, len(items) % size}
    assert [item for chunk in chunks for item in resume.unpack_items(chunk)] == items


# Jobs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(str(tmp_path_factory.mktemp("run")), small_config(32))


@pytest.fixture
def files(tmp_path):
    for number in range(12):
        save(f"{tmp_path}/in/{number:02d}.png", noise(30, 40, 3, number))
        save_mask(f"{tmp_path}/holes/{number:02d}_mask.png", block(30, 40))
    save(f"{tmp_path}/in/none.png", noise(8, 8, 3))
    return tmp_path


def inpaint(files: Path, run: str, *options: str, output: str = "out") -> int:
    where = ["--images", f"{files}/in", "--masks", f"{files}/holes", "--hole", "black", "--run", run]
    return main([*where, "--output", f"{files}/{output}", *options])


def read_reports(folder: Path, name: str) -> list[dict]:
    reports = json.loads((folder / "manifest.json").read_text())[name]
    lines = [json.loads(line) for report in reports for line in (folder / report).read_text().splitlines()]
    return sorted(({**line, "seconds": 0} for line in lines), key=lambda line: line.get("image") or line["source"])


def test_many_shares_make_what_one_makes(files, run, monkeypatch):
    assert inpaint(files, run, output="one") == 3
    monkeypatch.setattr(pages, "PER_SHARE", 1)
    assert inpaint(files, run) == 3
    names = {path.name for path in (files / "out").iterdir()}
    assert sum(name.startswith("items-") and name.endswith("-of-00016.jsonl") for name in names) > 3
    for name in ("items", "rejects"):
        found = [read_reports(files / folder, name) for folder in ("one", "out")]
        assert found[0] == found[1] and len(found[0]) == {"items": 13, "rejects": 1}[name]
    for number in range(12):
        name = f"{number:02d}.png"
        assert (files / "out" / name).read_bytes() == (files / "one" / name).read_bytes()
    # The books of one share are read by many, and those of many by one.
    assert inpaint(files, run, output="one") == 3 and counts(f"{files}/one")["finished_before"] == 12
    assert not (files / "one" / "items.jsonl").exists()
    monkeypatch.undo()
    assert inpaint(files, run) == 3 and counts(f"{files}/out")["finished_before"] == 12
    assert [path.name for path in (files / "out").glob("items*")] == ["items.jsonl"]


TAKEN = ["a.jpg", "a.xyz", "a.xyz.gif", "b.c.png", "d.0001.png", "d.0002", "d.0002.tif", "d.0003"]
ALONE = {"a.jpg": "a.jpg.png", "b.c.png": "b.c.png", "d.0001.png": "d.0001.png", "d.0003": "d.0003.png"}


@pytest.mark.parametrize("per_share", [pages.PER_SHARE, 1])
def test_images_of_several_shares_that_would_have_one_output_are_rejected(per_share, tmp_path, run, monkeypatch):
    """First without those that collide: so outputs are there of which it is no longer clear whose they are."""
    monkeypatch.setattr(pages, "PER_SHARE", per_share)
    save_mask(f"{tmp_path}/hole.png", block(30, 40))
    where = ["--images", f"{tmp_path}/in", "--masks", f"{tmp_path}/hole.png", "--hole", "black", "--run", run]
    where += ["--output", f"{tmp_path}/out"]

    def fill(names: list[str]) -> dict[str, dict]:
        for name in names:
            save(f"{tmp_path}/{name}.png", noise(30, 40, 3, TAKEN.index(name)))
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / f"{name}.png").rename(tmp_path / "in" / name)
        main(where)
        items = {posixpath.basename(line["image"]): line for line in read_reports(tmp_path / "out", "items")}
        found = counts(f"{tmp_path}/out")
        assert found["inputs"] == found["outputs"] + found["rejects"] == len(items)
        return items

    first = fill([name for name in TAKEN if name not in ("a.xyz.gif", "d.0002.tif")])
    assert {name: line["output"] for name, line in first.items()} == {
        **ALONE,
        "a.xyz": "a.xyz.png",
        "d.0002": "d.0002.png",
    }
    assert per_share > 1 or len({pages.hash_of(root_of(name))[0] for name in ("a.xyz", "a.xyz.gif")}) == 2
    second = fill(["a.xyz.gif", "d.0002.tif"])
    assert {name: line["output"] for name, line in second.items() if line["status"] != "rejected"} == ALONE
    assert {line["status"] for name, line in second.items() if name in ALONE} == {"finished before"}
    for pair in (("a.xyz", "a.xyz.gif"), ("d.0002", "d.0002.tif")):
        both = ", ".join(f"{tmp_path}/in/{name}" for name in pair)
        for name in pair:
            assert f"expected one image for each output. Received 2 for {pair[0]}.png: {both}." in second[name]["error"]


@pytest.mark.parametrize("moments", [(3, 5)])
def test_what_a_job_has_written_into_its_books_is_not_made_again(files, run, moments, monkeypatch):
    """Two jobs end in the middle, as if they were killed: nothing of what they still had in mind is written."""
    write, made = outputs.write_output, list[str]()
    monkeypatch.setattr(books, "FLUSH_S", 0.0)

    def fail_after(most: int):
        number = itertools.count(1)

        def write_or_fail(item, *arguments):
            if next(number) > most:
                raise OSError(5, "the power is off")
            made.append(item.output)
            return write(item, *arguments)

        monkeypatch.setattr(outputs, "write_output", write_or_fail)

    for most in moments:
        fail_after(most)
        with pytest.raises(Exception, match="the power is off"):
            inpaint(files, run)
        assert not (files / "out" / "manifest.json").exists()
    fail_after(100)
    known = {line["output"] for line in lines_of(Books(output=f"{files}/out", run="")) if isinstance(line, dict)}
    before = len(made)
    assert inpaint(files, run) == 3
    assert len(known) >= 2 and known.isdisjoint(made[before:]) and known | set(made[before:]) == set(made)
    found = counts(f"{files}/out")
    assert (found["inputs"], found["outputs"], found["rejects"]) == (13, 12, 1)
    assert found["finished_before"] == len(known)
    assert len(read_reports(files / "out", "items")) == 13


def test_lists_are_found_by_a_glob_and_read_in_parallel(files, run, monkeypatch):
    for part in range(3):
        rows = "".join(f"../in/{n:02d}.png,../holes/{n:02d}_mask.png\n" for n in range(part, 12, 3))
        (files / "lists").mkdir(exist_ok=True)
        (files / "lists" / f"{part}.csv").write_text("image,mask\n" + rows)
    (files / "lists" / "notes.txt").write_text("no list")
    where = ["--pairs", f"{files}/lists/*", "--hole", "black", "--run", run]
    assert main([*where, "--output", f"{files}/all"]) == 0
    monkeypatch.setattr("pipelines.inpainting.inputs._READ_AT_LAUNCH", 0)  # as if they were large
    assert main([*where, "--output", f"{files}/out"]) == 0
    for folder in ("all", "out"):
        assert counts(f"{files}/{folder}")["outputs"] == 12
        manifest = json.loads((files / folder / "manifest.json").read_text())
        assert manifest["parameters"]["base"] == f"{files}/in"
    assert (files / "out" / "07.png").read_bytes() == (files / "all" / "07.png").read_bytes()
    with pytest.raises(UserError, match=r"--pairs: no lists, .csv or .jsonl, at .*/\*.tsv"):
        main(["--pairs", f"{files}/lists/*.tsv", "--hole", "black", "--run", run, "--output", f"{files}/none"])


def test_the_books_may_not_be_lost_while_the_job_runs(files, run, monkeypatch):
    assert inpaint(files, run) == 3
    resolve = resume.resolve

    def lose(*arguments):
        yield from resolve(*arguments)
        for path in (files / "out" / ".items").glob("part-*"):
            path.unlink()

    monkeypatch.setattr(resume, "resolve", lose)
    with pytest.raises(UserError, match="the books of 12 outputs are gone, such as that of 00.png"):
        inpaint(files, run)
    monkeypatch.undo()
    assert inpaint(files, run) == 3 and counts(f"{files}/out")["outputs"] == 12
