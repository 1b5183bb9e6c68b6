"""The five commands write the same bytes to gs://, s3:// and az://."""

from __future__ import annotations

import json

from engines import contracts

ENGINE = "gs, s3 and az"


def test_five_commands_write_the_same_bytes(tool, figure, tmp_path):
    for name in ("minio", "azurite"):
        tool(name)
    found = {}
    for store in ("gs", "s3", "az"):
        assert contracts.run_tests(contracts.FIVE_COMMANDS, store, PCONV_DIGESTS=str(tmp_path / store)) == 1
        found[store] = json.loads((tmp_path / store).read_text())
    assert len(found["gs"]) > 10
    for store in ("s3", "az"):
        both = found["gs"].keys() | found[store].keys()
        assert [name for name in sorted(both) if found["gs"].get(name) != found[store].get(name)] == []
    figure(f"{len(found['gs'])} files of five commands with equal bytes")
