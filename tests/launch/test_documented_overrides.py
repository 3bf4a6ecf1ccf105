"""What docs, README and the comments of recipes tell people to write is read, by the dataclass of its verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from documented import ROOT, Written, overrides

from core import parts
from core.config import Choice, load_config
from core.errors import ConfigError
from eval.config import EvalConfig
from launch.columns import COLUMNS
from shard_builder.config import BuildConfig
from trainer.config import TrainConfig

Read = Callable[[tuple[str, ...]], object]
KINDS = {"build": BuildConfig, "train": TrainConfig, "eval": EvalConfig}  # the folders of configs/ too
VERBS = {**KINDS, "plan": BuildConfig, "doctor": TrainConfig}
WRITTEN = overrides()


def recipes(kind: str) -> list[Path]:
    return sorted((ROOT / "configs" / kind).glob("*.yaml"))


def reads(written: Written) -> list[Read]:
    """The ways in which it may be meant: one must take it."""
    if written.verb == "column" or (not written.verb and written.file == "docs/columns.md"):
        return [lambda words, kind=kind: column(kind, words) for kind in COLUMNS]  # type: ignore[misc]
    own = Path(ROOT / written.file)
    if own.suffix == ".yaml" and written.verb == own.parent.name:
        return [lambda words: load_config(KINDS[own.parent.name], own, words)]
    kinds = [written.verb] if written.verb else list(KINDS)
    return [
        lambda words, kind=kind, path=path: load_config(VERBS[kind], path, words)  # type: ignore[misc]
        for kind in kinds
        for path in recipes({"plan": "build", "doctor": "train"}.get(kind, kind))
    ]


def column(kind: str, words: tuple[str, ...]) -> None:
    options = dict(word.split("=", 1) for word in words)
    parts.check(COLUMNS, Choice(kind, options), "column", given=["work"])


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: f"{written.file}:{written.line} {written.words[0]}")
def test_what_is_documented_is_taken(written: Written) -> None:
    complaints = []
    beside = tuple(
        f"run_dir={word.split('/checkpoints')[0].removeprefix('resume=')}"
        for word in written.words
        if "/checkpoints" in word
    )
    for read in reads(written):
        try:
            read((*beside, *written.words))
            return
        except ConfigError as error:
            complaints.append(str(error))
    pytest.fail(f"{written}: {complaints[0]}")


def test_they_are_found() -> None:
    assert len(WRITTEN) > 25
    assert {"train", "build", "eval", "column"} <= {written.verb for written in WRITTEN}
    assert ("engine.pillow_simd=false",) in {written.words for written in WRITTEN}


def test_options_without_a_name_go_to_the_part_that_is_used_without_one() -> None:
    recipe = ROOT / "configs/build/demo_train.yaml"
    engine = load_config(BuildConfig, recipe, ["engine.pillow_simd=false"]).engine
    assert engine == Choice("processes", {"pillow_simd": "false"})
    with pytest.raises(ConfigError, match="engine 'processes': unknown option 'pillow'"):
        load_config(BuildConfig, recipe, ["engine.pillow=false"])
