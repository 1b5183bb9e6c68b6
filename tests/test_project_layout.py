"""The project's own shape: folders, limits of size, layers of imports, pinned versions, photographs and licenses."""

from __future__ import annotations

import ast
import collections
import graphlib
import itertools
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable
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

# What may import what: a part imports parts on its own line and on the lines above, never from below. A part is a
# package or a module; of two that fit a module, the longer name counts. A name ending in "." is a package's face alone.
LAYERS = """
masks.coverage masks.sources masks.exactness masks.codec masks.contact_sheet
masks.canvas
masks.families
masks.sampling
trainer.errors trainer.metrics. trainer.metrics.table
trainer.storage
trainer.documents
trainer.config trainer.presets
trainer.stopping
trainer.command trainer. pipelines.
trainer.weight_files
trainer.images
trainer.data
trainer.model
trainer.metrics
trainer.checkpoints
trainer.runs
trainer.tensorboard
trainer.inference
trainer.training
trainer.train trainer.export trainer.import_weights
pipelines.worker_processes pipelines.remote
pipelines.launch
pipelines.transforms pipelines.pairs
pipelines.mask_dataset pipelines.image_dataset pipelines.inpainting pipelines.evaluation
pipelines.engines pipelines.retouching
pipelines.build_masks pipelines.build_imagenet pipelines.inpaint pipelines.evaluate
pipelines.demo pipelines.doctor pipelines.try_out
pipelines.cli
"""
LINE_OF = {part: number for number, line in enumerate(LAYERS.splitlines()) for part in line.split()}
MAX_LINES, MAX_FACE_LINES, MAX_FUNCTION_LINES, MAX_MODULES = 400, 40, 60, 12

# Libraries that some modules keep clear of: training runs without Beam, the network on any Keras backend.
BACKENDS = {"tensorflow", "jax", "torch"}
FORBIDDEN = {
    "trainer/**/*.py": {"apache_beam"},
    "trainer/model/[!t]*.py": BACKENDS,  # all but trainer/model/tensorflow_kernels.py
    "trainer/metrics/*.py": BACKENDS,
    "trainer/[!t]*/*.py": {"ray"},  # all but trainer/training
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


def line_of(module: str) -> int | None:
    """Number of the line of `LAYERS` that ``module`` is on; None for a face that no line names."""
    if f"{module}." in LINE_OF:
        return LINE_OF[f"{module}."]
    names = module.split(".")
    return next((LINE_OF[p] for n in range(len(names), 0, -1) if (p := ".".join(names[:n])) in LINE_OF), None)


def graph_of(modules: dict[str, str]) -> dict[str, set[str]]:
    """Which of ``modules`` (source by dotted name) each one imports, in functions and for type checkers too."""
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, source in modules.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                found = {inner if inner in modules else str(node.module) for inner in full}
            else:
                continue
            graph[name] |= found & modules.keys() - {name}
    return graph


def wrong_layers(modules: dict[str, str]) -> list[str]:
    """Imports from below, as ``module -> imported``, modules that are on no line, and imports of what is no part."""
    wrong = []
    for name, imported in graph_of(modules).items():
        if line_of(name) is None and "." in name:
            wrong.append(f"{name} is on no line")
        for other in imported:
            ours, theirs = line_of(name), line_of(other)
            if theirs is None or ours is None or theirs > ours:
                wrong.append(f"{name} -> {other}")
    outside = {"tests", "infra", "docker", ""}
    for name, source in modules.items():
        wrong += [f"{name} -> {other}" for other in imported_modules(source) if other.split(".")[0] in outside]
    return sorted(wrong)


def circle(modules: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle; empty if there is none."""
    try:
        graphlib.TopologicalSorter(graph_of(modules)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def long_functions(source: str) -> list[str]:
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f.name for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION_LINES]


def long_files(lengths: dict[str, int]) -> list[str]:
    """Files, by name, with too many lines; a package's face may have fewer than other files."""
    faces = {name for name in lengths if name.endswith("/__init__.py")}
    return [n for n, length in lengths.items() if length > (MAX_FACE_LINES - 1 if n in faces else MAX_LINES)]


def crowded_folders(names: Iterable[str]) -> list[str]:
    """Folders, of modules by path, with too many modules; faces are none."""
    parents = (str(Path(name).parent) for name in names if not name.endswith("__init__.py"))
    return [folder for folder, count in collections.Counter(parents).items() if count > MAX_MODULES]


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}: expected Python files in {ROOT / package}."
    return files


def run_python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=600)
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


def our_modules() -> dict[str, str]:
    """Source of every module of the three packages by its dotted name."""
    found = {}
    for path in itertools.chain.from_iterable(map(sources, PACKAGES)):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def python_files() -> list[Path]:
    return [path for folder in (*PACKAGES, "infra", "docker", "tests") for path in sources(folder)]


def test_no_file_is_long():
    kinds = {".py", ".toml", ".md", ".sh", ".yaml", ".yml", ".tf", ".html", ".j2", ".css", ".js"}
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    checked = [p for p in files if p.suffix in kinds or p.name in ("Makefile", "run") or "Dockerfile" in p.name]
    assert {"Makefile", "run", "pyproject.toml", Path(__file__).name} <= {path.name for path in checked}
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in checked}
    assert long_files(lengths) == []


def test_no_folder_is_crowded():
    assert crowded_folders(str(path.relative_to(ROOT)) for package in PACKAGES for path in sources(package)) == []


def test_no_function_is_long():
    found = {str(path.relative_to(ROOT)): long_functions(path.read_text("utf-8")) for path in python_files()}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_imports_point_one_way():
    modules = our_modules()
    assert len(graph_of(modules)) == len(modules) and sum(map(len, graph_of(modules).values())) > 200
    assert wrong_layers(modules) == []


def test_no_modules_import_each_other():
    assert circle(our_modules()) == []


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("masks.codec", "from trainer import config", ["masks.codec -> trainer.config"]),
        ("masks.canvas", "from masks import sampling", ["masks.canvas -> masks.sampling"]),
        ("masks.families.boxes", "if TYPE_CHECKING:\n    from masks.sampling import MaskSpec", ["-> masks.sampling"]),
        ("masks.sources", "def f():\n    import pipelines.demo as d", ["masks.sources -> pipelines.demo"]),
        ("trainer.storage.api", "from trainer.data.records import x", ["trainer.storage.api -> trainer.data.records"]),
        ("trainer.model.unet", "from trainer.training import loop", ["trainer.model.unet -> trainer.training.loop"]),
        ("trainer.config", "from trainer.metrics import intervals", ["trainer.config -> trainer.metrics.intervals"]),
        ("trainer.config", "from trainer.metrics import METRICS", []),
        ("trainer.data.order", "from . import records", ["trainer.data.order -> ."]),
        ("trainer.data.order", "from .records import x", ["trainer.data.order -> .records"]),
        ("trainer.data.order", "if True:\n    import tests.samples", ["trainer.data.order -> tests.samples"]),
        ("trainer.train", "import trainer.training.loop, trainer.storage, masks.codec", []),
        ("trainer.helpers", "", ["trainer.helpers is on no line"]),
        ("trainer.config", "import trainer", ["trainer.config -> trainer"]),
        ("pipelines.inpainting.job", "from pipelines.evaluation import job", []),
        ("pipelines.launch", "from pipelines.transforms import progress", ["-> pipelines.transforms.progress"]),
    ],
)
def test_wrong_layers_are_found(name, source, wrong):
    found = wrong_layers(dict.fromkeys(our_modules(), "") | {name: source})
    assert len(found) == len(wrong) and all(part in line for part, line in zip(wrong, found, strict=True))


def test_other_broken_rules_are_found():
    modules = our_modules()
    assert circle({"a": "import b", "b": "from c import x", "c": "def f():\n    import a"}) in (
        [first, *rest, first] for first, *rest in ("acb", "bac", "cba")
    )
    there_and_back = {
        "trainer.data.order": modules["trainer.data.order"] + "\nfrom trainer.data import batches",
        "trainer.storage.gcs": modules["trainer.storage.gcs"] + "\nfrom trainer import storage",
    }
    for name, source in there_and_back.items():
        assert name in circle(modules | {name: source})
    body = "\n".join(f"    x = {n}" for n in range(MAX_FUNCTION_LINES - 1))
    assert long_functions(f"def fits():\n{body}\nasync def long():\n{body}\n    pass") == ["long"]
    lengths = {"a/b.py": 401, "a/c.py": 400, "a/__init__.py": 40, "b/__init__.py": 39, "README.md": 401}
    assert long_files(lengths) == ["a/b.py", "a/__init__.py", "README.md"]
    names = [f"trainer/data/{letter}.py" for letter in "abcdefghijkl"] + ["trainer/data/__init__.py"]
    assert crowded_folders(names) == [] and crowded_folders([*names, "trainer/data/m.py"]) == ["trainer/data"]


def test_masks_needs_numpy_and_opencv_only():
    tops = {name.split(".")[0] for path in sources("masks") for name in imported_modules(path.read_text("utf-8"))}
    assert tops - set(sys.stdlib_module_names) <= {"numpy", "cv2", "masks"}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_modules_keep_to_their_libraries(pattern):
    for path in ROOT.glob(pattern):
        tops = {name.split(".")[0] for name in imported_modules(path.read_text(encoding="utf-8"))}
        assert not tops & FORBIDDEN[pattern], path.name


def test_an_image_without_ray_misses_only_what_needs_it():
    """Whoever imports such a module at once needs Ray, too; an import in a function waits for a command that asks."""
    allowed = runpy.run_path(str(ROOT / "docker" / "smoke.py"))["NEED_RAY"]
    at_once = {
        name: "\n".join(ast.unparse(node) for node in ast.parse(source).body if hasattr(node, "names"))
        for name, source in our_modules().items()
    }
    graph = graph_of(at_once)
    need = {n for n, source in at_once.items() if "ray" in {other.split(".")[0] for other in imported_modules(source)}}
    while more := {name for name, imported in graph.items() if imported & need} - need:
        need |= more
    assert need and [name for name in sorted(need) if not name.startswith(allowed)] == []


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
    needed = [Requirement(text) for text in project["dependencies"]]
    needed += [
        Requirement(text)
        for extra in ("dataflow", "ray", "s3", "azure", "notebook", "try", "dev")
        for text in project["optional-dependencies"][extra]
    ]
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
