"""What training gets from a validation: the same figures on every rank, a score, and a picture in the run folder."""

from pathlib import Path

import gloo
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from shard_sets import make_shard_set
from torch import nn
from trainer.losses import InfoNCE

from core.shard_set import ShardSet
from eval.metrics import retrieval_ranks, summarise
from eval.validation import make_validation
from trainer.config import DataConfig, TrainConfig
from trainer.data.loader import EvalLoader


class PixelModel(nn.Module):
    def forward(self, images):
        pixels = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)[:, :8]
        return nn.functional.normalize(pixels, dim=-1), torch.tensor(10.0)


def normalize(images):
    return images.float() / 255 - 0.5


def validate(url, run_dir, times=1):
    config = TrainConfig(
        run_dir=Path(run_dir), data=DataConfig((url,), (url,), num_workers=0), global_batch_size=6, eval_batch_size=4
    )
    validation = make_validation(ShardSet.open(url), normalize, InfoNCE(), config, Accelerator(cpu=True))
    for step in range(times):
        measured = validation(PixelModel(), step)
    return dict(measured.metrics), measured.score, [str(path) for _, path, _ in measured.pictures]


def test_a_validation_measures_what_an_evaluation_would(tmp_path):
    url = make_shard_set(tmp_path / "val", 11, num_captions=3)
    metrics, score, pictures = validate(url, tmp_path / "run", times=2)
    from eval.features import extract

    shard_set = ShardSet.open(url)
    loader = EvalLoader(shard_set, batch_size=11)
    found = extract(PixelModel(), normalize, shard_set, loader, device=torch.device("cpu"))
    expected = summarise(retrieval_ranks(found.features))
    recalls = []
    for direction, figures in expected.items():
        for name, value in figures.items():
            assert metrics[f"val/{direction}/{name}"] == pytest.approx(value), name
        recalls += [figures[f"recall@{k}"] for k in (1, 5, 10)]
    assert score == pytest.approx(np.mean(recalls))
    assert metrics["val/loss"] > 0
    assert pictures == [str(tmp_path / "run" / "pictures" / "val-retrieval-00000001.jpg")]
    assert Path(pictures[0]).stat().st_size > 5000


def test_two_ranks_get_the_figures_of_one(tmp_path):
    url = make_shard_set(tmp_path / "val", 7, num_captions=[1, 2, 3, 4, 1, 2, 3])
    alone = validate(url, tmp_path / "alone")
    for metrics, score, _ in gloo.run(2, validate, url, str(tmp_path / "both")):
        assert score == pytest.approx(alone[1])
        assert metrics == pytest.approx(alone[0])
