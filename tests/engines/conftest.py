"""Real engines: what a test asks for, and the line that each engine gets at the end.

A module of this folder says which engine it tests, its tests ask for tools by name, and report a figure:

    ENGINE = "Prism"

    def test_something(tool, figure):
        prism = tool("prism")          # a path; where the table of tools.py has it, and it is here, else skips
        figure("600 masks in 7 s")     # for the engine's line
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from engines import images, jobs, tools
from engines.cloud import make_cloud
from engines.cluster import cluster as clusters
from engines.cluster.images import PROJECT, save
from engines.pods import OUTSIDE, Pods


def pytest_collection_modifyitems(items):
    """The slowest engines come last: they are what a limit of time leaves out."""
    late = ("Kubernetes", "Dataflow")
    items.sort(key=lambda item: [item.module.ENGINE.startswith(name) for name in late])
    for item in items:
        item.user_properties.append(("engine", item.module.ENGINE))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    left = tools.seconds_left(1 - tools.TOOLS_SHARE)
    if left is not None and left < 0:
        pytest.skip(f"not begun: ENGINES_MINUTES={tools.MINUTES:g} were over")


@pytest.fixture(scope="session")
def tool():
    """Path of a tool or program by its name in tools.py; skips what needs one that is not here."""

    def find(name: str):
        try:
            return tools.find(name)
        except tools.Missing as error:
            pytest.skip(str(error))

    return find


@pytest.fixture(scope="session")
def image(tool):
    """Name of the project's image ``beam`` or ``ray`` in buildah's storage, of this checkout; see `images.build`."""
    made = {}

    def build(name: str, **variables: str) -> str:
        key = (name, *sorted(variables.items()))
        try:
            made[key] = made.get(key) or images.build(name, **variables)
        except tools.Missing as error:
            pytest.skip(str(error))
        return made[key]

    return build


@pytest.fixture(scope="session")
def cloud(tool, image, tmp_path_factory):
    """See `cloud.Cloud`; one for all tests."""
    prism, _, _ = map(tool, ("prism", "runc", "ip"))
    with make_cloud(tmp_path_factory.mktemp("cloud"), image("beam"), prism) as made:
        jobs.upload_inputs(made.bucket, copies=3)
        yield made


@pytest.fixture(scope="session")
def expected(cloud):
    """What a job writes when it runs in this process, bytes by name; called with the job's name."""
    made = {}

    def of(job: str) -> dict[str, bytes]:
        for needed in ("build_masks", "build_imagenet") if job == "evaluate" else ():
            of(needed)
        if job not in made:
            made[job] = jobs.run_in_process(job, cloud.bucket)
        return made[job]

    return of


@pytest.fixture(scope="session")
def cluster(tool, image, tmp_path_factory):
    """kubectl for a Kubernetes with KubeRay, and the cluster itself if it is one of cluster.py.

    It is the one that KUBECONFIG names, whose nodes then have the image pconv/ray:local (infra/kuberay/README.md); the
    namespace pconv is made there, and removed.
    """
    if os.environ.get("KUBECONFIG"):
        program = shutil.which("kubectl") or tools.find("kubernetes")
        kubectl = clusters.Kubectl(Path(os.environ["KUBECONFIG"]), Path(program))
        if kubectl.run("get", "crd", "rayjobs.ray.io").returncode:
            pytest.skip("KUBECONFIG names no cluster that answers and has KubeRay's operator")
        if not kubectl.run("get", "namespace", "pconv").returncode:
            pytest.skip("the cluster that KUBECONFIG names has a namespace pconv, which is somebody's")
        yield kubectl, clusters.find(Path(os.environ["KUBECONFIG"]))
        return
    for name in clusters.NEEDED:
        tool(name)
    place = tmp_path_factory.mktemp("kubernetes")
    project = save(image("ray", RAY_EXTRAS="beam,ray,cluster"), PROJECT, place / "project.tar")
    try:
        with clusters.running(place / "cluster", images=[project]) as made:
            yield made.kubectl, made
    except tools.Missing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pods(cluster, tmp_path_factory):
    kubectl, _ = cluster
    yield Pods(kubectl, tmp_path_factory.mktemp("pods"))
    kubectl.run("delete", "namespace", "pconv", OUTSIDE, "--ignore-not-found")


@pytest.fixture
def figure(record_property):
    """Adds a text to the line of the engine: what was seen, in numbers."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter):
    """One line for each engine: how its tests ended, how long they took, their figures, why some were skipped."""
    counts, seconds, texts = defaultdict(Counter), Counter(), defaultdict(list)
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            properties = report.user_properties
            engine = dict(properties)["engine"]
            seconds[engine] += report.duration
            if outcome:  # the empty one is that of fixtures that worked
                counts[engine][outcome] += 1
                found = [text for name, text in properties if name == "figure"]
                if outcome == "skipped":
                    found.append(report.longrepr[2].removeprefix("Skipped: "))
                texts[engine] += [text for text in found if text not in texts[engine]]
    terminalreporter.section("engines")
    for engine, outcomes in counts.items():
        ends = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
        terminalreporter.line(f"{engine}: {ends} in {seconds[engine]:.0f} s; {'; '.join(texts[engine])}".rstrip("; "))
