"""The command: mistakes end in one sentence and exit code 2, faults in 1, and what is done is done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shard_sets import damage, make_shard_set

from launch import cli
from trainer.checkpoint.folder import latest_checkpoint, load_checkpoint

RECIPE = """
run_dir: {folder}/run
data: {{train: {folder}/train, val: {folder}/val, num_workers: 1}}
global_batch_size: 8
epochs: 1
model: {{tower: resnet18, freeze: tower, hidden_dim: 16}}
optim: {{lr: 0.01, warmup_steps: 1}}
log_every: 1
tracking: {{wandb: disabled}}
"""


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """Exit code and everything printed."""
    monkeypatch.setattr(sys, "argv", ["shardclip", *map(str, arguments)])
    code: object = 0
    try:
        cli.main()
    except SystemExit as leaving:
        code = leaving.code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return int(str(code or 0)), printed.out + printed.err


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for split, count in (("train", 24), ("val", 12)):
        make_shard_set(tmp_path / split, count, size=32, split=split, seed=len(split))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["build", "nowhere.yaml"], "shardclip: nowhere.yaml: no such recipe."),
        (
            ["train", "{recipe}", "optim.warmup_step=3"],
            "unknown key 'warmup_step'. Did you mean 'warmup_st",
        ),
        (["train", "{recipe}", "optim.lr=fast"], "lr is 'fast': a number is needed."),
        (["train", "{recipe}", "objective=infonse"], "objective: unknown name 'infonse'. Did you mean 'infonce'?"),
        (["verify", "{folder}"], "no manifest.json, so no shard set is there"),
        (["preview", "{folder}/train", "--query", "zebra"], "no caption contains 'zebra'"),
        (["report", "{folder}"], "{folder}"),
        (["column", "lables", "{folder}/train"], "column: unknown kind 'lables'. Did you mean 'labels'?"),
        (["column", "topics"], "column topics: name a shard set"),
        (
            ["column", "topics", "{folder}/train", "num_topcs=3"],
            "unknown option 'num_topcs'. Did you mean 'num_topics'?",
        ),
        (["column", "topics", "{folder}/train", "seed=1", "seed=2"], "'seed=' stands twice. Give it once."),
        (["column", "labels", "{folder}/train", "file={folder}/none.csv"], "none.csv: no such file."),
        (["column", "{folder}"], "column: unknown kind '{folder}'"),
    ],
)
def test_mistakes_end_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recipe: Path,
    arguments: list[str],
    sentence: str,
) -> None:
    places = {"recipe": recipe, "folder": recipe.parent}
    code, said = run(capsys, monkeypatch, *(word.format(**places) for word in arguments))
    assert code in (1, 2) and sentence.format(**places) in " ".join(said.split())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("objective={{name: infonce, label_smoothing: 2}}", "label_smoothing is 2"),
        pytest.param("start_from={folder}/nowhere", "no checkpoint there", marks=pytest.mark.slow),
        ("model.weights={folder}/train", "start_from={folder}/train"),
        pytest.param("optim.part_lr={{towr: 1}}", "nothing called 'towr' is trained", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_in_a_training_leaves_no_run_folder(recipe: Path, override: str, sentence: str) -> None:
    folder = recipe.parent
    command = [sys.executable, "-m", "launch.cli", "train", str(recipe), "--processes", "1"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        [*command, override.format(folder=folder)], capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 2, done.stderr
    assert sentence.format(folder=folder) in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "run").exists()


def test_verify_names_shard_and_sample(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.setattr(cli.console, "width", 200)
    damage(str(recipe.parent / "train"), 13)
    code, said = run(capsys, monkeypatch, "verify", recipe.parent / "train")
    assert code == 1 and "train-00001.tar" in said and "000000013" in said


def test_doctor_finds_what_would_stop_a_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.setattr(cli.console, "width", 400)
    code, said = run(capsys, monkeypatch, "doctor", recipe)
    assert code == 0 and "24 training samples, 3 steps an epoch" in said
    make_shard_set(recipe.parent / "wide", 12, embed_dim=16)
    code, said = run(
        capsys, monkeypatch, "doctor", recipe, f"data.val={recipe.parent / 'wide'}", "global_batch_size=64"
    )
    assert code == 1 and "error" in said


def test_columns_are_made_listed_shown_and_examined(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.setattr(cli.console, "width", 400)
    train, val, labels = recipe.parent / "train", recipe.parent / "val", recipe.parent / "labels.csv"
    code, said = run(capsys, monkeypatch, "column", train)
    assert code == 0 and "has no columns. `shardclip column` makes them: features, labels" in said
    labels.write_text("image_id,label\n" + "".join(f"{n},kind {n % 3}\n" for n in range(24)))
    code, said = run(capsys, monkeypatch, "column", "labels", train, val, f"file={labels}")
    assert code == 0 and "12 rows of the file belong to no sample" in said
    code, said = run(capsys, monkeypatch, "column", "topics", train, "num_topics=3")
    assert code == 0 and "topics: <i4 a sample" in said
    code, said = run(capsys, monkeypatch, "column", "list", train)
    assert code == 0 and "labels" in said and "num_topics 3" in said
    code, said = run(capsys, monkeypatch, "preview", train, "--count", 2, "--out", recipe.parent / "p.png")
    assert code == 0 and "label, topic" in said and "kind " in said and "topics " in said
    code, said = run(capsys, monkeypatch, "doctor", recipe)
    assert code == 0 and "columns labels (labels), topics (topics)" in said
    shutil.rmtree(val / "columns")
    shutil.copytree(train / "columns", val / "columns")
    code, said = run(capsys, monkeypatch, "doctor", recipe)
    assert code == 1 and "column topics was made for other samples" in said and f"Delete {val}/columns/topics" in said


def test_the_doctor_counts_the_loaders_own_buffers(recipe: Path) -> None:
    from core.config import load_config
    from core.shard_set import ShardSet
    from launch.doctor import Examined, check_memory
    from trainer.config import TrainConfig
    from trainer.data.loader import TrainLoader

    config = load_config(TrainConfig, recipe, ["image_size=224", "data.num_workers=3", "data.prefetch=5"])
    loader = TrainLoader(ShardSet.open(config.data.train), global_batch_size=8, num_workers=3, prefetch=5)
    held = sum(array.nbytes for array in loader._stream._buffers.arrays)
    loader.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launch.doctor.GIB", held)
        assert "loader buffers of all ranks: about 1.00 GiB" in list(check_memory(Examined(config, 1)))[-1].what


def test_two_processes_train_and_their_exit_code_is_passed_on(recipe: Path) -> None:
    command = [sys.executable, "-m", "launch.cli", "train", str(recipe), "--processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "gradient proof passed" in done.stdout
    checkpoint = latest_checkpoint(recipe.parent / "run" / "checkpoints")
    assert checkpoint is not None and load_checkpoint(checkpoint).state["world_size"] == 2
    covered = [json.loads(line) for line in (recipe.parent / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["missed"] for event in covered if event["event"] == "epoch covered"] == [0]

    failed = subprocess.run([*command, "seed=1"], capture_output=True, text=True, env=environment, timeout=240)
    assert failed.returncode == 2 and failed.stderr.count("shardclip:") == 1
    assert "seed was 0, it is 1 now" in failed.stderr and "Traceback" not in failed.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_to_the_command_saves_and_gives_the_requeue_code(recipe: Path, processes: int) -> None:
    command = [sys.executable, "-m", "launch.cli", "train", str(recipe), "--processes", str(processes), "epochs=500"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        try:
            assert run.stdout is not None
            next(line for line in run.stdout if line.startswith("step"))
            run.send_signal(signal.SIGUSR1)
            said, errors = run.communicate(timeout=120)
        finally:
            run.kill()
    assert run.returncode == 75, errors[-2000:]
    assert "saved at step" in said
    assert json.loads((recipe.parent / "run" / "run.json").read_text())["state"] == "stopped"
