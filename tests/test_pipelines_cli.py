"""`pconv` in processes of its own: the commands it leads to, what it says of itself, completion in a real bash."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import cli
from trainer.command import ArgumentParser

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "pipelines.cli"]


def call(*arguments, **options):
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=600, **options)


def test_the_installed_program_is_this_module():
    installed = Path(sys.executable).with_name("pconv")
    if not installed.exists():
        pytest.skip("the project's scripts are not installed here")
    done = subprocess.run([installed, "--version"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.startswith("pconv "), done


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_has_the_options_of_its_module_under_its_own_name(name, monkeypatch):
    module = cli.COMMANDS[name].load()
    as_module = module.parser()
    assert as_module.prog == f"python -m {cli.COMMANDS[name].module}"
    monkeypatch.setattr("trainer.command._NAMES", {})
    cli.rename_commands({command.module: f"pconv {name}" for name, command in cli.COMMANDS.items()})
    ours = module.parser()
    assert ours.prog == f"pconv {name}" and "python -m" not in ours.format_usage()
    options = [[action.option_strings, action.default] for action in ours._actions]
    assert options == [[action.option_strings, action.default] for action in as_module._actions]


def test_the_help_page_lists_all_and_a_slip_is_named():
    page = call()
    assert page.returncode == 0 and page.stdout == call("--help").stdout
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^    {name} +{re.escape(command.help)}$", page.stdout, re.MULTILINE), name
    slip = call("inpant")
    assert slip.returncode == 2 and slip.stdout == ""
    assert slip.stderr.count("\n") == 1 and slip.stderr.endswith("Received 'inpant'. Did you mean inpaint?\n")
    wrong = call("masks", "--output", "x", "--cuont", "3")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "error: unknown option --cuont. Did you mean --count? (pconv masks --help lists the options)\n"
    )


def test_a_job_gives_the_bytes_of_its_module(tmp_path):
    options = ["--count", "3", "--size", "32", "--output"]
    assert call("masks", *options, tmp_path / "a").returncode == 0
    done = subprocess.run([sys.executable, "-m", "pipelines.build_masks", *options, tmp_path / "b"], timeout=600)
    assert done.returncode == 0
    files = {path.name for path in (tmp_path / "b").iterdir()}
    assert len(files) >= 3
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_version_names_the_commit(monkeypatch, tmp_path):
    environment = os.environ | {"PCONV_COMMIT": "0123abc"}
    assert call("--version", env=environment).stdout.endswith("+0123abc\n")
    environment.pop("PCONV_COMMIT")
    found = call("--version", env=environment).stdout.strip()
    if shutil.which("git") and (ROOT / ".git").exists():
        head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert head.stdout.startswith(re.fullmatch(r"pconv [\d.]+\+([0-9a-f]{12})(-dirty)?", found)[1])
    # As pip writes it for what was installed from a repository, and for a wheel.
    for text, ends in (('{"vcs_info": {"commit_id": "%s"}}' % ("ab" * 20), "+" + "ab" * 6), (None, "")):
        monkeypatch.setattr("importlib.metadata.PathDistribution.read_text", lambda self, name, text=text: text)
        monkeypatch.setattr(cli, "__file__", str(tmp_path / "pipelines" / "cli.py"))
        monkeypatch.setattr(cli, "code_version", lambda: "1.2")
        assert cli.version() == "1.2" + ends


def completions(script: Path, line: str) -> set[str]:
    """What bash offers at the end of ``line``."""
    words = line.split(" ")
    program = f"""
        source {script}
        COMP_WORDS=({" ".join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}
        COMP_LINE={line!r}; COMP_POINT={len(line)}
        $(complete -p pconv | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in done.stdout.split()}


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_commands_options_and_values(tmp_path):
    (tmp_path / "script").write_text(call("completion", "bash").stdout)
    assert completions(tmp_path / "script", "pconv in") == {"inpaint"}
    assert {"masks", "train", "doctor", "completion"} <= completions(tmp_path / "script", "pconv ")
    assert completions(tmp_path / "script", "pconv masks --cou") == {"--count"}
    assert completions(tmp_path / "script", "pconv masks --no-w") == {"--no-wait"}  # of all jobs
    assert completions(tmp_path / "script", "pconv train --preset ") >= {"demo", "paper"}


@pytest.mark.parametrize("shell", [shell for shell in cli.SHELLS if shell != "bash"])
def test_other_shells_have_a_script_with_every_command(shell):
    done = call("completion", shell)
    assert done.returncode == 0, done.stderr
    for name in (*cli.COMMANDS, "num-shards"):
        assert name in done.stdout


def test_a_name_that_nothing_renames_stays():
    parser = ArgumentParser(prog="python -m trainer.nothing", description="see python -m trainer.nothing.")
    assert (parser.prog, parser.description) == ("python -m trainer.nothing", "see python -m trainer.nothing.")
