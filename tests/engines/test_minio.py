"""s3:// on MinIO: what tests say of buckets of Cloud Storage holds there."""

from __future__ import annotations

import pytest

from engines import contracts

ENGINE = "MinIO"


@pytest.mark.parametrize("suite", contracts.SUITES)
def test_buckets_are_as_elsewhere(suite, tool, figure):
    tool("minio")
    figure(f"{suite}: {contracts.run_tests(contracts.SUITES[suite], 's3')} tests")
