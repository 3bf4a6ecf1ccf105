"""One evaluation by several processes: the same results, files and report as by one."""

import json
import subprocess
import sys

import gloo
import numpy as np
import pytest
from evaluated_runs import classes_of, config_of, write_pictures_alone, write_run
from rich.console import Console
from safetensors import safe_open
from shard_sets import make_shard_set

from eval.evaluate import evaluate

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder with one checkpoint of an untrained tower."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_run(folder)
    return folder


@pytest.fixture
def shards(tmp_path):
    return make_shard_set(tmp_path / "val", 12, num_captions=[1 + n % 3 for n in range(12)], split="val")


@pytest.fixture
def pictures_alone(tmp_path):
    return write_pictures_alone(tmp_path)


def evaluated_together(run_dir, shards, out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        results = evaluate(config_of(run_dir, shards, out, labelled_shards=(shards,)), QUIET)
    return {k: v for k, v in results.items() if k not in ("evaluated", "seconds", "config", "run_dir", "hardware")}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_write_what_one_writes(pictures_alone, shards, tmp_path, processes):
    run, _ = pictures_alone
    classes_of(shards, 12, unlabelled=[11])
    (alone,) = gloo.run(1, evaluated_together, run, shards, tmp_path / "one")
    together = gloo.run(processes, evaluated_together, run, shards, tmp_path / "out")
    assert together == [alone] * processes
    names = [sorted(p.relative_to(tmp_path / out) for p in (tmp_path / out).rglob("*")) for out in ("one", "out")]
    assert names[0] == names[1] and (tmp_path / "out/report.html").exists()
    features = [load_pictures(tmp_path / out / "features.safetensors") for out in ("one", "out")]
    assert np.array_equal(*features)


def load_pictures(path):
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor("images")


def command_of(run_dir, shards, tmp_path):
    """`shardclip eval` of two processes."""
    recipe = tmp_path / "eval.yaml"
    recipe.write_text(
        f"checkpoint: {run_dir}\nshards: {shards}\nout: {tmp_path / 'out'}\nnum_workers: 0\ndevice: cpu\n"
    )
    return [sys.executable, "-m", "launch.cli", "eval", str(recipe), "--processes", "2"]


@pytest.mark.slow
def test_the_command_starts_as_many_processes_as_it_is_told(run_dir, shards, tmp_path):
    command = command_of(run_dir, shards, tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("protocol: full gallery") == 1  # the first one speaks
    assert json.loads((tmp_path / "out/results.json").read_text())["figures"]


def test_a_mistake_that_every_process_meets_is_said_once(run_dir, shards, tmp_path):
    command = [*command_of(run_dir, shards, tmp_path), "labelled_shards=" + shards]
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert wrong.stderr.count("has no class labels") == 1
