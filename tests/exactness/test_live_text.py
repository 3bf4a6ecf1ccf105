"""A text tower that is trained: the same run on any number of processes and chunks, resumed, and evaluated."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gloo
import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_text_models import saved, word_pieces
from training_runs import SMALL_TOWER, end_state, last_checkpoint, losses, recipe, register_small_tower, train_worker

from eval.encoder import load_encoder
from launch.columns import column
from trainer.guard.signals import REQUEUE_EXIT_CODE


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without dropout, so that ranks draw nothing."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(word_pieces()), max_position_embeddings=64, **sizes, **still)
    return saved(BertModel(config), tmp_path_factory.mktemp("bert") / "still-bert", "BertTokenizer")


def live(tmp_path: Path, bert: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A recipe of a live text tower; its sets get a column of tokens when they are made."""
    text = {"name": "sentence", "model": str(bert), "tokens": "tokens.bert", "train": "1"}
    model = {**SMALL_TOWER, "embed_dim": 12, "text": text}
    values = recipe(tmp_path, run_dir=tmp_path / name, model=model, **changes)
    if not (tmp_path / "train" / "columns").exists():
        words = ["tokens", values["data"]["train"], "encoder=sentence", f"model={bert}", "name=tokens.bert"]
        column(words, tmp_path / "cache", Console(file=io.StringIO()))
    return values


OBJECTIVES = [pytest.param({"name": "siglip"}, marks=pytest.mark.slow), {"name": "infonce", "captions": "all"}]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["siglip", "infonce-all-captions"])
def test_processes_chunks_and_all_captions_give_the_same_run(
    tmp_path: Path, bert: Path, objective: dict[str, Any]
) -> None:
    runs = {}
    for world_size, accumulate in ((1, 1), (2, 2)):
        name = f"{world_size}-{accumulate}"
        values = live(tmp_path, bert, name, objective=objective, accumulate=accumulate, epochs=1)
        assert gloo.run(world_size, train_worker, values) == [0] * world_size
        runs[name] = np.array([float(loss) for loss in losses(tmp_path / name).values()])
    first, other = runs.values()
    assert first[-1] < first[0]
    assert np.abs(first - other).max() < 1e-5, runs


@pytest.mark.parametrize("then", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_at_any_number_of_processes(tmp_path: Path, bert: Path, then: int) -> None:
    whole, broken = live(tmp_path, bert, "whole"), live(tmp_path, bert, "broken")
    assert gloo.run(2, train_worker, whole) == [0, 0]
    assert gloo.run(2, train_worker, broken, 4) == [REQUEUE_EXIT_CODE] * 2
    assert gloo.run(then, train_worker, broken) == [0] * then
    if then == 2:
        assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
        assert end_state(tmp_path / "broken") == end_state(tmp_path / "whole")
    pairs = zip(losses(tmp_path / "broken").values(), losses(tmp_path / "whole").values(), strict=True)
    assert max(abs(float(a) - float(b)) for a, b in pairs) < 1e-6


def test_what_was_trained_is_kept_and_embeds_texts(tmp_path: Path, bert: Path) -> None:
    values = live(tmp_path, bert, "run", epochs=1)
    assert gloo.run(1, train_worker, values) == [0]
    register_small_tower()
    trained = last_checkpoint(tmp_path / "run").parts["encoder"]
    encoder = load_encoder(tmp_path / "run" / "latest", torch.device("cpu"))
    tower = encoder.model.text_encoder
    assert tower is not None
    assert torch.equal(tower.head[1].weight, trained["text_encoder.head.1.weight"])  # type: ignore[index]
    embedded = tower.embed_texts(["a dog", "two horses"], "cpu", 8)
    assert embedded.shape == (2, 12) and np.allclose(np.linalg.norm(embedded, axis=1), 1)


def test_tokens_of_another_tokenizer_end_the_run_before_it_begins(tmp_path: Path, bert: Path) -> None:
    values = live(tmp_path, bert, "run")
    values["model"]["text"] = {"name": "minilm", "tokens": "tokens.bert"}
    (sentence,) = gloo.run(1, train_worker, values)
    assert "tokens.bert' was made by the tokenizer of still-bert" in sentence and "shardclip column tokens" in sentence
    assert not (tmp_path / "run").exists()
