"""A run folder with one checkpoint of an untrained tower, and the recipe that evaluates it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from column_folders import add_column
from shard_sets import make_shard_set

import eval.evaluating
from core.manifest import TextEncoderSpec
from eval.config import EvalConfig
from trainer.checkpoint.folder import save_checkpoint
from trainer.models.build import build_encoder
from trainer.models.config import ModelConfig
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent


def write_run(folder: Path, embed_dim: int | None = 8, **config) -> None:
    """With `embed_dim=None` an encoder of pictures alone."""
    objective = InfoNCE() if embed_dim else NTXent()
    model = build_encoder(ModelConfig(tower="shufflenet_v2_x0_5", hidden_dim=16), objective, embed_dim, image_size=32)
    learned = {name: torch.tensor(value) for name, value in objective.parameters().items()}
    mean, std = model.normalization
    save_checkpoint(
        folder / "checkpoints",
        parts={"encoder": model.state_dict(), "objective": learned},
        optimizer_state={},
        state={"step": 3},
        identity={
            "model": model.describe(),
            "text_encoder": asdict(TextEncoderSpec("random", "0", embed_dim, "0" * 64)) if embed_dim else None,
            "image": {"size": 32, "fit": "crop", "mean": list(mean), "std": list(std)},
            "config": {"global_batch_size": 4, "objective": "infonce" if embed_dim else "nt_xent", **config},
        },
        keep_last=1,
        is_best=True,
    )


def classes_of(url, count, classes=("cat", "dog"), unlabelled=()):
    """Give a set labels: its classes in turn."""
    labels = (np.arange(count) % len(classes)).astype("<i4")
    labels[list(unlabelled)] = -1
    add_column(url, "labels", labels, classes=classes)


def write_pictures_alone(folder: Path) -> tuple[Path, str]:
    """A run of an objective without captions, and its labelled training set of 15 pictures."""
    train = make_shard_set(folder / "train", 15, seed=4, source="train")
    classes_of(train, 15, ("dog", "cat", "cow"))
    write_run(folder / "alone", embed_dim=None, data={"train": [train], "columns": {}})
    return folder / "alone", train


def config_of(run_dir, shards, out, **more):
    return EvalConfig(checkpoint=run_dir, shards=(shards,), out=out, num_workers=0, device="cpu", **more)


def embed_by_stand_in(patch):
    """Texts are embedded by a stand-in for the frozen encoder: 8 random numbers that go by the text."""

    def embed(texts):
        rows = np.stack([np.random.default_rng([*text.encode()]).standard_normal(8) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    patch.setattr(eval.evaluating, "text_embedder", lambda spec, choice, device: embed)
