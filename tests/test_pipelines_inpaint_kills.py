"""The inpainting job, killed at random moments: a real process and a real bucket, whose requests may fail at times."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import tarfile
import urllib.parse
from pathlib import Path

import pytest
from faults import ANY, DOWNLOAD, UPLOAD, Fault, proxied

from networks import small_config, write_run
from picture_files import block, counts, noise, save, save_mask
from pipelines.inpaint import main
from pipelines.inpainting.books import list_parts
from trainer import storage
from trainer.command import SOME_REJECTED

IMAGES, KILLS = 90, 10

# A program, to be run with -c: pipelines.inpaint, which writes its books after every few outputs.
OFTEN = """
import sys
from trainer.storage import attempts
attempts._PAUSE, attempts._DOUBT = 0.004, 0.1
from pipelines.inpainting import books
books.MOST_LINES = 4
from pipelines.inpaint import main
sys.exit(main(sys.argv[1:]))
"""

PACKING = """
from pipelines.inpainting import job, packs
job.Packer = lambda books, claim, digits, _: packs.Packer(books, claim, digits, 10_000)
"""


def every(period: int, first: int):
    return lambda number: number % period == first


def troubles() -> list[Fault]:
    """Too many requests, servers and gateways that fail, time that is up, connections and answers that are lost."""
    statuses = [Fault(status, ANY, every(23, 5 * n)) for n, status in enumerate([429, 503, 504, 408])]
    return [*statuses, Fault("closed", ANY, every(29, 3)), Fault("lost", UPLOAD, every(7, 4))]


def booked(output: str) -> set[str]:
    """Names of the outputs that the books have."""
    lines = [
        json.loads(line) for name in list_parts(output) for line in storage.read(f"{output}/.items/{name}").splitlines()
    ]
    return {line["output"] for line in lines if "output" in line}


def written(output: str) -> dict[str, object]:
    """By name the generation of each output: another one whenever it is written."""
    found = (address for address in storage.find(output) if address.endswith(".png"))
    return {storage.relative(address, output): storage.read_versioned(address)[1] for address in found}


def run_until(moment: int | None, command: list[str], log: Path, server: str, faults: list[Fault]) -> tuple[int, list]:
    """Exit code and requests of a command, which is killed when upload number ``moment`` arrives, if that is given."""
    started: list[subprocess.Popen] = []

    def kills(number: int) -> bool:
        if number == moment:
            started[0].kill()
        return False

    with proxied(server, Fault("lost", UPLOAD, kills), *faults) as proxy, open(log, "ab") as said:
        with subprocess.Popen(command, stdout=said, stderr=said) as process:
            started.append(process)
        return process.returncode, [urllib.parse.unquote(line) for line in proxy.lines]


def read_images(requests: list[str]) -> set[str]:
    """Names of the outputs whose images were read."""
    found = (line.partition("/in/")[2][:6] for line in requests if "/in/" in line and re.search(DOWNLOAD, line))
    return {f"{name[:2]}.png" for name in found}


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("faults", ["none", "many"])
def test_killed_at_ten_random_moments(faults, bucket, server, tmp_path):
    """No item twice, none missing, and what is in the books is neither read nor written again."""
    run = write_run(str(tmp_path / "run"), small_config(32))
    for number in range(IMAGES):
        save(f"{bucket}/in/{number:02d}.png", noise(24, 32, 3, number))
        save_mask(f"{bucket}/holes/{number:02d}.png", block(24, 32))
    storage.create(f"{bucket}/in/broken.png", b"no image")
    save_mask(f"{bucket}/holes/broken.png", block(24, 32))
    where = ["--images", f"{bucket}/in", "--masks", f"{bucket}/holes", "--hole", "black", "--run", run]
    assert main([*where, "--output", f"{bucket}/whole"]) == SOME_REJECTED
    output, log, rng = f"{bucket}/out", tmp_path / "log", random.Random(6)
    command = [sys.executable, "-c", OFTEN, *where, "--output", output]
    generations, ever, again = {}, set(), set()
    for kill in range(KILLS + 1):
        known, before = booked(output), written(output)
        left = max(1, IMAGES - len(before))
        # Before the last of its outputs, and early enough that later kills find something to be made.
        moment = rng.randint(1, max(1, min(left, 4 * left // (KILLS - kill + 1)))) if kill < KILLS else None
        chosen = troubles() if faults == "many" else []
        code, requests = run_until(moment, command, log, server, chosen)
        assert code == (-9 if kill < KILLS else SOME_REJECTED), log.read_text()
        assert storage.exists(f"{output}/manifest.json") == (kill == KILLS)
        assert kill < KILLS or all(fault.count for fault in chosen)
        read = read_images(requests)
        assert known.isdisjoint(read)
        again |= (before.keys() - known) & read
        generations = {**written(output), **generations}
        ever |= known
    names = {f"{number:02d}.png" for number in range(IMAGES)}
    assert written(output) == generations and generations.keys() == names
    assert len(ever) > IMAGES // 3  # else nothing was shown
    found = counts(output)
    assert (found["inputs"], found["outputs"], found["rejects"]) == (IMAGES + 1, IMAGES, 1)
    items = [json.loads(line) for line in storage.read(f"{output}/items.jsonl").splitlines()]
    assert sorted(line.get("output", "") for line in items) == ["", *sorted(names)]
    assert all(storage.read(f"{output}/{name}") == storage.read(f"{bucket}/whole/{name}") for name in names)
    print(
        f"{KILLS} kills; of {IMAGES} images {len(ever)} were in the books at one of them, none of which was made "
        f"again, and {len(again)} were written, but not yet in the books, and made again"
    )


@pytest.mark.soak
@pytest.mark.slow
def test_packs_killed_at_random_moments(bucket, server, tmp_path):
    """The same of outputs in tars, among failing requests: what a killed job has left of them is in no tar twice."""
    run = write_run(str(tmp_path / "run"), small_config(32))
    for number in range(IMAGES):
        save(f"{bucket}/in/{number:02d}.png", noise(24, 32, 3, number))
        save_mask(f"{bucket}/holes/{number:02d}.png", block(24, 32))
    where = ["--images", f"{bucket}/in", "--masks", f"{bucket}/holes", "--hole", "black", "--run", run]
    assert main([*where, "--output", f"{bucket}/whole"]) == 0
    output, log, rng, kills = f"{bucket}/out", tmp_path / "log", random.Random(6), 4
    program = OFTEN.replace("from pipelines.inpaint import main", f"{PACKING}\nfrom pipelines.inpaint import main")
    command = [sys.executable, "-c", program, *where, "--output", output, "--pack", "tar"]
    ever: set[str] = set()
    for kill in range(kills + 1):
        known = booked(output)
        moment = rng.randint(4, 9) if kill < kills else None  # a pack and its books are two uploads for four images
        code, requests = run_until(moment, command, log, server, troubles())
        assert code == (-9 if kill < kills else 0), log.read_text()
        assert storage.exists(f"{output}/manifest.json") == (kill == kills)
        assert known.isdisjoint(read_images(requests))
        ever |= known
    members = dict[str, bytes]()
    packs = sorted(storage.relative(name, output) for name in storage.find(output) if name.endswith(".tar"))
    assert packs == json.loads(storage.read(f"{output}/manifest.json"))["packs"]
    for name in packs:
        with tarfile.open(fileobj=io.BytesIO(storage.read(f"{output}/{name}"))) as tar:
            for member in tar:
                assert member.name not in members
                members[member.name] = tar.extractfile(member).read()
    assert members == {name: storage.read(f"{bucket}/whole/{name}") for name in written(f"{bucket}/whole")}
    found = counts(output)
    assert (found["inputs"], found["outputs"], found["rejects"]) == (IMAGES, IMAGES, 0)
    assert found["finished_before"] == len(ever) > kills
    print(f"{kills} kills; {len(ever)} of {IMAGES} images were in the books at one of them")
