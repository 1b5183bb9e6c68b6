"""What the pages and files of infra/ say of each other: datasets, variables, options, versions."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("commands", ROOT / "tests/test_infra_commands.py")
commands = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(commands)


def datasets_of(line: str) -> tuple[list[str], list[str]]:
    """Addresses in buckets that a command reads as its datasets and run, and those that it makes."""
    words = shlex.split(line)
    options = list(zip(words, words[1:], strict=False))
    reads = ("--images", "--masks", "--run") if "trainer.train" not in line else ("--images", "--masks")
    makes = "--run" if "trainer.train" in line else "--output"
    return [b for a, b in options if a in reads], [b for a, b in options if a == makes]


def test_each_stage_reads_what_an_earlier_one_has_made():
    lines = commands.commands_of((ROOT / "infra/README.md").read_text("utf-8"))
    made, jobs = [], 0
    for line in lines:
        line = re.sub(r"\$(PCONV_(?:DATA|RUNS|BATCH))", lambda match: commands.ENVIRONMENT[match[1]], line)
        reads, makes = datasets_of(line)
        for address in reads:
            assert address in made or address.startswith(commands.ENVIRONMENT["PCONV_BATCH"]), line
        made += makes
        jobs += bool(reads)
    assert jobs == 6  # training; filling and scoring, on Dataflow (filling with GPUs, too) and on Ray
    reads, (run,) = datasets_of(commands.entrypoint("rayjob.yaml"))
    assert set(reads) <= set(made) and len(reads) == 2 and run.startswith(commands.ENVIRONMENT["PCONV_RUNS"] + "/runs/")
    (*reads, trained), (output,) = datasets_of(commands.entrypoint("inpaint.yaml"))
    batch = commands.ENVIRONMENT["PCONV_BATCH"]
    assert reads == [f"{batch}/in/**", f"{batch}/holes/**"] and trained == run and output.startswith(f"{batch}/out/")


def test_the_python_on_a_page_runs():
    blocks = [
        block
        for page in commands.READMES
        for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    ]
    for block in blocks:
        exec(compile(block, "README", "exec"), {})
    assert len(blocks) >= 2


def variables_of(text: str) -> set[str]:
    return set(re.findall(r"\$\{?(PCONV_[A-Z_]+)(?![A-Z_]|:[-+])", text))


def test_outputs_of_terraform_are_the_values_that_the_other_folders_ask_for():
    terraform = {path.stem: path.read_text("utf-8") for path in (ROOT / "infra/terraform").glob("*.tf")}
    given = set(re.findall(r"^ {6}([A-Z]+) +=", terraform["outputs"], re.MULTILINE))
    buckets = re.search(r"buckets = \{\n(.*?)^  \}", terraform["buckets"], re.MULTILINE | re.DOTALL)[1]
    given |= {name.upper() for name in re.findall(r"^ {4}(\w+)", buckets, re.MULTILINE)}
    accounts = re.findall(r"^ {4}([\w-]+) +?= \{ read =", terraform["identities"], re.MULTILINE)
    given |= {name.upper().replace("-", "_") + "_ACCOUNT" for name in accounts}
    given = {f"PCONV_{name}" for name in given}
    page = (ROOT / "infra/README.md").read_text("utf-8")
    exported = {name for line in re.findall("^export (.*)$", page, re.MULTILINE)
                for name in re.findall(r"(PCONV_\w+)=", line)}  # fmt: skip
    files = [p for p in (ROOT / "infra").rglob("*") if p.suffix in (".yaml", ".sh", ".md") and "local" not in p.parts]
    asked = set().union(*(variables_of(path.read_text("utf-8")) for path in files))
    script = (ROOT / "infra/beam/dataflow.sh").read_text("utf-8")
    asked |= {f"PCONV_{name}" for name in re.search(r"for variable in (.*);", script)[1].split()}
    asked.discard("PCONV_COMMIT")  # the scripts set it themselves
    assert len(asked) >= 15 and asked <= given | exported, asked - given - exported
    assert given - {"PCONV_NAME"} <= asked | {f"PCONV_{name}_ACCOUNT" for name in ("MASKS", "IMAGENET", "INFERENCE",
                                                                                  "EVALUATION")}  # fmt: skip


@pytest.mark.parametrize("page", commands.READMES)
def test_every_option_that_a_page_speaks_of_exists(page):
    """Also outside commands, as in `--holes alpha`: our sources name it, Beam has it, or a program elsewhere."""
    sources = [p for top in ("masks", "trainer", "pipelines", "infra", "docker") for p in (ROOT / top).rglob("*")
               if p.suffix in (".py", ".sh", ".Dockerfile")]  # fmt: skip
    known = set().union(*(re.findall(r"--[a-z][\w-]*", path.read_text("utf-8")) for path in sources))
    beam_options = argparse.ArgumentParser(add_help=False)
    for kind in dict.fromkeys(PipelineOptions.__subclasses__()):
        kind._add_argparse_args(beam_options)
    known.update(*(action.option_strings for action in beam_options._actions), *commands.ELSEWHERE.values())
    known |= {"--build-arg"}  # docker's
    text = (ROOT / page).read_text("utf-8")
    spoken = set(re.findall(r"(?<![\w|-])--[a-z][\w-]*", re.sub(r"^ray .*$", "", text, flags=re.MULTILINE)))
    assert len(known) > 200 and spoken <= known, spoken - known


def test_the_flink_versions_are_those_of_the_installed_beam():
    *first, last = FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    assert f"Flink {', '.join(first)} and {last};" in (ROOT / "infra/README.md").read_text("utf-8")
    assert f"{', '.join(first)} or {last};" in (ROOT / "infra/beam/flink.sh").read_text("utf-8")
