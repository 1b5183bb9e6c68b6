"""The notebook, run from the first cell to the last in a kernel of its own; its own assertions are part of it."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "trainer" / "walkthrough.ipynb"
MATPLOTLIB = os.path.join(sys.prefix, "matplotlib")  # a folder of its own: see the Makefile
# What a run of make test does with less; make soak runs what is stored.
LESS = {"STEPS = 200": "STEPS = 12", "BATCH = 16": "BATCH = 2", "MASKS = 1000": "MASKS = 50"}
FIGURES = ["masks", "intervals", "layer", "updates", "levels", "fills", "losses", "curve", "pictures"]


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_stored_without_outputs():
    notebook = read()
    assert len(code(notebook)) > 10
    assert [cell.source for cell in code(notebook) if cell.outputs or cell.execution_count is not None] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert [cell.source for cell in notebook.cells if cell.metadata] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs_and_draws_its_figures(tmp_path, soak, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", MATPLOTLIB, prepend=os.pathsep)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    for name in ("MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    notebook = read()
    for full, less in () if soak else LESS.items():
        (cell,) = (cell for cell in code(notebook) if full in cell.source)
        cell.source = cell.source.replace(full, less)
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    pictures = [base64.b64decode(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    for name, data in zip(FIGURES, pictures, strict=True):
        (tmp_path / f"{name}.png").write_bytes(data)
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).std() > 10, name
    printed = "".join(output.get("text", "") for output in outputs)
    assert "step 12/12" in printed or "step 200/200" in printed
    assert "Warning" not in printed and "Traceback" not in printed, printed
