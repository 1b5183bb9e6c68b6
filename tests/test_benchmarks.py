"""Every benchmark runs at its smallest size and prints its form; no number of it is looked at."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import presets, train
from trainer.training.progress.events import Speed, StepDone

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "benchmarks"
NUMBER = r"-?[\d,]+(\.\d+)?"

# By command line, regular expressions of the lines on stdout; # is a number, a space any number of them.
PRINTED = {
    "classical.py": [
        r"1 photographs of 64 x 64, 1 masks each per interval",
        *(
            line
            for method in ("Telea", "Navier-Stokes")
            for line in (rf"{method} 1 3", *6 * [r"\(0\.\d+, 0\.\d\] # #"], r"all # #")
        ),
    ],
    "draw_masks.py shapes": [
        r"masks of 64 x 64 per second on one core \(ratio to plain\), medians of 1",
        r"draw draw \+ encode",
        r"plain # \(1\.000\) # \(1\.000\)",
        r"shapes # \(#\) # \(#\)",
    ],
    "evaluate.py demo": [
        r"12 masks in .*",
        r"demo: 12 pairs of 64 x 64, 48 images, # s: baselines # s \(#%\), metrics # s \(#%\), network # s \(#%\), "
        r"rest # s \(#%\)",
        r"demo: network and metrics #%, with the baselines #%; of all but the baselines #%",
    ],
    "exchange.py": [
        r"# parameters, # MB of gradients, 1 Gbit/s each way, 1 ms",
        r"one pack, after the backward pass # ms a step # x the first",
        r"packs of 8 MB # ms a step # x the first",
        r"packs of 2 MB # ms a step # x the first",
        r"packs of 8 MB, bfloat16 # ms a step # x the first",
        r"no exchange # ms a step # x the first",
    ]
    if os.geteuid() == 0 and shutil.which("tc") and Path("/dev/net/tun").exists()
    else [r"skipped: .*"],
    "imagenet.py --only again": [
        r"",
        r"again",
        r"20 photographs, whole # s, # s of the processor",
        r"again after 90 % of its shards # s, # s of the processor",
        r"again over whole # #",
    ],
    "imagenet.py --only sizes": [r"", r"sizes", r"4 photographs # ms each, after # s for the start and 2 photographs"],
    "inpaint.py float32": [
        r"18 images: 18 inpainted; .*",
        r"36 images: 0 inpainted, 36 without holes; .*",
        r"float32: bare loop # images/s, end to end # images/s, #% of it",
        r"float32: no holes # ms per image, #% of one with holes",
    ],
    "mask_job.py": [
        r"bare draw \+ encode, one process \(baseline\) # masks/s 1\.00",
        r"job, 1 process # masks/s # \(24 masks in # s with the start\)",
    ],
    "metrics.py": [
        r"step of 1 x 32 x 32: # ms, with metrics # ms, ratio #; to tell of one takes # us, #% of it",
    ],
    "network.py float32": [
        r"",
        r"layers, float32, batch 1, forward and backward, ms \(ratio to plain\)",
        r"input plain partial textbook",
        *(
            rf"{name} {shape} # # \(#\) # \(#\)"
            for name, shape in (
                *(("PConv1", r"32x32x3"), ("PConv2", r"16x16x4")),
                *(("PConv3", r"16x16x8\+4"), ("PConv4", r"32x32x4\+3")),
            )
        ),
        r"sum # # \(#\) # \(#\)",
        *(
            rf"{what} float32 plain # ms # images/s partial # ms # images/s ratio #"
            for what in ("step", "step with VGG", "inference")
        ),
    ],
    "ray_engine.py tiny": [r"tiny images: Beam in process # ms each \(baseline\), Ray # ms each, # times"],
    "ray_engine.py large": [
        rf"2 images of 0 megapixels, {engine}: at most # GB, of processes # GB, of the object store # GB; # s an image"
        for engine in ("beam", "ray")
    ],
    "scale.py": [
        r"300 images: .*; sim://b/out",
        r"resume 300: # s, # us an item \(# of them the bucket's\), launcher # MB and # requests, job # MB, # requests",
        r"40 images: 40 inpainted; sim://b/out",
        r"images 40 of 48 x 48: # ms each by itself, overhead # ms, # requests an image, job # MB",
        r"kills 60: 1 kills, 60 outputs \+ 0 rejects, none written twice, 0 of the books made again, # that were "
        r"written but not yet in the books",
    ],
    "starter.py": [r"skipped: --output OUT trains for hours"],
    "starter_gpu.py": [r"skipped: --output OUT trains on a GPU"],
    "reader.py 128": [
        r"128 pixels, 7 kB examples/s: plain # reused # reader # reader over plain #, over reused #",
        r"target # ms, decoder alone, at full size # ms, mask # ms",
    ],
}


def test_every_benchmark_is_tested():
    scripts = {command.split()[0] for command in PRINTED} | {"learning.py", "training.py"}
    assert scripts == {path.name for path in FOLDER.glob("[!_]*.py")}


def check_lines(lines: list[str], patterns: list[str]) -> None:
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern.replace("#", NUMBER), " ".join(line.split())), (line, pattern)


# Those that take longest, of which other tests use what they measure.
LONG = ("evaluate.py demo", "exchange.py", "inpaint.py float32", "metrics.py", "network.py float32")
LONG += ("ray_engine.py tiny", "ray_engine.py large")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.soak if name in LONG else ()) for name in PRINTED]
)
def test_a_benchmark_prints_its_form(command):
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        env=os.environ | {"SMALL": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    check_lines(done.stdout.splitlines(), PRINTED[command])


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark at its smallest size."""
    monkeypatch.setenv("SMALL", "1")
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "_timing", raising=False)

    def load_module(name: str):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load_module
    sys.modules.pop("_timing", None)


def parse(module: str, options: list[str]):
    """The options as the command itself reads them; it does not run: Ray alone would take minutes of one core."""
    if module == "trainer.train":
        parsed = train.parser().parse_args(options)
        parsed.config = presets.resolve_config(parsed.preset, parsed.set)
        return parsed
    return importlib.import_module(module).parser().parse_args(options)


def progress_lines(total_steps: int, images_per_second: float) -> Iterator[str]:
    """What a training prints, a line per step."""
    for step in range(1, total_steps + 1):
        first = step == 1  # which is compiled
        speed = Speed(
            images_per_second=None if first else images_per_second,
            data_wait=0.01,
            eta_seconds=None if first else 2.0,
        )
        yield str(StepDone(step=step, total_steps=total_steps, phase="initial", terms={"total": 0.2}, speed=speed))


def test_training_prints_a_row_per_run(load, monkeypatch, capsys):
    benchmark, runs = load("training"), {}

    def call(module: str, *options: str, cores=()):
        parsed = parse(module, options)
        if module != "trainer.train":
            return ""
        runs[Path(parsed.run).name] = (parsed.config.scaling.workers, len(cores), parsed.config.total_steps)
        return "\n".join(progress_lines(parsed.config.total_steps, 20.0 * parsed.config.scaling.workers))

    monkeypatch.setattr(benchmark, "call", call)
    monkeypatch.setattr(benchmark.os, "sched_getaffinity", lambda _: {0, 1})
    benchmark.main(benchmark.ROWS)
    printed, said = capsys.readouterr()
    assert runs.pop("run-saving") == (2, 2, 3 * benchmark.EVERY)
    assert runs == {"run-one": (1, 1, 4), "run-apart-0": (1, 1, 4), "run-apart-1": (1, 1, 4), "run-two": (2, 2, 4)}
    table = [r"predicted efficiency for # s per step \(.*\), ring, no overlap:", r"GPUs 100 Gbit/s NVLink 450 GB/s"]
    table += [rf"{gpus} #% #%" for gpus in (8, 64, 256)]
    check_lines(
        printed.splitlines(),
        [
            r"one worker, one core \(baseline\) 20.00 images/s 1.00 waits for data 1.0 % of the time",
            r"two runs apart 40.00 images/s 2.00 waits for data 1.0 % of the time",
            r"two workers 40.00 images/s 2.00 waits for data 1.0 % of the time",
            r"checkpoints every 4 steps cost 0.0% of throughput",
            *("", r"all-reduce of preset demo: # MB per step \(float32 gradients\)", *table),
            *("", r"all-reduce of preset paper: # MB per step \(float32 gradients\)", *table),
        ],
    )
    assert said.count("\n") == 5 and all(line.startswith("... ") for line in said.splitlines())


def test_the_cost_of_checkpoints_is_what_their_steps_take_longer(load):
    """Four lines a period, of which the first two, while a checkpoint is written, take 1.5 times as long."""
    rates = [20.0, 20.0, 20.0] + 2 * [20 / 1.5, 20 / 1.5, 20.0, 20.0]
    assert load("training").checkpoint_cost(rates) == pytest.approx(1 - 1 / 1.25)


def test_learning_trains_and_scores_on_disjoint_photographs(load, monkeypatch, capsys, tmp_path):
    benchmark, called = load("learning"), []

    def call(module: str, *options: object):
        parsed = parse(module, [str(option) for option in options])
        called.append((module, parsed))
        if module == "pipelines.evaluate":
            (tmp_path / "report").mkdir()
            (tmp_path / "report" / "table.md").write_text("# Scores\n")

    monkeypatch.setattr(benchmark, "call", call)
    benchmark.main(["--output", str(tmp_path), "--set", "initial.steps=2"])
    assert capsys.readouterr().out == "13 photographs for training, 1 held out\n# Scores\n\n"
    modules = [module for module, _ in called]
    assert modules == [f"pipelines.{name}" for name in ("build_imagenet", "build_masks", "build_masks")] + [
        "trainer.train",
        "pipelines.evaluate",
    ]
    assert called[3][1].config.initial.steps == 2
    train_names, held_out = ({p.name for p in (tmp_path / "photos" / s).rglob("*.jpg")} for s in ("train", "val"))
    assert len(train_names) == 13 and len(held_out) == 1 and not train_names & held_out
