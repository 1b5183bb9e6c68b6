"""Real engines: what a test asks for, and the line that each engine gets at the end.

A module of this folder says which engine it tests, its tests ask for tools by name, and report a figure:

    ENGINE = "Prism"

    def test_something(tool, figure):
        prism = tool("prism")          # a path; where the table of tools.py has it, and it is here, else skips
        figure("600 masks in 7 s")     # for the engine's line
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from engines import tools


def pytest_collection_modifyitems(items):
    for item in items:
        item.user_properties.append(("engine", item.module.ENGINE))


@pytest.fixture(scope="session")
def tool():
    """Path of a tool or program by its name in tools.py; skips what needs one that is not here."""

    def find(name: str):
        try:
            return tools.find(name)
        except tools.Missing as error:
            pytest.skip(str(error))

    return find


@pytest.fixture
def figure(record_property):
    """Adds a text to the line of the engine: what was seen, in numbers."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter):
    """One line for each engine: how its tests ended, how long they took, their figures, why some were skipped."""
    counts, seconds, texts = defaultdict(Counter), Counter(), defaultdict(list)
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            properties = getattr(report, "user_properties", [])
            engine = dict(properties).get("engine")
            if engine is None:
                continue
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
