"""Whole training runs on tiny shards: a recipe, a worker for gloo processes, and what a run left behind."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from shard_sets import make_shard_set
from torch import Tensor, nn

from core.config import from_mapping
from core.errors import ShardclipError
from core.storage import publish_bytes
from trainer.checkpoint.folder import Checkpoint, latest_checkpoint, load_checkpoint
from trainer.checkpoint.tensor_tree import encode_tree
from trainer.config import TrainConfig

NUM_SAMPLES, STEPS_PER_EPOCH = 50, 6


def recipe(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of 12 steps on a tower whose batch statistics do not move."""
    for split, count in (("train", NUM_SAMPLES), ("val", 12)):
        if not (tmp_path / split).exists():
            make_shard_set(tmp_path / split, count, size=32, split=split, seed=len(split))
    values: dict[str, Any] = {
        "run_dir": tmp_path / "run",
        "data": {"train": str(tmp_path / "train"), "val": str(tmp_path / "val"), "num_workers": 0},
        "global_batch_size": 8,
        "epochs": 2,
        "model": {"tower": "resnet18", "freeze": "tower", "hidden_dim": 16},
        "optim": {"lr": 0.01, "warmup_steps": 2},
        "log_every": 1,
        "eval_every": 4,
        "checkpoint_every": 4,
        "tracking": {"wandb": "disabled"},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return values


SMALL_TOWER = {"tower": "small", "freeze": "nothing", "hidden_dim": 16}  # the `model` of a recipe
# Changes of a recipe: dropout, trained batch norms, averaged weights and accumulation, which is all the state there is.
NOISY: dict[str, Any] = {
    "model": {"tower": "shufflenet_v2_x0_5", "freeze": "nothing", "dropout": 0.3},
    "optim": {"ema_decay": 0.9},
    "accumulate": 2,
    "image_size": 64,  # at 32 the last batch norms would see two values each, and the gradients explode
}


def train_worker(
    values: dict[str, Any],
    stop_at: int | None = None,
    crash_at: int | None = None,
    plant: Callable[[], None] | None = None,
) -> int | str:
    """Train in this process of a group; returns the exit code, or the sentence of the error.

    A signal or an error can be planted at a validation, anything else by `plant`, called before the run is opened.
    """
    from torch import distributed

    os.environ.update(
        RANK=str(distributed.get_rank()),
        LOCAL_RANK=str(distributed.get_rank()),
        WORLD_SIZE=str(distributed.get_world_size()),
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
    )
    from accelerate.state import AcceleratorState

    from eval import validation
    from trainer import train as training
    from trainer.run.opening import open_run

    AcceleratorState._reset_state(reset_partial_state=True)
    register_small_tower()
    validation._draw = _draw_nothing
    validation._draw_neighbours = _draw_no_neighbours
    if plant is not None:
        plant()

    def planted(*arguments: Any) -> Any:
        validate = validation.make_validation(*arguments)

        def measure(model: Any, step: int, nth: int | None) -> Any:
            if step == stop_at and distributed.get_rank() == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            if step == crash_at:
                raise ZeroDivisionError("planted")
            return validate(model, step, nth)

        return measure

    try:
        return training.train(open_run(from_mapping(TrainConfig, values, "test"), planted))
    except ShardclipError as error:
        return str(error)
    except ZeroDivisionError:
        return "crashed"


def losses(run_dir: Path) -> dict[int, str]:
    """Loss of every step, as written."""
    with open(run_dir / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps)), "a step stands twice"
    assert all(math.isfinite(float(row["train/loss"])) for row in rows), "one dead model equals another"
    return {int(row["step"]): row["train/loss"] for row in rows}


def last_checkpoint(run_dir: Path) -> Checkpoint:
    """The run's latest checkpoint, verified."""
    path = latest_checkpoint(run_dir / "checkpoints")
    assert path is not None
    return load_checkpoint(path)


def end_state(run_dir: Path) -> dict[str, Any]:
    """Every tensor and random generator of the last checkpoint, bit for bit."""
    checkpoint = last_checkpoint(run_dir)
    return {
        "weights": {
            name: tensor.numpy().tobytes()
            for name, tensor in {**checkpoint.parts["encoder"], **checkpoint.parts["objective"]}.items()
        },
        "averaged": {name: tensor.numpy().tobytes() for name, tensor in checkpoint.parts.get("ema", {}).items()},
        "moments": b"".join(encode_tree(checkpoint.optimizer_state)),
        "rng": checkpoint.state["rng"],
    }


def samples_of(batch: Any) -> list[Any]:
    """The sample of each row."""
    return list(batch.samples.tolist())


def rows_of(batch: Any) -> list[Any]:
    """Sample, draw, and hashes of caption and pixels of each row."""
    digests = [
        [xxhash.xxh3_64_hexdigest(row.contiguous().numpy().tobytes()) for row in rows]
        for rows in (batch.column("text"), batch.images)
    ]
    return [list(row) for row in zip(batch.samples.tolist(), batch.draws.tolist(), *digests, strict=True)]


def record_samples(folder: Path, rows: Callable[[Any], list[Any]] = samples_of) -> None:
    """Plant: from now on each rank writes down the samples of every step that it has trained on, or other `rows`."""
    from core.distributed import rank
    from trainer.data.batch import Batch
    from trainer.data.ledger import CoverageLedger

    real = CoverageLedger.add

    def add(ledger: CoverageLedger, batch: Batch) -> None:
        real(ledger, batch)
        place = folder / f"{batch.epoch}-{batch.step}-{rank()}.json"
        assert not place.exists(), "a step was trained twice"
        place.write_text(json.dumps(rows(batch)))

    folder.mkdir(parents=True, exist_ok=True)
    CoverageLedger.add = add  # type: ignore[method-assign]


def recorded_steps(folder: Path) -> dict[tuple[int, int], list[Any]]:
    """What `record_samples` wrote: the rows of all ranks, in rank order, by (epoch, step)."""
    steps: dict[tuple[int, int], list[Any]] = {}
    places = [(*map(int, path.stem.split("-")), path) for path in folder.iterdir()]
    for epoch, step, _, path in sorted(places):
        steps.setdefault((epoch, step), []).extend(json.loads(path.read_text()))
    return steps


class _SmallTower(nn.Module):
    """Trained as a whole in milliseconds; without batch statistics, so that a row does not depend on its rank's."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GroupNorm(2, 8), nn.GELU())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.GroupNorm(4, 16), nn.GELU())
        self.fc = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(images)).mean((2, 3)))  # type: ignore[no-any-return]


def _draw_nothing(extracted: Any, ranks: Any, shard_set: Any, run_dir: Path, step: int) -> tuple[str, Path, str]:
    """A validation's picture without what it shows: matplotlib takes longer than the steps between two of them."""
    path = run_dir / "pictures" / f"val-retrieval-{step:08d}.jpg"
    publish_bytes(b"", path)
    return "val/retrieval", path, "nothing"


def _draw_no_neighbours(examples: Any, run_dir: Path, step: int) -> tuple[str, Path, str]:
    path = run_dir / "pictures" / f"val-neighbours-{step:08d}.jpg"
    publish_bytes(b"", path)
    return "val/neighbours", path, "nothing"


def register_small_tower() -> None:
    """Let recipes and checkpoints of this process name it."""
    from torchvision.models._api import register_model  # no public name leads to it

    from trainer.models.towers import torchvision as family

    if "small" not in family.NAMES:
        register_model("small")(_SmallTower)
        family.NAMES = (*family.NAMES, "small")
