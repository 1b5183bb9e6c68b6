"""Prints a file with ${PCONV_NAME}, ${PCONV_NAME:-default} and ${PCONV_NAME:+text} replaced from the environment.

    python infra/fill.py infra/ray/cluster.yaml > cluster.local.yaml

As in a shell, the default is for a variable that is not set or empty, and the text for one that is neither. Other
shell variables stay as they are. Exit code 2 if a variable without a default is not set.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

VARIABLE = re.compile(r"\$\{(PCONV_[A-Z_]+)(?::([-+])([^}]*))?\}")


def fill(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its variables replaced. Raises KeyError for one that has neither a value nor a default."""

    def value(match: re.Match) -> str:
        name, sign, text = match.groups()
        if sign == "+":
            return text if values.get(name) else ""
        return values.get(name) or (values[name] if sign is None else text)

    return VARIABLE.sub(value, text)


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    with open(argv[0], encoding="utf-8") as file:
        text = file.read()
    try:
        print(fill(text, os.environ), end="")
    except KeyError as error:
        name = error.args[0]
        print(f"error: {name} is not set; `terraform output environment` or infra/README.md gives it", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
