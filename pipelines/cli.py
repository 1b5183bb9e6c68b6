"""Image inpainting with partial convolutions: one program for all commands.

    pconv demo                          # every stage for real, small: ends with demo/report/report.html
    pconv inpaint --help                # the options of one command
    pconv doctor gs://B/images          # what works here and what does not, and what to do
    pconv completion bash               # a script for the shell: the Tab key then completes commands and options

Each command is a module too, such as trainer.train, which python -m runs with the same options.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from trainer.command import ArgumentParser, code_version, quiet_imports, rename_commands, run_command
from trainer.errors import UserError

SHELLS = {  # what makes a completion script work in every session
    "bash": """eval "$(pconv completion bash)" in ~/.bashrc""",
    "zsh": "pconv completion zsh > DIR/_pconv, where DIR is in fpath",
    "fish": "pconv completion fish > ~/.config/fish/completions/pconv.fish",
    "tcsh": "pconv completion tcsh > ~/.pconv.tcsh, and source it in ~/.tcshrc",
}


class Command(NamedTuple):
    """A command of `pconv`.

    Attributes:
        module: that has its ``parser()`` and ``main(argv)``.
        help: what it does, in a line.
        beam: whether Beam's options may follow its own.
    """

    module: str
    help: str
    beam: bool = False

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)


COMMANDS = {
    "masks": Command("pipelines.build_masks", "draw hole masks", beam=True),
    "images": Command("pipelines.build_imagenet", "turn images into TFRecords", beam=True),
    "train": Command("trainer.train", "train the network, or continue a run"),
    "inpaint": Command("pipelines.inpaint", "inpaint images", beam=True),
    "evaluate": Command("pipelines.evaluate", "score runs and classical methods by hole ratio", beam=True),
    "export": Command("trainer.export", "export a checkpoint: .keras, SavedModel, ONNX"),
    "import": Command("trainer.import_weights", "begin a run with published or the starter's weights"),
    "demo": Command("pipelines.demo", "every stage for real, on a small scale"),
    "try": Command("pipelines.try_out", "a page to paint holes on and see them filled"),
    "doctor": Command("pipelines.doctor", "say what works here, what does not, and what to do"),
}


def version() -> str:
    """Version and commit: of an image, of ``pip install git+...``, of a checkout, or the version alone."""
    text = code_version()
    return text if "+" in text or not (commit := _commit()) else f"{text}+{commit}"


def _commit() -> str | None:
    origin = json.loads(importlib.metadata.distribution("pconv").read_text("direct_url.json") or "{}")
    if commit := origin.get("vcs_info", {}).get("commit_id"):
        return commit[:12]
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def parser() -> ArgumentParser:
    """Options before a command, and the commands; `complete` adds what each of them takes."""
    parser = ArgumentParser(prog="pconv", description=__doc__)
    parser.add_argument("--version", action="version", version=f"pconv {version()}", help="print version and commit")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    completion = commands.add_parser("completion", help="print a shell's completion script")
    completion.add_argument("shell", choices=list(SHELLS))
    return parser


def complete(shell: str) -> str:
    """A completion script for one of `SHELLS`, with a comment that says what to do with it."""
    import shtab

    full = argparse.ArgumentParser(prog="pconv", add_help=False)
    full.add_argument("--version", action="version", version="")
    commands = full.add_subparsers()
    with quiet_imports():
        from pipelines.launch import add_options
    for name, command in COMMANDS.items():
        own = command.load().parser()
        if command.beam:
            add_options(own)
        for action in own._actions:
            action.choices = action.choices and list(action.choices)  # shtab takes a mapping for subcommands
            if action.nargs != 0 and action.choices is None and action.type is None:
                action.complete = shtab.FILE  # shtab's mark; an address may be a path
        commands.add_parser(name, help=command.help, parents=[own], add_help=False)
    commands.add_parser("completion", help="print a shell's completion script").add_argument(
        "shell", choices=list(SHELLS)
    )
    script = shtab.complete(full, shell).rstrip("\n")
    return f"{script}\n# To have it in every shell: {SHELLS[shell]}"


def main(argv: Sequence[str]) -> int:
    rename_commands({command.module: f"pconv {name}" for name, command in COMMANDS.items()})
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]].load().main(argv[1:]) or 0
    if argv and not argv[0].startswith("-") and argv[0] != "completion":
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"expected one of {', '.join(COMMANDS)}, completion. Received {argv[0]!r}.{hint}")
    ours = parser().parse_args(argv)
    if ours.command is None:
        parser().print_help()
        return 0
    print(complete(ours.shell))
    return 0


def run() -> None:
    """The console script."""
    run_command(main)


if __name__ == "__main__":
    run()
