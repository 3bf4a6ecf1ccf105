"""Recipes are read and checked before torch is loaded: a typo is answered at once, and a command line is quick."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READ = """
import sys
from pathlib import Path
from core.config import load_config
{imports}
for path in sorted(Path("configs/{kind}").glob("*.yaml")):
    load_config({name}, path)
    loaded = sorted(name for name in sys.modules if name.split(".")[0] in {heavy})
    assert not loaded, (path, loaded[:3])
print("read")
"""
HEAVY = {"torch", "torchvision", "transformers", "accelerate", "matplotlib", "wandb"}


@pytest.mark.parametrize(
    ("kind", "name", "module"),
    [("train", "TrainConfig", "trainer.config"), ("eval", "EvalConfig", "eval.config")],
)
def test_recipes_are_read_without_torch(kind: str, name: str, module: str) -> None:
    program = READ.format(imports=f"from {module} import {name}", kind=kind, name=name, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "read\n", done.stderr


@pytest.mark.parametrize(
    "module",
    ["trainer.objectives", "trainer.samplers", "trainer.optim.config", "trainer.models.texts", "eval.evaluations",
     "core.text_encoders", "trainer.early", "eval.early", "eval.compare.early", "launch.early", "launch.examine",
     "launch.machines", "launch.launcher"],
)  # fmt: skip
def test_tables_and_early_checks_load_no_torch(module: str) -> None:
    program = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr
