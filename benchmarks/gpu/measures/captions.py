"""Speed of embedding captions by a BERT of MiniLM's shape, with random weights and random tokens, by the product."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.measure import Context, Figures

_SHAPE = {
    "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    "vocab_size": 30_522, "max_position_embeddings": 512,
}  # of all-MiniLM-L6-v2  # fmt: skip
_CAPTIONS_AT_ONCE = 1024


def captions(context: Context) -> Figures:
    """Captions/s in both precisions."""
    texts = [f"caption {number}" for number in range(context.size.num_captions)]
    folder = _random_model(context.work / "model")
    figures: Figures = {"captions": len(texts)}
    for precision in ("fp32", "bf16"):
        figures[f"{precision}_captions_per_s"] = _speed(folder, precision, context.device, texts)
    return figures


def _speed(folder: Path, precision: Any, device: str, texts: Sequence[str]) -> float:
    from core.text_encoders.encode import encode_captions

    encoder = _encoder(folder, precision, device)
    encode_captions(encoder, texts[: len(texts) // 10], _CAPTIONS_AT_ONCE, lambda done: None)  # loads and warms up
    began = time.perf_counter()
    embedded = encode_captions(encoder, texts, _CAPTIONS_AT_ONCE, lambda done: None)
    seconds = time.perf_counter() - began
    assert embedded.shape == (len(texts), _SHAPE["hidden_size"]) and np.isfinite(embedded).all()
    return len(texts) / seconds


def _random_model(folder: Path) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(**_SHAPE)).save_pretrained(folder)
    return folder


def _encoder(folder: Path, precision: Any, device: str) -> Any:
    """The product's encoder; only its tokenizer, which is a file of the real model, is replaced."""
    from core.text_encoders.pretrained import Pretrained
    from core.text_encoders.sentence import MeanPooled

    class RandomTokens(MeanPooled):
        def tokenize(self, captions: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
            random = np.random.default_rng(len(captions))
            # As long as COCO's captions: about 13 tokens with the first and the last.
            lengths = np.clip(random.poisson(10.5, len(captions)) + 2, 4, self.max_tokens)
            return [random.integers(1000, _SHAPE["vocab_size"], length).tolist() for length in lengths]

    return RandomTokens("random", Pretrained("random", "local", folder), precision, device)
