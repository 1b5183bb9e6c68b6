"""az:// on Azurite: what tests say of buckets of Cloud Storage holds there."""

from __future__ import annotations

import pytest

from engines import contracts

ENGINE = "Azurite"


@pytest.mark.parametrize("suite", contracts.SUITES)
def test_buckets_are_as_elsewhere(suite, tool, figure):
    tool("azurite")
    figure(f"{suite}: {contracts.run_tests(contracts.SUITES[suite], 'az')} tests")
