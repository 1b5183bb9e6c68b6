"""The wheel: it holds every sub-package and the files they read, and works without the checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("masks", "trainer", "pipelines")

# Imports every module that the wheel has, and says where each came from.
IMPORT_ALL = """
import importlib, json, pkgutil, sys
found = {}
for top in ("masks", "trainer", "pipelines"):
    package = importlib.import_module(top)
    names = [top, *(module.name for module in pkgutil.walk_packages(package.__path__, top + "."))]
    found |= {name: importlib.import_module(name).__file__ for name in names}
print(json.dumps(found))
"""


def run(*command, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):  # a build writes beside its sources
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (built,) = folder.glob("pconv-*.whl")
    return built


def test_wheel_holds_all_that_is_tracked(wheel):
    try:
        listed = run("git", "ls-files", *PACKAGES, cwd=ROOT).splitlines()
    except (OSError, AssertionError):
        pytest.skip("not a git repository")
    documents = {name for name in listed if name.endswith((".md", ".jpg", ".png")) and "/photos/" not in name}
    missing = set(listed) - documents - set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in missing if not name.endswith("LICENSES.md")} == set()


def test_every_module_imports_from_the_wheel_alone(wheel, tmp_path):
    """In an environment that has what the project depends on, but not the project's folder."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python3.*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    # A line of a .pth file adds a folder, whose own .pth files, such as the editable install's, are not processed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = json.loads(run(python, "-I", "-c", IMPORT_ALL, cwd=tmp_path).splitlines()[-1])
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths}
    assert found.keys() == {name.removesuffix(".__init__") for name in names}
    assert all(Path(file).is_relative_to(site) for file in found.values())
