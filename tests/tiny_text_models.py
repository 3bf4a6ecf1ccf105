"""Tiny text models, randomly initialised, saved in the formats of the real ones, with tokenizers of their kind."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

TEXT = """
a an the man woman dog cat horse child bus train kitchen street plate pizza tennis umbrella surfboard
standing sitting riding holding eating looking near on in of with under behind next to two three red blue
white black small large old young wooden empty busy sunny snowy skateboarder refrigerator
"""
WORDS = TEXT.split()


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """1,500 captions as people write them: some twice, one empty, some with odd characters, a few very long."""
    draw = random.Random(0)
    made = [" ".join(draw.choices(WORDS, k=int(draw.gammavariate(6, 1.8)) + 1)).capitalize() + "." for _ in range(1480)]
    odd = ["", "Café, 3 o'clock — naïve?!", "日本 street", "x" * 300, "<|endoftext|> a dog", "  two   spaces "]
    long = [" ".join(draw.choices(WORDS, k=count)) for count in (60, 90, 200, 600)]
    return [*made, *odd, *long, *made[:10]]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT folder."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    config = BertConfig(vocab_size=len(word_pieces()), max_position_embeddings=64, **sizes)
    return saved(BertModel(config), tmp_path_factory.mktemp("bert") / "tiny-bert", "BertTokenizer")


@pytest.fixture(scope="session")
def tiny_distilbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DistilBERT folder."""
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(2)
    sizes = {"dim": 40, "n_layers": 2, "n_heads": 4, "hidden_dim": 72}
    config = DistilBertConfig(vocab_size=len(word_pieces()), max_position_embeddings=64, **sizes)
    return saved(DistilBertModel(config), tmp_path_factory.mktemp("distilbert") / "tiny-distilbert", "BertTokenizer")


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa folder: its positions begin after its padding token's number."""
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(4)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=len(word_pieces()), max_position_embeddings=66, pad_token_id=1, **sizes)
    return saved(RobertaModel(config), tmp_path_factory.mktemp("roberta") / "tiny-roberta", "BertTokenizer")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a whole CLIP, as OpenAI's are."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(3)
    vocabulary, merges = byte_pairs()
    end = len(vocabulary) - 1
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = {**sizes, "vocab_size": len(vocabulary), "projection_dim": 24, "eos_token_id": end, "bos_token_id": end - 1}
    vision = {**sizes, "image_size": 32, "patch_size": 16, "projection_dim": 24}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )
    return folder


def saved(model: torch.nn.Module, folder: Path, tokenizer: str) -> Path:
    """Save a model and a word-piece tokenizer."""
    with torch.no_grad():  # transformers' 0.02 makes all sentences alike
        for weights in model.parameters():
            weights.mul_(4) if weights.ndim > 1 else None
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(word_pieces()) + "\n")
    settings = {"tokenizer_class": tokenizer, "do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def word_pieces() -> list[str]:
    """BERT's special tokens, letters, half of the words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *letters, *(f"##{x}" for x in letters), *sorted(w for w in WORDS[::2] if len(w) > 1), ".", ","]


def byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A CLIP vocabulary of single bytes and a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e</w>"), ("a", "n"), ("an", "</w>"), ("o", "n</w>"), ("d", "o"), ("do", "g</w>")]
    merged = [a + b for a, b in merges]
    tokens = [*alphabet, *(f"{x}</w>" for x in alphabet), *merged, "</w>", "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges
