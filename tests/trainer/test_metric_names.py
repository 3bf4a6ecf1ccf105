"""A metric's name stands once, in `trainer/telemetry/names.py`; everything else asks for it there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from trainer.telemetry import names

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for room in ("trainer", "eval") for path in sorted((ROOT / room).rglob("*.py"))]
OPENINGS = tuple(f"{section}/" for section in names.SECTIONS)


def literals(tree: ast.AST) -> list[str]:
    """Texts of a file, f-strings' beginnings among them; docstrings left out."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_file_spells_a_metrics_name(path: Path) -> None:
    if path.name != "names.py":
        spelled = [text for text in literals(ast.parse(path.read_text())) if text.startswith(OPENINGS)]
        assert not spelled, f"{spelled[0]}: name it in trainer/telemetry/names.py"


def test_names_open_with_their_section() -> None:
    assert names.val(names.of_direction(names.IMAGE_TO_TEXT, names.recall(10))) == "val/image_to_text/recall@10"
    assert names.section(names.lr("tower")) == "train" and names.within_section(names.lr("tower")) == "lr_tower"
    assert names.grad_ratio("head") == "check/grad_ratio_head" and names.wait_share_of("read") == "perf/wait_read_share"
