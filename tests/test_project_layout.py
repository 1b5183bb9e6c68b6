"""The project's own shape: folders, file sizes, the direction of imports, pinned versions, photographs and licences."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"pipelines", "trainer", "masks", "infra", "tests", "docker", ".ci"}
PACKAGES = ("masks", "trainer", "pipelines")  # each may import itself and those before it
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PHOTOS = ROOT / "pipelines" / "photos"

# Libraries that some modules keep clear of: training runs without Beam, the network on any Keras backend.
BACKENDS = {"tensorflow", "jax", "torch"}
FORBIDDEN = {
    "trainer/**/*.py": {"apache_beam"},
    "trainer/model/*.py": BACKENDS,
    "trainer/metrics/*.py": BACKENDS,
}


def imported_modules(source: str) -> list[str]:
    """Absolute names of all imports of ``source``, nested ones too; a relative import starts with a dot."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return names


def wrong_imports(package: str, source: str) -> list[str]:
    """Imports of ``source``, a module of ``package``, that point the wrong way or are relative."""
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    ours = (*PACKAGES, "tests", "")
    tops = {name: name.split(".")[0] for name in imported_modules(source)}
    return [name for name, top in tops.items() if top in ours and top not in allowed]


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}: expected Python files in {ROOT / package}."
    return files


def run_python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_top_level_folders():
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    tops = {line.split("/")[0] for line in listed.splitlines() if "/" in line}
    if not tops:
        pytest.skip("nothing is tracked")
    assert tops == FOLDERS


def test_no_file_is_long():
    kinds = {".py", ".toml", ".md", ".sh", ".yaml", ".yml", ".tf"}
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    checked = [p for p in files if p.suffix in kinds or p.name in ("Makefile", "run") or "Dockerfile" in p.name]
    assert {"Makefile", "run", "pyproject.toml", Path(__file__).name} <= {path.name for path in checked}
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in checked}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    found = {str(p.relative_to(ROOT)): wrong_imports(package, p.read_text(encoding="utf-8")) for p in sources(package)}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
    [
        ("masks", "from trainer import config", ["trainer"]),
        ("masks", "def f():\n    import pipelines.demo as d", ["pipelines.demo"]),
        ("trainer", "from pipelines.inpaint import main", ["pipelines.inpaint"]),
        ("trainer", "from . import config", ["."]),
        ("trainer", "from .config import override", [".config"]),
        ("pipelines", "if True:\n    import tests.helpers", ["tests.helpers"]),
        ("pipelines", "from masks import codec\nfrom trainer import records\nimport pipelines.holes, numpy", []),
        ("trainer", "import masks_and_more, masks.codec", []),
    ],
)
def test_wrong_imports_are_found(package, source, wrong):
    assert wrong_imports(package, source) == wrong


def test_masks_needs_numpy_and_opencv_only():
    tops = {name.split(".")[0] for path in sources("masks") for name in imported_modules(path.read_text("utf-8"))}
    assert tops - set(sys.stdlib_module_names) <= {"numpy", "cv2", "masks"}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_modules_keep_to_their_libraries(pattern):
    for path in ROOT.glob(pattern):
        tops = {name.split(".")[0] for name in imported_modules(path.read_text(encoding="utf-8"))}
        assert not tops & FORBIDDEN[pattern], path.name


def test_importing_masks_loads_no_framework():
    code = """
        import importlib, pkgutil, sys, masks
        names = [module.name for module in pkgutil.walk_packages(masks.__path__, "masks.")]
        for name in names:
            importlib.import_module(name)
        print(len(names), sorted({name.split(".")[0] for name in sys.modules} &
                                 {"tensorflow", "keras", "jax", "torch", "apache_beam", "ray"}))
    """
    modules = [path for path in sources("masks") if path != ROOT / "masks" / "__init__.py"]
    assert run_python("if True:" + code, ROOT) == f"{len(modules)} []"


def test_the_installed_packages_are_ours(tmp_path):
    """A package called ``trainer`` exists on the package index; away from the project's folder ours must still win."""
    code = "import masks, trainer, pipelines; print(*(m.__file__ for m in (masks, trainer, pipelines)), sep='\\n')"
    files = run_python(code, tmp_path).splitlines()
    assert [Path(name).resolve() for name in files] == [ROOT / package / "__init__.py" for package in PACKAGES]


def test_constraints_pin_one_version_per_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    form = re.compile(r'[a-z0-9]+(-[a-z0-9]+)*==\d[a-z0-9.]*(; python_version (<|>=) "3\.\d+")?')
    assert [line for line in lines if not form.fullmatch(line)] == []
    needed = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    for python in PYTHONS:
        here = {"python_version": python}
        pins = [pin for pin in map(Requirement, lines) if not pin.marker or pin.marker.evaluate(here)]
        versions = {pin.name: next(iter(pin.specifier)).version for pin in pins}
        assert len(versions) == len(pins), f"two versions of one package on Python {python}"
        outside = [str(need) for need in needed if not need.specifier.contains(versions.get(need.name, "0"))]
        assert outside == [], f"not pinned within its bounds on Python {python}"


def test_every_photograph_has_a_licence():
    text = (PHOTOS / "LICENSES.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if ".jpg |" in line]
    files = sorted(path.relative_to(PHOTOS).as_posix() for path in PHOTOS.rglob("*") if path.is_file())
    files.remove("LICENSES.md")
    assert sorted(row[0] for row in rows) == files
    free = re.compile(r"\[(CC0|CC BY|CC BY-SA) \d\.\d\]\(https://creativecommons\.org/\S+\)|public domain, .+")
    for _, title, author, licence in rows:
        assert title and author
        assert free.fullmatch(licence), licence


def test_photographs_are_a_small_image_tree():
    names = {split: sorted((PHOTOS / split).glob("*/*.jpg")) for split in ("train", "val")}
    categories = {split: {path.parent.name for path in paths} for split, paths in names.items()}
    assert categories["train"] == categories["val"] and len(categories["val"]) >= 2
    assert not {p.read_bytes() for p in names["train"]} & {p.read_bytes() for p in names["val"]}
    for path in names["train"] + names["val"]:
        height, width, channels = cv2.imread(str(path)).shape
        assert 128 <= min(height, width) and max(height, width) <= 640 and channels == 3, path.name
