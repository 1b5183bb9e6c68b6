"""The inpainting job on a simulated bucket: millions of items listed, matched and resumed; tiny images; kills.

    python tests/benchmarks/scale.py                        # all of it, with the counts below
    python tests/benchmarks/scale.py resume 1000000         # so many items, all finished before
    python tests/benchmarks/scale.py images 100000          # so many tiny images, made by a stand-in for the network
    python tests/benchmarks/scale.py images 100000 --pack tar   # the same in tars
    python tests/benchmarks/scale.py kills 20000            # killed ten times, then with requests that fail

The bucket is a formula (`_simulated`), its requests are counted, and the job's own code runs on it, in one process and
on one core: time is that of the processor, the bucket's share among it, and memory the highest of a process.
`images` also runs what is done to an image by itself (decode, fill, encode): the job's overhead is what it takes more.
"""

import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time

from _timing import SMALL, progress

from trainer.command import quiet_imports

with quiet_imports():
    import _simulated
    from _simulated import ROOT, SIDE, SimulatedStore, finish_all, name_of

    from pipelines import inpaint, launch
    from pipelines.inpainting import loading
    from pipelines.inpainting.inputs import Item
    from pipelines.inpainting.loading import Files, Settings
    from pipelines.inpainting.outputs import encode
    from pipelines.transforms import model_handler
    from pipelines.transforms.model_handler import Filled, FillModelHandler
    from trainer import checkpoints, storage
    from trainer.config import PhaseConfig, TrainConfig
    from trainer.inference.pins import ModelPin

COUNTS = {"resume": (300,), "images": (40,), "kills": (60,)} if SMALL else {}
COUNTS = COUNTS or {"resume": (1_000_000, 10_000_000), "images": (100_000,), "kills": (20_000,)}
ARGUMENTS = ["--images", f"{ROOT}/in", "--masks", f"{ROOT}/holes", "--hole", "black", "--output", f"{ROOT}/out"]
KILLS = 1 if SMALL else 10


class Network:
    """Nothing to load."""


class StandIn(FillModelHandler):
    """Fills holes with black."""

    def prepare(self):
        """Imports nothing."""

    def load_model(self):
        return Network()

    def run_inference(self, batch, model):
        return [Filled(fill(pair), 1, 0.0) for pair in batch]


def fill(pair):
    pixels = pair.image.copy()
    pixels[pair.mask == 0] = 0
    return pixels


def peak():
    """MB of memory that this process has had at most; not ru_maxrss, which starts at the parent's."""
    with open("/proc/self/status") as status:
        return int(status.read().partition("VmHWM:")[2].split()[0]) / 1024


def forget_peak():
    """What this process has had until now, and no longer has, does not count: the formula is sorted once."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def seconds():
    """Processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_job(store, *options):
    """Runs the command on a store; its exit code, seconds, and the launcher's memory."""
    storage.SCHEMES["sim"], found, run = store, {}, launch.run_pipeline
    pin = ModelPin(
        checkpoint=checkpoints.Pin(address=f"{ROOT}/run/step", crc32c="AAAAAA=="),
        config=TrainConfig(initial=PhaseConfig(steps=1)),
    )

    def run_told(*arguments, **more):
        found["launcher"] = peak()
        found["at launch"] = sum(store.requests.values())
        run(*arguments, **more)

    model_handler.FillModelHandler, inpaint.find_network = StandIn, lambda _: pin
    launch.run_pipeline = run_told
    begin = seconds()
    code = inpaint.main([*ARGUMENTS, "--run", f"{ROOT}/run", *options])
    launch.run_pipeline = run
    return found | {"code": code, "seconds": seconds() - begin, "peak": peak()}


def manifest():
    return json.loads(storage.read(f"{ROOT}/out/manifest.json"))


def ask_all(store):
    """Seconds that the formula takes for what the job has to ask: lists of inputs, outputs twice, and books twice."""
    begin = seconds()
    for folder in (*_simulated.SETS, "out", "out"):
        for _ in store.entries(f"{ROOT}/{folder}", True):
            pass
    for _ in range(2):
        for part in store.entries(f"{ROOT}/out/.items", False):
            store.read_versioned(part.address)
    return seconds() - begin


def resume(count):
    """Every item is finished: lists, matches, looks up, reports."""
    store = SimulatedStore(count)
    finish_all(store)
    forget_peak()
    found = run_job(store)
    counts = manifest()["counts"]
    assert counts["outputs"] == counts["finished_before"] == count and not counts["rejects"], counts
    assert not [name for name in store.writes if name.endswith(".png")]
    asked = sum(store.requests.values())
    each, bucket = (1e6 * spent / count for spent in (found["seconds"], ask_all(store)))
    print(
        f"resume {count:,}: {found['seconds']:.0f} s, {each:.0f} us an item ({bucket:.0f} of them the bucket's), "
        f"launcher {found['launcher']:.0f} MB and {found['at launch']} requests, job {found['peak']:.0f} MB, "
        f"{asked:,} requests",
        flush=True,
    )


def bare(store, count):
    """Seconds of what is done to an image, by itself."""
    begin = seconds()
    settings = Settings(hole="black", mask_reading=loading.BY_CONTENT)
    for number in range(count):
        image, mask = (
            store.read_versioned(f"{ROOT}/{folder}/{name_of(number)}{end}")[0]
            for folder, end in _simulated.SETS.items()
        )
        item = Item(f"{ROOT}/in/{name_of(number)}.jpg", "mask", name_of(number))
        ((task, pair),) = loading.load_item(Files(item, image, (mask,), 0.0), settings)
        encode(fill(pair), task.metadata, settings)
    return seconds() - begin


def images(count, *options):
    """Tiny images, all new; ``options`` of the command, such as --pack tar."""
    store = SimulatedStore(count)
    alone = bare(store, max(40, count // 20)) / max(40, count // 20)
    store.requests.clear()
    found = run_job(store, *options)
    assert manifest()["counts"]["outputs"] == count and max(store.writes.values()) < 2 * count
    asked = sum(store.requests.values()) / count
    over = found["seconds"] / count - alone
    print(
        " ".join([f"images {count:,} of {SIDE} x {SIDE}", *options])
        + f": {1000 * alone:.2f} ms each by itself, overhead {1000 * over:.2f} ms, "
        f"{asked:.2f} requests an image, job {found['peak']:.0f} MB",
        flush=True,
    )


def booked(store):
    """Outputs that the books have."""
    folder = f"{ROOT}/out/.items/part-"
    parts = [name for name in store._files if name.startswith(folder)]
    return {json.loads(line)["output"] for name in parts for line in storage.read(name).splitlines()}


def kills(count):
    """Killed again and again by SIGKILL when a random number of outputs more is there, then run to the end."""
    rng = random.Random(5)
    again = wasted = 0
    with tempfile.TemporaryDirectory() as scratch:
        journal = f"{scratch}/journal"
        for number in range(KILLS + 1):
            before = SimulatedStore(count, journal=journal)
            storage.SCHEMES["sim"] = before
            known, there = booked(before), os.path.getsize(journal)
            more = rng.randrange(1, max(2, count // KILLS)) if number < KILLS else None
            command = [sys.executable, __file__, "killed", str(count), journal]
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while more and child.poll() is None and os.path.getsize(journal) < there + 66 * more:  # bytes of a line
                time.sleep(0.01)
            if more:
                child.kill()
            code = child.wait()
            after = SimulatedStore(count, journal=journal)
            storage.SCHEMES["sim"] = after
            tried = after.again - before.again
            again += len(known & {name[len(f"{ROOT}/out/") :] for name in tried.elements()})
            wasted += tried.total()
            progress(f"kill {number + 1}: {len(known)} of {count} in the books, exit code {code}")
        counts = manifest()["counts"]
        lines = [
            json.loads(line) for name in manifest()["items"] for line in storage.read(f"{ROOT}/out/{name}").splitlines()
        ]
        assert len({line["image"] for line in lines}) == len(lines) == counts["inputs"] == count, counts
        outputs = {name: number for name, number in after.writes.items() if name.endswith(".png")}
        assert len(outputs) == count and set(outputs.values()) == {1}
    print(
        f"kills {count:,}: {KILLS} kills, {counts['outputs']:,} outputs + {counts['rejects']} rejects, none written "
        f"twice, {again} of the books made again, {wasted} that were written but not yet in the books",
        flush=True,
    )


def killed(count, journal):
    """One run of `kills`, with requests that fail at times."""
    run_job(SimulatedStore(count, journal=journal, failing=0.01, writes_per_second=None if SMALL else 1000))


CASES = {"resume": resume, "images": images, "kills": kills, "killed": killed}


if __name__ == "__main__":
    if len(sys.argv) > 2:
        CASES[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
    else:
        for case in sys.argv[1:] or COUNTS:
            for count in COUNTS[case]:  # in a process of its own, whose memory is told
                subprocess.run([sys.executable, __file__, case, str(count)], check=True)
