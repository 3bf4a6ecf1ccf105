"""The notebook runs from its first cell to its last, in a kernel of its own, and has no outputs of an earlier day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "shardclip.ipynb"


def read() -> Any:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_the_notebook_is_kept_without_outputs() -> None:
    assert not [cell for cell in read().cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.timeout(600)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDCLIP_EXAMPLE", str(tmp_path))
    monkeypatch.setenv("SHARDCLIP_EXAMPLE_SCENES", "40")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = read()
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(ROOT)}}).execute()
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))
    assert "(8, 384) (8, 2)" in said and "image_to_text/recall@10" in said and "library_name: torchvision" in said
    assert (tmp_path / "eval" / "report.html").exists() and (tmp_path / "exported" / "tower.safetensors").exists()
