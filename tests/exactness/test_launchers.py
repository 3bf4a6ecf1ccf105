"""`accelerate launch`, `torchrun` and `shardclip train` start the same run: the same losses to the last digit."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from training_runs import STEPS_PER_EPOCH, end_state, last_checkpoint, losses, recipe

from core.config import dump_yaml, from_mapping
from trainer.config import TrainConfig

SCRIPTS = Path(sysconfig.get_path("scripts"))
ROOT = Path(__file__).resolve().parents[2]
# The words of the documentation, for two processes on the CPU.
LAUNCHERS = {
    "shardclip": ("shardclip", "train", "--processes", "2"),
    "accelerate": ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "launch.train"),
    "torchrun": ("torchrun", "--standalone", "--nproc_per_node", "2", "-m", "launch.train"),
}  # fmt: skip
ALONE = ("shardclip", "train", "--processes", "1")


@pytest.mark.slow
def test_every_launcher_gives_the_same_run(tmp_path: Path) -> None:
    values = recipe(tmp_path, epochs=1, run_dir=tmp_path / "unused")
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(from_mapping(TrainConfig, values, "test")))
    for name, words in LAUNCHERS.items():
        launch(words, path, tmp_path / name)
        assert last_checkpoint(tmp_path / name).state["world_size"] == 2
    first = tmp_path / "shardclip"
    assert len(losses(first)) == STEPS_PER_EPOCH
    for name in LAUNCHERS:
        assert losses(tmp_path / name) == losses(first), name
        assert end_state(tmp_path / name) == end_state(first), name

    launch(ALONE, path, tmp_path / "alone")
    worst = max(abs(float(losses(tmp_path / "alone")[step]) - float(loss)) for step, loss in losses(first).items())
    print(f"two processes: losses within {worst:.1e} of one process")
    assert worst <= 1e-5


def launch(words: tuple[str, ...], recipe_path: Path, run_dir: Path) -> None:
    """Run to the end; the launcher's exit code is the run's."""
    command, *options = words
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [str(SCRIPTS / command), *options, str(recipe_path), f"run_dir={run_dir}"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stderr}"
