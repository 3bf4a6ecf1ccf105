"""Recipes and the options of their parts are read without torch: importing it takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
sys.modules["torch"] = None  # whoever imports it fails
import core.columns, core.config, core.parts, core.text_encoders
import shard_builder.config, shard_builder.engines, shard_builder.readers
from pathlib import Path
from core.config import dump_yaml, load_config
from core.parts import check
from core.text_encoders import TEXT_ENCODERS
from shard_builder.config import BuildConfig

for recipe in sorted(Path(sys.argv[1]).glob("*.yaml")):
    config = load_config(BuildConfig, recipe)
    check(TEXT_ENCODERS, config.text_encoder, "text encoder", given=["device"])
    print(recipe.name, len(dump_yaml(config)))
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, str(ROOT / "configs" / "build")]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_every_build_recipe_loads_without_torch() -> None:
    done = run(PROGRAM)
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == sorted(path.name for path in (ROOT / "configs" / "build").glob("*.yaml")) and len(names) >= 12


def test_an_import_of_torch_would_be_seen() -> None:
    done = run(PROGRAM.replace("import core.columns,", "import trainer.step.proof, core.columns,"))
    assert done.returncode != 0 and "torch" in done.stderr
