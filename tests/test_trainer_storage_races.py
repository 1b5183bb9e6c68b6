"""Two processes write the same pointer at the same moment, again and again: each time one of them wins."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainer import storage

ROUNDS = 200
# Of each round it reads, waits to be told, and writes; it says what it read, and whether its own value is there now.
WRITER = """
import sys
from trainer import storage

address, name = sys.argv[1:]
for line in sys.stdin:
    data, generation = storage.read_versioned(address)
    print((data or b"none").decode(), flush=True)
    sys.stdin.readline()
    try:
        storage.replace(address, f"{name} {line.strip()}".encode(), generation)
        print("won", flush=True)
    except storage.Conflict:
        print("lost", flush=True)
"""


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_of_two_writers_of_a_pointer_exactly_one_wins(place, request, tmp_path):
    address = (str(tmp_path) if place == "folder" else request.getfixturevalue("bucket")) + "/latest.json"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, address, name], **pipes) for name in "ab"]
    value, wins = "none", {"a": 0, "b": 0}
    try:
        for number in range(ROUNDS):
            for writer in writers:
                print(number, file=writer.stdin, flush=True)
            assert [writer.stdout.readline().strip() for writer in writers] == [value, value]
            for writer in writers[:: 1 if number % 2 else -1]:
                print("go", file=writer.stdin, flush=True)
            ends = [writer.stdout.readline().strip() for writer in writers]
            assert sorted(ends) == ["lost", "won"], number
            winner = "ab"[ends.index("won")]
            wins[winner] += 1
            value = storage.read(address).decode()
            assert value == f"{winner} {number}"
    finally:
        for writer in writers:
            writer.stdin.close()
            writer.stdout.close()
            writer.wait()
    print(f"of {ROUNDS} rounds a won {wins['a']}, b {wins['b']}")
