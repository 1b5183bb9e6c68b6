"""Imports every module of the project inside an image and prints the main versions; exit code 1 if an import fails.

Where Ray is missing, the modules that need it are left out.

docker run --rm --network none --entrypoint python IMAGE /opt/pconv/smoke.py
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import sys

VERSIONS = ("pconv", "tensorflow", "keras", "apache-beam", "ray", "opencv-python-headless", "numpy")
# Packages that alone need Ray, which the image of Beam's workers has not.
NEED_RAY = ("trainer.training.", "pipelines.engines.on_ray.")


def main() -> int:
    if os.getuid() == 0:
        print("error: the image runs as root", file=sys.stderr)
        return 1
    names = []
    for package in ("masks", "trainer", "pipelines"):
        folder = importlib.import_module(package).__path__
        names += [module.name for module in pkgutil.walk_packages(folder, f"{package}.")]
    for name in names[:]:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != "ray" or not name.startswith(NEED_RAY):
                raise
            names.remove(name)

    from masks.coverage import hole_ratio
    from masks.sampling import MaskSpec, sample_mask

    low, high = 0.1, 0.2
    mask = sample_mask(MaskSpec(generator="shapes", height=128, width=128, hole_ratio=(low, high)), 0)
    assert low < hole_ratio(mask) <= high
    installed = {(name.metadata["Name"] or "").lower() for name in importlib.metadata.distributions()}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in VERSIONS if name in installed]
    print(f"{len(names)} modules as user {os.getuid()} on Python {sys.version.split()[0]}:", ", ".join(versions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
