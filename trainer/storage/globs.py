"""Patterns for file names: which names match, and the folder that they are relative to."""

from __future__ import annotations

import fnmatch
import re

_WILDCARD = re.compile(r"[*?\[]")


def fixed_folder(pattern: str) -> str | None:
    """The folder before the first wildcard; None if there is no wildcard."""
    wildcard = _WILDCARD.search(pattern)
    return pattern[: wildcard.start()].rpartition("/")[0] if wildcard else None


def compile_glob(pattern: str) -> re.Pattern:
    """``**/`` is any number of folders, ``**`` anything; ``*``, ``?``, ``[a-z]``, ``[!a]`` stay within a folder."""
    rules = {"**/": "(?s:.*/)?", "**": "(?s:.*)", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", pattern)
    sets = {p: "(?!/)" + fnmatch.translate(p)[:-2] for p in parts[1::2]}  # without the \Z at its end
    return re.compile("".join(rules.get(p) or sets.get(p) or re.escape(p) for p in parts))


def escape(name: str) -> str:
    """The pattern that matches just ``name``."""
    return re.sub(r"([*?\[])", r"[\1]", name)
