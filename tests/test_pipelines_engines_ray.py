"""The jobs on Ray: the same files as on Beam, whatever is lost on the way, and options that belong to one engine."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from running import Running, processes_with

from networks import small_config, write_run
from picture_files import block, counts, noise, save, save_mask
from pipelines.engines.on_ray.cluster import Parts
from pipelines.inpaint import main
from samples import write_noise
from trainer import storage
from trainer.errors import UserError

RAY = ("--engine", "ray")


EARLIER = 4  # images that a run before has made


def make_plain(folder: Path, numbers: range) -> None:
    """An image of its own size for each number."""
    for number in numbers:
        size = (20 + 3 * number, 24 + number, (1, 2, 3, 4)[number % 4])
        save(f"{folder}/in/{'abc'[number % 3]}/{number:02d}.png", noise(*size, seed=number))
        save_mask(f"{folder}/holes/{'abc'[number % 3]}/{number:02d}.png", block(*size[:2]))


def make_others(folder: Path) -> None:
    """6 images of many kinds and sizes, and 7 files that are no inputs."""
    save(f"{folder}/in/deep.png", noise(30, 40, 3, dtype=np.uint16))
    save(f"{folder}/in/photo.jpg", noise(50, 33, 3), "jpeg")
    save(f"{folder}/in/wide.webp", noise(90, 200, 3), "webp")
    save(f"{folder}/in/whole.png", noise(25, 26, 3))  # without holes
    save(f"{folder}/in/two.png", noise(25, 26, 3, seed=1))  # and these two differ in the extension alone
    save(f"{folder}/in/two.jpg", noise(25, 26, 3, seed=2), "jpeg")
    for name, size in (("deep", (30, 40)), ("photo", (50, 33)), ("wide", (90, 200)), ("two", (25, 26))):
        save_mask(f"{folder}/holes/{name}.png", block(*size))
    save_mask(f"{folder}/holes/whole.png", np.ones((25, 26), np.uint8))
    good = storage.read(f"{folder}/in/whole.png")
    bad = {"cut.png": good[: len(good) // 2], "empty.png": b"", "text.png": b"no image", "size.png": good}
    for name, data in (bad | {"alone.png": good, "full.png": good}).items():
        storage.create(f"{folder}/in/bad/{name}", data)
    for name in bad:
        save_mask(f"{folder}/holes/bad/{name}", block(25, 27 if name == "size.png" else 26))
    save_mask(f"{folder}/holes/bad/full.png", np.zeros((25, 26), np.uint8))
    save_mask(f"{folder}/holes/bad/stray.png", block(25, 26))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """18 images, 7 that are no inputs, a run, and ``beam``: what the job makes of them in one process.

    In ``beam`` and in ``ray`` some are made already.
    """
    made = tmp_path_factory.mktemp("ray")
    write_run(f"{made}/run", small_config(32))
    make_plain(made, range(EARLIER))
    assert main(options(made, "beam")) == main(options(made, "ray")) == 0
    make_plain(made, range(EARLIER, 12))
    make_others(made)
    assert main(options(made, "beam")) == 3
    return made


def options(folder: Path, output: str, *more: str) -> list[str]:
    where = ["--images", f"{folder}/in", "--masks", f"{folder}/holes", "--hole", "black", "--run", f"{folder}/run"]
    return [*where, "--output", f"{folder}/{output}", *more]


def run(folder: Path, output: str, *more: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipelines.inpaint", *options(folder, output, *RAY, *more)]
    variables = os.environ | {"TMPDIR": "/tmp"} | environment  # Ray's sockets need a short path
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=500, cwd=folder)


def outputs_of(folder: Path) -> dict[str, bytes]:
    kinds = (".png", ".jpg", ".webp")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.suffix in kinds}


def stamps_of(folder: Path) -> dict[str, tuple[int, int]]:
    """When each output was written, and as which file."""
    stats = {name: (folder / name).stat() for name in outputs_of(folder)}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


def lines_of(path: Path, *left_out: str) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in left_out} for line in lines]


def booked(folder: Path) -> list[tuple[str, str]]:
    """Outputs and sources of rejects of all lines in the books."""
    lines = [line for part in (folder / ".items").glob("part-*") for line in lines_of(part)]
    return sorted(
        ("output", line["output"]) if "output" in line else ("reject", line["reject"]["source"]) for line in lines
    )


def assert_same(ours: Path, expected: Path) -> None:
    """Outputs, books, reports and manifest; seconds and stamps of files are no other run's."""
    assert outputs_of(ours) == outputs_of(expected) and outputs_of(ours)
    assert booked(ours) == booked(expected)
    assert lines_of(ours / "items.jsonl", "seconds") == lines_of(expected / "items.jsonl", "seconds")
    assert (ours / "rejects.jsonl").read_bytes() == (expected / "rejects.jsonl").read_bytes()
    assert (ours / "manifest.json").read_bytes() == (expected / "manifest.json").read_bytes()
    names = [{path.name for path in folder.rglob("*") if "part-" not in path.name} for folder in (ours, expected)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_the_same_files_as_on_beam_and_nothing_is_made_twice(folder):
    stamps = stamps_of(folder / "ray")
    assert len(stamps) == EARLIER
    done = run(folder, "ray")
    assert done.returncode == 3, done.stderr
    assert_same(folder / "ray", folder / "beam")
    found = counts(str(folder / "ray"))
    assert (found["inputs"], found["outputs"], found["rejects"], found["without_holes"]) == (25, 18, 7, 1)
    assert found["finished_before"] == EARLIER and stamps.items() <= stamps_of(folder / "ray").items()
    said = r"18 images: 17 inpainted, 1 without holes; 4 of them from an earlier run; \S+/ray\n"
    assert re.fullmatch(said, done.stdout)
    *progress, last = done.stderr.splitlines()
    assert re.fullmatch(r"7 of 25 inputs rejected, see \S+/ray/rejects.jsonl", last)
    assert progress and all(re.fullmatch(r"  \d+ of 25 images, .*/s.*", line) for line in progress), done.stderr
    assert re.match("  25 of 25 images", progress[-1])


# Imported by every process of a run. KILLED has names of images: whoever decodes one of them is killed, always or,
# after "once:", the first time; after "driver:" the command is, once an output is booked. "actor" is one that computes;
# "rounds" stands for the images of an evaluation's records.
KILLER = """
import glob, importlib.abc, json, os, signal, sys, time

PLAN, TOLD = os.environ["KILLED"].split(), os.environ["TOLD"]

def first(name):
    try:
        os.close(os.open(f"{TOLD}/{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def die(name):
    with open(f"{TOLD}/deaths", "a") as told:
        told.write(name + "\\n")
    os.kill(os.getpid(), signal.SIGKILL)

class Killer(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "pipelines.engines.on_ray.rows":  # which is imported first
            return None
        sys.meta_path.remove(self)
        from pipelines.inpainting import loading
        from pipelines.transforms.model_handler import FillModelHandler
        load, fill = loading.load_item, FillModelHandler.run_inference

        def load_or_die(files, settings):
            name = os.path.basename(files.item.image)
            if name in PLAN or (f"once:{name}" in PLAN and first(name)):
                die(name)
            if f"driver:{name}" in PLAN:
                while not any('"output"' in open(part).read() for part in glob.glob(os.environ["BOOKS"] + "/part-*")):
                    time.sleep(0.01)
                os.kill(int(open(f"{TOLD}/driver").read()), signal.SIGKILL)
                time.sleep(600)
            yield from load(files, settings)

        def fill_or_die(self, batch, model):
            if "actor" in PLAN and first("actor"):
                die("actor")
            return fill(self, batch, model)

        loading.load_item, FillModelHandler.run_inference = load_or_die, fill_or_die
        if "rounds" in PLAN:
            from pipelines.evaluation import rounds
            decode = rounds.decode_round

            def decode_or_die(group, *more):
                (image,) = group[1]["images"]
                name = os.path.basename(image.name)
                if not image.error and (name in PLAN or (f"once:{name}" in PLAN and first(name))):
                    die(name)
                return decode(group, *more)

            rounds.decode_round = decode_or_die
        return None

sys.meta_path.insert(0, Killer())
"""


@pytest.fixture
def killing(tmp_path):
    """Variables of a run whose processes are killed; what they tell is in the folder."""
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": paths, "TOLD": str(tmp_path)}


@pytest.mark.slow
@pytest.mark.soak
def test_an_image_that_kills_its_process_is_a_reject_and_takes_no_other_along(folder, killing, tmp_path):
    done = run(folder, "killed", **killing, KILLED="05.png once:07.png actor")
    assert done.returncode == 3, done.stderr
    deaths = (tmp_path / "deaths").read_text().split()
    # Among others, and twice alone: by itself Ray Data would have it killed again and again.
    assert deaths.count("05.png") == 3 and deaths.count("07.png") == deaths.count("actor") == 1
    expected = outputs_of(folder / "beam")
    del expected["c/05.png"]
    assert outputs_of(folder / "killed") == expected
    lost = {line["source"]: line["error"] for line in lines_of(folder / "killed" / "rejects.jsonl")}
    error = lost.pop(f"{folder}/in/c/05.png")
    assert re.match("MemoryError: its process was killed 2 times while it had this image alone", error)
    assert lost == {line["source"]: line["error"] for line in lines_of(folder / "beam" / "rejects.jsonl")}
    assert len(set(booked(folder / "killed"))) == len(booked(folder / "killed")) == 25  # each once
    assert re.search(r"^  \d+ images lost with a process: made again, one at a time$", done.stderr, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.soak
def test_a_killed_command_leaves_no_process_and_what_it_has_written_is_not_done_again(folder, killing, tmp_path):
    output = folder / "again"
    variables = {"TMPDIR": "/tmp", "KILLED": "driver:wide.webp", "BOOKS": f"{output}/.items", **killing}
    command = ["-m", "pipelines.inpaint", *options(folder, "again", *RAY)]
    with Running(*command, cwd=folder, **variables) as running:
        (tmp_path / "driver").write_text(str(running.process.pid))
        code, said = running.wait()
        assert code == -signal.SIGKILL, said
    while processes_with(f"TOLD={tmp_path}"):
        time.sleep(0.1)
    finished = [name for kind, name in booked(output) if kind == "output"]
    stamps = stamps_of(output)
    assert finished and set(finished) <= stamps.keys() and not (output / "manifest.json").exists()
    done = run(folder, "again")
    assert done.returncode == 3, done.stderr
    assert outputs_of(output) == outputs_of(folder / "beam")
    assert counts(str(output))["finished_before"] == len(finished)
    assert (output / "rejects.jsonl").read_bytes() == (folder / "beam/rejects.jsonl").read_bytes()
    assert stamps.items() <= stamps_of(output).items()


# Evaluation


def evaluated(folder: Path, tmp_path: Path, kind: str) -> list[str]:
    """Options of an evaluation of records, of image files with masks in records, or of files; makes what it needs."""
    if kind == "files":
        rows = [f"{folder}/in/{name},{folder}/holes/{name}" for name in ("a/00.png", "b/01.png", "c/05.png")]
        rows.append(f"{folder}/in/bad/cut.png,{folder}/holes/bad/cut.png")
        (tmp_path / "pairs.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
        return ["--pairs", f"{tmp_path}/pairs.csv", "--hole", "black"]
    write_noise(tmp_path, 32, num_images=7, num_masks=40)
    images = ["--images", f"{folder}/in/*/*.png"]  # some of them are bad
    if kind == "records":
        images = ["--images", f"{tmp_path}/images", "--split", "train"]
    return [*images, "--masks", f"{tmp_path}/masks", "--mask-split", "train", "--per-cell", "all"]


def evaluate(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipelines.evaluate", *arguments]
    variables = os.environ | {"TMPDIR": "/tmp"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=500)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("kind", ["records", "images", "files"])
def test_an_evaluation_writes_the_same_report_as_on_beam(kind, folder, tmp_path):
    where = [*evaluated(folder, tmp_path, kind), "--run", f"{folder}/run@1", "--run", f"second={folder}/run@2"]
    codes = []
    for engine in ("beam", "ray"):
        done = evaluate(*where, "--output", f"{tmp_path}/{engine}", "--engine", engine)
        codes.append((done.returncode, done.stdout.replace(f"/{engine}/", "/")))
        assert "error" not in done.stderr, done.stderr
    assert codes[0] == codes[1] and codes[0][0] == (0 if kind == "records" else 3)
    for name in ("pairs.jsonl", "metrics.json", "table.md", "report.html"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "beam" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("kind", ["images", "files"])
def test_a_pair_that_kills_its_process_fails_and_takes_no_other_along(kind, folder, killing, tmp_path):
    where = [*evaluated(folder, tmp_path, kind), "--run", f"{folder}/run@1"]
    assert evaluate(*where, "--output", f"{tmp_path}/beam").returncode == 3
    plan = "05.png once:01.png" + (" rounds" if kind == "images" else "")
    done = evaluate(*where, "--output", f"{tmp_path}/ray", *RAY, **killing, KILLED=plan)
    assert done.returncode == 3, done.stderr
    deaths = (tmp_path / "deaths").read_text().split()
    assert deaths.count("01.png") == 1 and deaths.count("05.png") >= 2
    ours, expected = lines_of(tmp_path / "ray/pairs.jsonl"), lines_of(tmp_path / "beam/pairs.jsonl")
    lost = [line for line in ours if "its process was killed 2 times" in line.get("error", "")]
    assert [line for line in ours if line not in lost] == [line for line in expected if "05.png" not in line["image"]]
    assert len(lost) == sum("05.png" in line["image"] for line in expected) > 0
    assert all("05.png" in line["image"] for line in lost)


# Options


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([*RAY, "--runner", "DirectRunner"], "--runner: expected without --engine ray, for it is an option of Apache"),
        ([*RAY, "--direct_num_workers=2"], "--direct_num_workers: expected without --engine ray"),
        ([*RAY, "--no-wait"], "--no-wait: expected without --engine ray, .*ray job submit --no-wait"),
        ([*RAY, "--gpus-per-actr", "1"], "unknown option --gpus-per-actr. Did you mean --gpus-per-actor"),
        ([*RAY, "--device", "cpu", "--gpus-per-actor", "1"], "--gpus-per-actor: cannot be combined with --device cpu"),
        ([*RAY, "--address", "127.0.0.1:1"], "--address: expected HOST:PORT .* Received 127.0.0.1:1: .*refused"),
        ([*RAY, "--address", "ray://h:10001"], "--address: expected HOST:PORT or auto, for Ray Data takes no client"),
        (["--address", "auto"], "--address: expected with --engine ray"),
        (["--gpus-per-actor", "0"], "--gpus-per-actor: expected with --engine ray"),
    ],
)
def test_an_option_of_the_other_engine_is_a_mistake_at_launch(more, message, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=f"^{message}"):
        main(options(tmp_path, "out", *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["flink", "Ray", ""])
def test_an_engine_that_does_not_exist_is_told_with_those_that_do(engine, tmp_path):
    with pytest.raises(UserError, match="--engine: invalid choice: .*choose from .?beam.?, .?ray"):
        main(options(tmp_path, "out", "--engine", engine))


@pytest.mark.parametrize("gpus", ["-1", "1.5", "many", "nan"])
def test_gpus_are_whole_ones_or_a_part_of_one(gpus, tmp_path):
    message = f"--gpus-per-actor: expected 0, a part of 1, or a whole number. Received {gpus}."
    with pytest.raises(UserError, match=re.escape(message)):
        main(options(tmp_path, "out", *RAY, f"--gpus-per-actor={gpus}"))


@pytest.mark.parametrize(
    ("machines", "gpus", "device", "expected"),
    [
        # One core: less than half of it counts for a network, so that two of them leave room for a task.
        ([{"CPU": 1}], None, "auto", Parts(0.2, 0.4, 0, 1, 1)),
        ([{"CPU": 1}, {"CPU": 1}], None, "auto", Parts(0.2, 0.4, 0, 1, 2)),
        ([{"CPU": 2}], None, "auto", Parts(0.4, 0.8, 0, 2, 1)),
        ([{"CPU": 9}], None, "auto", Parts(1, 4, 0, 8, 1)),
        ([{"CPU": 64}], None, "auto", Parts(1, 3.936, 0, 8, 12)),
        ([{}, {"CPU": 16, "GPU": 4}], None, "auto", Parts(1, 1, 1, 8, 4)),
        ([{"CPU": 2}, {"CPU": 16, "GPU": 4}], 0.5, "gpu", Parts(1, 1, 0.5, 8, 8)),
        ([{"CPU": 2, "GPU": 8}], None, "auto", Parts(0.4, 0.2, 1, 2, 8)),
        ([{"CPU": 16, "GPU": 4}], None, "cpu", Parts(1, 3.744, 0, 8, 3)),
        ([{}], None, "auto", Parts(0.2, 0.8, 0, 2, 1)),  # workers are to come
        ([{}], 1, "auto", Parts(0.2, 0.2, 1, 2, 1)),
    ],
)
def test_one_of_each_part_fits_on_the_smallest_machine(machines, gpus, device, expected):
    assert Parts.of(machines, gpus, device) == expected


@pytest.mark.parametrize("gpus", [0, 0.1, 0.5, 1])  # 1 // 0.1 is 9
def test_however_many_actors_a_machine_takes_a_task_fits_beside_them(gpus):
    """As many as fit: of a machine that is lost, all may be started again on one that had its own."""
    for sizes in itertools.combinations(range(1, 49), 2):
        machines = [{"CPU": float(size)} | ({"GPU": 4.0} if gpus else {}) for size in sizes]
        parts = Parts.of(machines, gpus, "auto")
        for machine in machines:
            room = machine["CPU"] / parts.actor_cpus
            taken = min(int(room + 1e-9), int(4 / gpus + 1e-9)) if gpus else int(room + 1e-9)
            left = machine["CPU"] - taken * parts.actor_cpus
            assert taken >= 1 and left >= parts.task_cpus - 1e-9, (machines, parts)
