"""Prints the dependencies of a pyproject.toml with the given extras, one requirement per line.

python3 docker/requirements.py pyproject.toml gpu,cluster
"""

from __future__ import annotations

import sys
from pathlib import Path

import tomllib


def requirements(project: dict, extras: list[str]) -> list[str]:
    """Dependencies of the table ``project``, then those of ``extras``. Raises KeyError for an unknown extra."""
    return [*project["dependencies"], *(need for e in extras for need in project["optional-dependencies"][e])]


if __name__ == "__main__":
    file, extras = sys.argv[1:]
    table = tomllib.loads(Path(file).read_text(encoding="utf-8"))["project"]
    print(*requirements(table, [name for name in extras.split(",") if name]), sep="\n")
