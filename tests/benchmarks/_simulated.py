"""A bucket made of a formula: as many images, masks and outputs as asked for, without a byte of them on a disk.

    sim://b/in/00012/000012345.jpg      holes/00012/000012345.png      out/00012/000012345.png

Pictures are drawn when they are read, one of `KINDS`. What is written is kept: outputs as their size and checksum,
other files whole, in a file that has no name; with a journal they outlive a process that is killed. Requests are
counted by kind, and answered as a bucket does: after a while, at times with an error that is asked about again, and
more slowly above a rate of writes.
"""

import bisect
import collections
import contextlib
import functools
import itertools
import json
import os
import random
import tempfile
import threading
import time
import zlib

import cv2
import numpy as np

from pipelines.inpainting import pages
from trainer import storage
from trainer.storage.store import EVERYTHING, Entry, require_size

ROOT = "sim://b"
KINDS = 16  # different pictures
PAGE = 1000  # names in an answer to a list
FOLDER = 1000  # files in a folder
SETS = {"in": ".jpg", "holes": ".png"}
SIDE = 48


def _draw(kind):
    """JPEG of an image and PNG of its mask."""
    rng = np.random.default_rng(kind)
    small = rng.integers(0, 256, (4, 4, 3), np.uint8)
    image = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[8 + kind : 20 + kind, 10:30] = 0
    return cv2.imencode(".jpg", image)[1].tobytes(), cv2.imencode(".png", mask)[1].tobytes()


_ENDS = [f"{number:03d}" for number in range(FOLDER)]


@functools.lru_cache(8)
def _begin_of(folder):
    return f"{folder:05d}/{folder:06d}"


def name_of(number):
    """Path of an input below its set, without extension: ``00012/000012345``."""
    folder, end = divmod(number, FOLDER)
    return _begin_of(folder) + _ENDS[end]


class SimulatedStore:
    """The store of ``sim://``.

    Args:
        count: how many images, and masks, there are.
        existing: by the beginning of their addresses, files that are there from the beginning: see `Finished`.
        journal: path of a file that what is written is appended to, and read from at the start.
        latency: seconds of a request.
        failing: fraction of the requests that fail and are repeated after a pause.
        writes_per_second: above which writes are refused (429), for twice as long each time.
    """

    is_remote, near = True, 4 << 20

    def __init__(self, count, existing=(), journal=None, latency=0.0, failing=0.0, writes_per_second=None):
        self.count, self.existing, self._latency, self._failing = count, dict(existing), latency, failing
        self.requests, self.writes = collections.Counter(), collections.Counter()
        self.again = collections.Counter()  # outputs that were there when they were to be created
        self._files, self._generation = {}, 0  # (place in the file or None, size, checksum, generation)
        self._kept, self._end = tempfile.TemporaryFile(buffering=0), 0
        self._order = []
        self._lock, self._random = threading.Lock(), random.Random(1)
        self._pictures = [_draw(kind) for kind in range(KINDS)]
        self._known = {
            folder: [(len(pair[part]), storage.crc32c(pair[part])) for pair in self._pictures]
            for part, folder in enumerate(SETS)
        }
        self._rate, self._window = writes_per_second, collections.deque()
        self._journal = open(journal, "ab", buffering=0) if journal else None
        if journal:
            self._replay(journal)

    # What a bucket does

    def _answer(self, verb):
        """One request; those that fail are counted, too, and asked again."""
        pause = 0.001
        while True:
            self.requests[verb] += 1
            if self._latency:
                time.sleep(self._latency)
            if verb == "write" and self._rate:
                with self._lock:
                    now = time.monotonic()
                    while self._window and now - self._window[0] > 1:
                        self._window.popleft()
                    is_refused = len(self._window) >= self._rate
                    if not is_refused:
                        self._window.append(now)
            else:
                is_refused = False
            if not is_refused and not (self._failing and self._random.random() < self._failing):
                return
            self.requests["refused"] += 1
            time.sleep(pause)
            pause = min(1.0, 2 * pause)

    def _replay(self, path):
        with open(path, "rb") as file, contextlib.suppress(ValueError):
            for line in file:
                address, size, checksum, data = json.loads(line)
                if size is None:
                    self._files.pop(address, None)
                elif size < 0:
                    self.again[address] += 1
                else:
                    self.writes[address if address.endswith(".png") else "others"] += 1
                    self._put(address, None if data is None else data.encode("latin-1"), size, checksum)

    def _put(self, address, data, size, checksum):
        self._generation += 1
        place = None
        if data is not None:
            place = self._end, len(data)
            os.pwrite(self._kept.fileno(), data, self._end)
            self._end += len(data)
        self._files[address] = (place, size, checksum, self._generation)

    def _input(self, address):
        """(set, kind of picture) of an input's address; None for other files."""
        folder, _, rest = address[len(ROOT) + 1 :].partition("/")
        extension = SETS.get(folder)
        if not extension or not rest.endswith(extension):
            return None
        number = int(rest[-13:-4]) if rest[-13:-4].isdigit() else -1
        return (folder, number % KINDS) if 0 <= number < self.count and rest[:-4] == name_of(number) else None

    def _made(self, address):
        """Contents of a file of `existing`, or None."""
        for start, files in self.existing.items():
            if address.startswith(start):
                return files.read(address[len(start) :])
        return None

    # The contract of a store

    def normalize(self, address):
        return address.rstrip("/")

    def entries(self, folder, deep, enters=None, lost=None, span=EVERYTHING):
        """The files of a span, in the order of their names."""
        start, end, most = span.start, span.end, span.most
        top, _, below = folder[len(ROOT) + 1 :].partition("/")
        listed = 0
        if top in SETS and deep:
            found = self._list_set(top, below, start, end)
        else:
            found = self._list_written(folder, deep, start, end)
        for entry in found:
            if listed % min(PAGE, most or PAGE) == 0:
                self._answer("list")
            listed += 1
            yield Entry(*entry)
        if not listed:
            self._answer("list")

    def _list_set(self, top, below, start, end):
        """A set's files below a folder of it, from ``start`` to before ``end``; both are names below that folder."""
        extension, known, begin = SETS[top], self._known[top], f"{ROOT}/{top}/"
        first, last, cut = 0, self.count, 0
        if below:
            first, last, cut = int(below) * FOLDER, min(last, (int(below) + 1) * FOLDER), len(below) + 1

        def position(bound):
            low, high = first, last
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if (name_of(middle) + extension)[cut:] < bound else (low, middle)
            return low

        for number in range(position(start) if start else first, position(end) if end else last):
            size, checksum = known[number % KINDS]
            yield f"{begin}{name_of(number)}{extension}", size, "", checksum

    def _list_written(self, folder, deep, start, end):
        begin = folder + "/"
        for prefix, files in self.existing.items():
            if prefix.startswith(begin) or begin.startswith(prefix):
                yield from files.list(begin, deep, start, end)
        names = self._sorted()
        for position in range(bisect.bisect_left(names, begin + start), len(names)):
            address = names[position]
            name = address[len(begin) :]
            if not address.startswith(begin) or (end and name >= end):
                return
            if deep or "/" not in name:
                _, size, checksum, _ = self._files[address]
                yield address, size, "", checksum

    def _sorted(self):
        """All that was written, in order, as it was when the list was begun."""
        with self._lock:
            if len(self._order) != len(self._files):
                self._order = sorted(self._files)
            return self._order

    def folders(self, folder):
        self._answer("list")
        top, _, below = folder[len(ROOT) + 1 :].partition("/")
        if top in SETS:
            return [] if below else [f"{number:05d}" for number in range(-(-self.count // FOLDER))]
        names = {
            address[len(folder) + 1 :].partition("/")[0] for address in self._files if "/" in address[len(folder) + 1 :]
        }
        return sorted(names)

    def exists(self, address):
        self._answer("read")
        return self._input(address) is not None or address in self._files or self._made(address) is not None

    def is_there(self, address):
        self._answer("list")
        top = address[len(ROOT) + 1 :]
        return top in SETS or self._input(address) is not None or any(name.startswith(address) for name in self._files)

    def entry(self, address):
        self._answer("list")
        if found := self._input(address):
            size, checksum = self._known[found[0]][found[1]]
        else:
            _, size, checksum, _ = self._files.get(address, (None, 0, "", 0))
        return Entry(address, size, "", checksum)

    def checksum(self, address):
        self._answer("read")
        if found := self._input(address):
            return self._known[found[0]][found[1]][1]
        if address in self._files:
            return self._files[address][2]
        if (data := self._made(address)) is not None:
            return data if isinstance(data, str) else storage.crc32c(data)
        raise storage.NotFound(f"{address} does not exist")

    def stamp(self, address, own=False):
        return ""

    def changed(self, address, outside=""):
        return 1.0

    def read_versioned(self, address, max_bytes=None):
        self._answer("read")
        if found := self._input(address):
            return self._pictures[found[1]][list(SETS).index(found[0])], 1
        place, size, _, generation = self._files.get(address, (None, 0, "", 0))
        require_size(address, size, max_bytes)
        if generation:
            if place is None:
                return bytes(size), generation
            start, length = place
            return zlib.decompress(os.pread(self._kept.fileno(), length, start)), generation
        made = self._made(address)
        return (made, 1) if isinstance(made, bytes) else (None, 0)

    def read_range(self, address, start, length):
        data, generation = self.read_versioned(address)
        if not generation:
            raise storage.NotFound(f"{address} does not exist")
        return data[start : start + length]

    def require_writable(self, folder):
        self._answer("list")

    def create(self, address, data):
        try:
            self.replace(address, data, 0)
        except storage.Conflict:
            raise storage.AlreadyExists(address) from None

    def replace(self, address, data, generation):
        self._answer("write")
        checksum, is_output = storage.crc32c(data), address.endswith(".png")
        kept = None if is_output else zlib.compress(data, 1)
        with self._lock:
            if self._files.get(address, (0, 0, 0, 0))[3] != generation:
                self.again[address] += 1
                self._log(address, -1, "", None)
                raise storage.Conflict(address)
            self.writes[address if is_output else "others"] += 1
            self._put(address, kept, len(data), checksum)
            self._log(address, len(data), checksum, kept)

    def overwrite(self, address, data):
        self.requests["read"] += 1
        self.replace(address, data, self._files.get(address, (0, 0, 0, 0))[3])

    def delete(self, address):
        self._answer("delete")
        with self._lock:
            self._order = []
            if self._files.pop(address, None):
                self._log(address, None, None, None)

    def _log(self, address, size, checksum, data):
        if self._journal:
            text = None if data is None else data.decode("latin-1")
            self._journal.write(json.dumps([address, size, checksum, text]).encode() + b"\n")

    def confine(self, folder):
        pass

    def require_confined(self, address):
        pass

    def sweep(self, folder, owns):
        pass

    def remove_folder(self, folder):
        pass


class Finished:
    """Outputs of all images and the books of the run that made them, without a byte of them in memory."""

    LINES = 1000  # of a part of the books

    def __init__(self, store):
        self._store, count = store, store.count
        digits = pages.Survey(count).digits
        hashes = (int(pages.hash_of(name_of(number)), 16) for number in range(count))
        shares = np.fromiter(hashes, np.uint16, count)
        self._order = np.argsort(shares, kind="stable").astype(np.int32)
        self._shares, self._parts = shares[self._order], {}
        bounds = np.searchsorted(self._shares >> (16 - 4 * digits), np.arange(16**digits + 1)) if digits else [0, count]
        for share, (first, last) in enumerate(itertools.pairwise(bounds)):
            prefix = f"{share:0{digits}x}" if digits else ""
            for start in range(first, last, self.LINES):
                self._parts[f"part-{prefix}-00000001-{start:012x}.jsonl"] = start, min(start + self.LINES, last)
        self._names = sorted(self._parts)
        known = [store._known[folder] for folder in SETS]
        self._versions = [
            ", ".join(f'[{size}, "{checksum}", ""]' for size, checksum in pair) for pair in zip(*known, strict=True)
        ]

    def list(self, begin, deep, start, end):
        if begin == f"{ROOT}/out/.items/":
            yield from ((begin + name, 1, "", "") for name in self._names)
        elif begin == f"{ROOT}/out/":
            count = self._store.count
            first, last = (bisect.bisect_left(range(count), bound, key=_output_of) for bound in (start, end))
            for number in range(first, last if end else count):
                yield begin + _output_of(number), 1000 + number % KINDS, "", "AAAAAA=="

    def read(self, path):
        if path.endswith(".png"):
            return "AAAAAA=="
        if path.removeprefix(".items/") not in self._parts:
            return None
        first, last = self._parts[path.removeprefix(".items/")]
        numbers, shares = self._order[first:last].tolist(), self._shares[first:last].tolist()
        lines = (self._line(number, f"{share:04x}") for number, share in zip(numbers, shares, strict=True))
        return b"".join(lines)

    def _line(self, number, share):
        name = name_of(number)
        return (
            f'{{"share": "{share}", "output": "{name}.png", "image": "{ROOT}/in/{name}.jpg", '
            f'"mask": "{ROOT}/holes/{name}.png", "height": {SIDE}, "width": {SIDE}, "hole_ratio": 0.1, "windows": 1, '
            f'"mask_read_as": "black and white", "seconds": 0.01, "bytes": {1000 + number % KINDS}, '
            f'"crc32c": "AAAAAA==", "status": "done", "stamp": "", "versions": [{self._versions[number % KINDS]}]}}\n'
        ).encode()


def _output_of(number):
    return name_of(number) + ".png"


def finish_all(store):
    """Makes all images of a store finished."""
    store.existing = {f"{ROOT}/out/": Finished(store)}
