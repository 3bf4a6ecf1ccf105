"""The three verbs that take a recipe, from Python: `shardclip.train("recipe.yaml", epochs=5, optim={"lr": 1e-3})`.

Changes are keywords. What is nested in the recipe is a dict, or a dotted key: `**{"optim.lr": 1e-3}`. A part that is
chosen by name is exchanged as a whole: `objective={"name": "siglip", "init_bias": -5}`, or `objective="siglip"`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from core.config import load_config
from core.errors import ConfigError, ShardclipError
from shardclip.measured import Results, results_of


def build(recipe: str | Path, **changes: Any) -> str:
    """Build a shard set, or what is left of it to build, as `shardclip build`; returns its folder or URL.

    Raises:
        ShardclipError: what stands in the way, in one sentence.
    """
    from shard_builder.build import build_shards
    from shard_builder.config import BuildConfig

    config = load_config(BuildConfig, Path(recipe), overrides(changes))
    build_shards(config, _console())
    return config.out


def train(recipe: str | Path, *, processes: int | None = None, **changes: Any) -> Path:
    """Train, as `shardclip train` in a process of its own, whose words are passed on; returns the run folder.

    An interrupt (Ctrl-C, a notebook's stop button) lets it save and leave; the same call goes on from there.

    Args:
        processes: on this machine; None: one for each GPU, or one.

    Raises:
        ConfigError: a key, type or value is wrong; found before anything starts.
        ShardclipError: training ended with an error, or was asked to stop; says its last words.
    """
    from trainer.config import TrainConfig

    words = overrides(changes)
    config = load_config(TrainConfig, Path(recipe), words)
    command = [sys.executable, "-m", "launch.cli", "train", str(recipe), *words]
    if processes is not None:
        command += ["--processes", str(processes)]
    code, last_words = _run(command)
    if code:
        raise ShardclipError(f"training ended with exit code {code}: {last_words or 'its own words stand above.'}")
    return config.run_dir


def evaluate(recipe: str | Path, **changes: Any) -> Results:
    """Measure a checkpoint, as `shardclip eval`; returns figures with their intervals: shares are from 0 to 1.

    Raises:
        ShardclipError: what stands in the way, in one sentence.
    """
    from eval.config import EvalConfig
    from eval.evaluate import evaluate as measure

    return results_of(measure(load_config(EvalConfig, Path(recipe), overrides(changes)), _console()))


def overrides(changes: Mapping[str, Any]) -> list[str]:
    """Changes in Python's values as the `key=value` words of a command line.

    Raises:
        ConfigError: a value that no recipe can hold.
    """
    return [f"{key}={_written(key, value)}" for key, value in _flat(changes)]


def _flat(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if isinstance(value, Mapping) and value and "name" not in value:  # with a name it is a part, exchanged whole
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _written(key: str, value: Any) -> str:
    try:
        return json.dumps(value, default=_plain, ensure_ascii=False)  # which is YAML too
    except TypeError:
        raise ConfigError(
            f"{key}: a recipe holds no {type(value).__name__}. Give text, numbers, lists or dicts."
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of numpy or torch
        return value.item()
    raise TypeError


def _run(command: list[str]) -> tuple[int, str]:
    """Run a command to its end, passing its output on; returns its exit code and its last sentence."""
    said = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:  # a session of its own: it is told of an interrupt once, from here
        assert process.stdout is not None
        while True:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    said = line.partition(": ")[2].strip() if line.startswith("shardclip") else said
                return process.wait(), said
            except KeyboardInterrupt:
                process.send_signal(signal.SIGTERM)  # it saves, and says so


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
