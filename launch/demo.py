"""The whole job in minutes: drawn scenes -> shards -> two training processes -> recall, pictures, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from core.config import load_config, read_recipe
from core.errors import ConfigError
from eval.config import EvalConfig
from eval.evaluate import evaluate
from launch.launcher import TRAINING, launch
from launch.machines import Machines, Words
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig
from trainer.guard.signals import REQUEUE_EXIT_CODE

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NUM_PROCESSES = 2
DIRECTIONS = ("image_to_text", "text_to_image")


def run_demo(out: Path, console: Console) -> None:
    """Build, train and evaluate under `out`; run again, it reuses what is whole.

    Raises:
        ConfigError: training ended with an error, which it has named itself.
    """
    run_dir, seconds = out / "run", {}
    sources = [f"source.folder={out / 'scenes'}", f"cache_dir={out / 'cache'}"]
    shards = {split: out / f"shards-{split}" for split in ("train", "val")}
    for split, folder in shards.items():
        recipe = load_config(BuildConfig, CONFIGS / f"build/demo_{split}.yaml", [*sources, f"out={folder}"])
        console.print(Rule(f"1. Build shards: {split}", align="left"))
        seconds[f"build {split} shards"] = _timed(lambda recipe=recipe: build_shards(recipe, console))  # type: ignore[misc]

    console.print(Rule(f"2. Train with {NUM_PROCESSES} processes", align="left"))
    overrides = [f"run_dir={run_dir}", f"data.train={shards['train']}", f"data.val={shards['val']}"]
    seconds["train"] = _timed(lambda: _train([str(CONFIGS / "train/demo.yaml"), *overrides]))

    console.print(Rule("3. Evaluate on held-out scenes", align="left"))
    recipe_eval = [f"checkpoint={run_dir}", f"shards={shards['val']}", f"out={run_dir / 'eval'}"]
    config = load_config(EvalConfig, CONFIGS / "eval/demo.yaml", [*recipe_eval, *_without_map(console)])
    results: dict[str, Any] = {}
    seconds["evaluate"] = _timed(lambda: results.update(evaluate(config, console)))
    _summary(results, seconds, run_dir / "eval" / "report.html", console)


def _without_map(console: Console) -> list[str]:
    """The other evaluations alone where the library of the feature map is not installed, which is said."""
    if find_spec("sklearn"):
        return []
    console.print("no feature map: it needs scikit-learn (pip install 'shardclip[viz]').", markup=False)
    listed = read_recipe(CONFIGS / "eval/demo.yaml")["evaluations"]
    return [f"evaluations={json.dumps([one for one in listed if 'feature_map' not in str(one)])}"]


def _train(arguments: list[str]) -> None:
    code = launch(TRAINING, arguments, Words(Machines(), NUM_PROCESSES))
    if code == REQUEUE_EXIT_CODE:
        raise KeyboardInterrupt  # it was stopped, and has saved
    if code:
        raise ConfigError(f"demo: training ended with exit code {code}; its own words stand above.")


def _timed(act: Callable[[], object]) -> float:
    started = time.monotonic()
    act()
    return time.monotonic() - started


def _summary(results: dict[str, Any], seconds: dict[str, float], report: Path, console: Console) -> None:
    table = Table("part", "seconds", title="What it took", title_justify="left")
    for part, taken in seconds.items():
        table.add_row(part, f"{taken:.0f}")
    console.print(table)
    recall = "; ".join(
        f"{direction.replace('_', ' ')} R@1 {100 * results[direction]['recall@1']:.1f} %, "
        f"R@10 {100 * results[direction]['recall@10']:.1f} %"
        for direction in DIRECTIONS
    )
    console.print(f"report: {report}", markup=False)
    console.print(f"recall: {recall}")
    console.print("next:   shardclip build configs/build/coco2014_train.yaml   (your own photographs: see README.md)")
