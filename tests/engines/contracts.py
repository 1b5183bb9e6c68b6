"""What holds of buckets on any service: the tests of tests/ that use one, run on the service that ``--store`` names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

# By what the line of the engine calls them.
SUITES = {"storage": "test_trainer_storage*.py", "checkpoints": "test_trainer_checkpoints_*.py"}
FIVE_COMMANDS = "test_end_to_end.py"


def run_tests(files: str, store: str, **variables: str) -> int:
    """How many tests of the files passed with buckets of ``store``; fails with their output if one does not."""
    command = [sys.executable, "-m", "pytest", "-q", "--store", store, "-p", "no:cacheprovider"]
    command += sorted(str(path) for path in TESTS.glob(files))
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, env=os.environ | variables)
    found = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and found, done.stdout[-8000:] + done.stderr[-2000:]
    return int(found[1])
