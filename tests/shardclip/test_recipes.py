"""Changes of a recipe in Python mean what `key=value` words mean; the verbs do what the command does."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_sets import make_shard_set

import shardclip
from core.config import load_config
from core.errors import ConfigError, ShardclipError
from shardclip.recipes import _run, overrides
from trainer.config import TrainConfig

RECIPE = """
run_dir: {folder}/run
data: {{train: {folder}/train, val: {folder}/val, num_workers: 0}}
global_batch_size: 8
epochs: 1
model: {{tower: shufflenet_v2_x0_5, freeze: tower, hidden_dim: 16}}
objective: {{name: infonce, label_smoothing: 0.1}}
optim: {{lr: 0.01, warmup_steps: 1, part_lr: {{head: 0.02}}}}
tracking: {{wandb: disabled}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3}, ["epochs=3"]),
        ({"optim": {"lr": 1e-5, "betas": (0.9, 0.99)}}, ["optim.lr=1e-5", "optim.betas=0.9,0.99"]),
        ({"optim.lr": 1e-5}, ["optim.lr=1e-5"]),
        ({"optim": {"part_lr": {"tower": 1e-4}}}, ["optim.part_lr.tower=1e-4"]),
        ({"objective": "siglip"}, ["objective=siglip"]),
        (
            {"objective": {"name": "siglip", "init_bias": -5}},
            ["objective={name: siglip, init_bias: -5}"],
        ),
        ({"objective": {"label_smoothing": 0.2}}, ["objective.label_smoothing=0.2"]),
        ({"max_steps": None, "deterministic": True}, ["max_steps=null", "deterministic=true"]),
        ({"data": {"train": ["a", "b c"], "columns": {}}}, ["data.train=[a, b c]", "data.columns={}"]),
        ({"run_dir": Path("runs/über: 1")}, ['run_dir="runs/über: 1"']),
        ({"epochs": np.int64(4), "optim.eps": np.float32(0.5)}, ["epochs=4", "optim.eps=0.5"]),
        ({"tracking": {"project": "none", "tags": ("1e3", "yes")}}, ["tracking.project=none", "tracking.tags=1e3,yes"]),
    ],
)
def test_changes_mean_what_words_mean(recipe: Path, changes: dict[str, Any], words: list[str]) -> None:
    assert load_config(TrainConfig, recipe, overrides(changes)) == load_config(TrainConfig, recipe, words)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optim": {"warmup_step": 3}}, "unknown key 'warmup_step'. Did you mean 'warmup_steps'?"),
        ({"epochs": object()}, "epochs: a recipe holds no object"),
        ({"epochs": "many"}, "epochs is 'many': a whole number is needed"),
        ({"run_dirs": "x"}, "unknown key 'run_dirs'"),
    ],
)
def test_a_wrong_change_ends_in_one_sentence_before_anything_starts(
    recipe: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        shardclip.train(recipe, **changes)
    assert sentence in str(raised.value)
    assert not (recipe.parent / "run").exists()


def test_training_and_evaluation_from_python(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 16), ("val", 8)):
        make_shard_set(tmp_path / split, count, split=split, seed=len(split))
    run = shardclip.train(recipe, processes=1, data={"max_damaged": 1})
    assert run == tmp_path / "run" and "max_damaged: 1" in (run / "config.yaml").read_text()
    assert "epoch" in capsys.readouterr().out  # the command's own words
    path = tmp_path / "eval.yaml"
    path.write_text(f"checkpoint: {run}\nshards: {tmp_path / 'val'}\n")
    results = shardclip.evaluate(path, num_workers=0, device="cpu", num_examples=1, out=tmp_path / "out")
    assert 0 <= results["figures"]["image_to_text/recall@1"] <= 1 and (tmp_path / "out/report.html").exists()
    again = shardclip.results(tmp_path / "out")
    assert dict(again) == dict(results) == json.loads((tmp_path / "out/results.json").read_text())
    interval = results.intervals["image_to_text/recall@1"]
    assert interval.low <= results.figures["image_to_text/recall@1"] == interval.estimate <= interval.high
    frame = again.frame().set_index("figure")
    assert dict(frame.value) == dict(results.figures) and set(frame.run) == {results.run}
    assert frame.low["image_to_text/recall@1"] == interval.low and np.isnan(frame.low["image_to_text/map@10"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ShardclipError, match=r"needs pandas: `pip install 'shardclip\[viz\]'`"):
            again.frame()
    (tmp_path / "out/results.json").write_text('{"run": ')
    with pytest.raises(ShardclipError, match=r"no whole JSON\. Run `shardclip eval` again"):
        shardclip.results(tmp_path / "out")
    with pytest.raises(ShardclipError, match=r"no such file\. Run `shardclip eval` first"):
        shardclip.results(tmp_path)
    assert shardclip.load(run, device="cpu").encode_image(np.zeros((40, 40, 3), np.uint8)).shape == (1, 8)
    with pytest.raises(ShardclipError, match="exit code 2: .*holds a finished run"):
        shardclip.train(recipe, processes=1, resume="no")


SAVES = """
import signal, sys, time
def save(number, frame):
    print("shardclip: saved at step 3, start the same command again", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, lambda number, frame: sys.exit(1))
print("training", flush=True)
time.sleep(60)
"""


def test_an_interrupt_lets_training_save_and_its_words_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    interrupt = threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    assert _run([sys.executable, "-c", SAVES]) == (75, "saved at step 3, start the same command again")
    assert capfd.readouterr().out == "training\nshardclip: saved at step 3, start the same command again\n"
