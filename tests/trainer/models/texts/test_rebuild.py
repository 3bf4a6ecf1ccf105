"""A checkpoint's words and weights give the same tower again, or the reason why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import WeightsError
from trainer.models.texts.hf_clip import HFClipText
from trainer.models.texts.minilm import MiniLMText
from trainer.models.texts.rebuild import rebuild_text
from trainer.models.texts.sentence import SentenceText
from trainer.models.texts.text import LiveText
from trainer.models.texts.tower import TextTower

SOME = ["a dog", "two men ride brown horses on a beach", ""]


def trained(text: LiveText, embed_dim: int) -> TextTower:
    """A tower whose weights have moved."""
    tower = text.build(embed_dim)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return tower


@pytest.mark.parametrize("embed_dim", [0, 16])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_distilbert", "tiny_clip", "minilm"])
def test_a_rebuilt_tower_embeds_as_the_trained_one(request: pytest.FixtureRequest, name: str, embed_dim: int) -> None:
    options = {"tokens": "tokens.it", "train": "1", "hidden_dim": 20 if embed_dim else 0}
    if name == "minilm":
        text: LiveText = MiniLMText(**options)
    else:
        part = HFClipText if name == "tiny_clip" else SentenceText
        text = part(**options, model=str(request.getfixturevalue(name)))
    tower = trained(text, embed_dim)
    identity = json.loads(json.dumps(tower.describe()))
    again = rebuild_text(identity)
    assert not again.training and again.describe() == identity
    again.load_state_dict(tower.state_dict())
    assert np.array_equal(again.embed_texts(SOME, "cpu", 2), tower.embed_texts(SOME, "cpu", 2))


def test_a_relative_folder_is_found_from_elsewhere(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_bert.parent)
    identity = SentenceText(tokens="tokens.it", model=tiny_bert.name).build(8).describe()
    monkeypatch.chdir(tmp_path)
    assert rebuild_text(identity).embed_dim == 8


def test_a_hub_model_is_rebuilt_from_the_commit_it_was(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_bert, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    identity = SentenceText(tokens="tokens.it", model="someone/tiny").build(8).describe()
    assert identity["options"]["revision"] == commit
    (repository / "refs" / "main").write_text("0" * 40)  # the branch has moved on
    assert rebuild_text(identity).embed_dim == 8
    shutil.rmtree(repository)
    with pytest.raises(WeightsError) as error:
        rebuild_text(identity)
    assert str(error.value) == (
        f"the checkpoint's text tower 'sentence': someone/tiny: its weights (revision {commit}) are not on this "
        f"machine. Download them with `hf download someone/tiny --revision {commit}`, or name a folder that holds them."
    )


def test_other_files_than_those_of_then_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_bert, folder)
    identity = SentenceText(tokens="tokens.it", model=str(folder)).build(8).describe()
    config = folder / "config.json"
    sound = config.read_text()
    config.write_text(sound.replace('"num_attention_heads": 4', '"num_attention_heads": 2'))
    with pytest.raises(WeightsError, match="num_attention_heads was 4, here it is 2. Put its config.json back"):
        rebuild_text(identity)
    config.write_text(json.dumps({**json.loads(sound), "transformers_version": "9.0"}))
    rebuild_text(identity)
    words = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join([*words[:-2], words[-1], words[-2]]) + "\n")
    with pytest.raises(WeightsError, match="was trained with another tokenizer than sentence:copy has here"):
        rebuild_text(identity)
    shutil.rmtree(folder)
    with pytest.raises(WeightsError, match="the checkpoint's text tower 'sentence': .*no such folder"):
        rebuild_text(identity)
