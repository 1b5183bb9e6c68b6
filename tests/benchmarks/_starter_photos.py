"""Brings freely licensed photographs out of packages of Debian, for tests/benchmarks/starter.py to train on.

    python tests/benchmarks/_starter_photos.py FOLDER

Needs apt-get and dpkg-deb, and installs nothing. Each picture becomes FOLDER/PACKAGE-NAME.jpg, of at most 1280 pixels.
The names in `PACKAGES` are those of photographs; the packages hold drawings, too.
"""

import fnmatch
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np

SIDE = 1280  # longer side, in pixels, at most
MIN_SIDE = 120  # of the shorter
# By package and the version that these names are of: license as its copyright file says, and the photographs. A name
# after a colon is inside of a Qt resource file.
PACKAGES = {
    ("gcompris-qt-data", "3.1-2"): (
        "GPL-3+ as a package; single pictures CC BY-SA or public domain",
        [f"*/{name}.rcc:*.webp" for name in ("categorization", "erase", "explore_farm_animals", "explore_monuments")]
        + [f"*/{name}.rcc:*.webp" for name in ("explore_world_animals", "explore_world_music")]
        + ["*/clickgame.rcc:*[0-9].webp"],
    ),
    ("lomiri-wallpapers-16.04", "20.04.0-2"): (
        "CC0 1.0, CC BY 4.0 or CC BY-SA 4.0, by picture",
        ["*/Bridge_*", "*/Dragonfly_*", "*/free_*", "*/friends_*", "*/greentock_*", "*/life_*", "*/picosdeeuropa_*"]
        + ["*/Picture_*", "*/seeding_*", "*/sunset_*", "*/Wine_*", "*/aitzgorri_*"],
    ),
    ("lomiri-wallpapers-20.04", "20.04.0-2"): ("CC BY-SA 3.0", ["*/Kleiber_*"]),
    ("mate-backgrounds", "1.26.0-1"): ("GPL-2+", ["*/nature/*.jpg"]),
    ("plasma-workspace-wallpapers", "4:5.27.5-2"): (
        "LGPL-3",
        [
            f"*/{name}/*/1920x1200.jpg"
            for name in ("BytheWater", "ColorfulCups", "EveningGlow", "FallenLeaf", "Grey", "Kite", "OneStandsOut")
        ],
    ),
    ("puzzle-jigsaw", "1.0.2+git20201007.527c529+dfsg-4+b1"): ("CC0 1.0", ["*/samples/*"]),
}


def read_resources(data):
    """(path, content) of the files in a Qt resource file (.rcc): a tree of names, and blobs."""
    magic, version, tree, blobs, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise ValueError(f"expected a Qt resource file. Received one that begins with {magic!r}.")
    step = 14 if version == 1 else 22  # with the time of a change

    def walk(node, path):
        name, flags, first, second = struct.unpack_from(">IHII", data, tree + node * step)
        (length,) = struct.unpack_from(">H", data, names + name)
        path = path + data[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be") if node else path
        if flags & 2:  # a folder of ``first`` nodes from ``second`` on
            for child in range(second, second + first):
                yield from walk(child, f"{path}/" if node else "")
        else:
            begin = blobs + second + 4
            content = data[begin : begin + struct.unpack_from(">I", data, begin - 4)[0]]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


def find_photos(folder, patterns):
    """(name, content) of the files below an unpacked package that the patterns mean."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for pattern in patterns:
            outer, _, inner = pattern.partition(":")
            if fnmatch.fnmatch(str(path), outer):
                if inner:
                    for name, content in read_resources(path.read_bytes()):
                        if fnmatch.fnmatch(name, inner):
                            yield f"{path.stem}-{Path(name).stem}", content
                elif path.suffix in (".jpg", ".jpeg"):
                    yield (path.parents[2].name if "/contents/" in str(path) else path.stem), path.read_bytes()


def scale(content):
    """The JPEG of a picture, scaled down to `SIDE`; None if it is small, or partly transparent."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or min(pixels.shape[:2]) < MIN_SIDE:
        return None
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        return None
    pixels, factor = pixels[..., :3], SIDE / max(pixels.shape[:2])
    if factor < 1:
        pixels = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for (package, version), (license_, patterns) in PACKAGES.items():
        count = 0
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["apt-get", "download", "-q", f"{package}={version}"], cwd=scratch, check=True)
            (archive,) = Path(scratch).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, f"{scratch}/all"], check=True)
            for name, content in find_photos(Path(scratch, "all"), patterns):
                if photo := scale(content):
                    (folder / f"{package}-{name}.jpg").write_bytes(photo)
                    count += 1
        print(f"{count} photographs of {package} {version}: {license_}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
