"""Options are checked without torch, and another tokenizer's column is refused by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from core import parts
from core.columns import ColumnHead
from core.config import Choice
from core.errors import ConfigError, WeightsError
from core.text_encoders import TEXT_ENCODERS
from trainer.models.texts import TEXTS
from trainer.models.texts.hf_clip import HFClipText
from trainer.models.texts.minilm import MiniLMText
from trainer.models.texts.sentence import SentenceText
from trainer.models.texts.text import LiveText

ROOT = Path(__file__).resolve().parents[4]


def head_of(text: LiveText, **changes: Any) -> ColumnHead:
    """A token column as `shardclip column tokens` makes it."""
    origin = {"tokenizer": asdict(text.tokenizer()), "length": 20, "cut": 0}
    return replace(ColumnHead("tokens.it", "tokens", "caption", "<i4", (20,), origin, "f" * 64), **changes)


def test_options_import_no_torch() -> None:
    code = (
        "import sys, types; package = types.ModuleType('trainer.models')\n"
        f"package.__path__ = [{str(ROOT / 'trainer/models')!r}]; sys.modules['trainer.models'] = package\n"
        "from core.config import Choice; from core.parts import build; from trainer.models.texts import TEXTS\n"
        "import trainer.models.texts.rebuild\n"
        "build(TEXTS, Choice('minilm', {'tokens': 'tokens.minilm', 'train': '2'}), 'text tower').encoder.spec\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"train": "some"}, "train is 'some': give all, head, or how many of its last blocks train"),
        ({"train": "0"}, "train is '0'"),
        ({"train": "-1"}, "train is '-1'"),
        ({"hidden_dim": "-3"}, "hidden_dim is -3"),
        ({"dropout": "1"}, "dropout is 1.0: it is a probability"),
        ({"dropout": "-0.1"}, "dropout is -0.1"),
        ({"tokens": ""}, "tokens is blank"),
        ({"modell": "x"}, "unknown option 'modell'"),
        ({"hidden_dim": "wide"}, "hidden_dim is 'wide': a whole number is needed"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        parts.build(TEXTS, Choice("minilm", {"tokens": "tokens.minilm", **options}), "text tower")
    assert problem in str(error.value)


def test_the_token_column_must_be_named() -> None:
    with pytest.raises(ConfigError, match="text tower 'minilm' needs 'tokens'"):
        parts.check(TEXTS, Choice("minilm"), "text tower")
    parts.check(TEXTS, Choice("column"), "text tower")


def test_a_hidden_layer_without_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_dim is 8, but with embed_dim 0 there is no head"):
        MiniLMText(tokens="tokens.minilm", hidden_dim=8).build(0)


def test_every_live_text_reads_what_the_encoder_of_its_name_reads() -> None:
    kinds = {kind: part for kind, part in TEXTS.items() if isinstance(part, type) and issubclass(part, LiveText)}
    assert set(kinds) == set(TEXT_ENCODERS) - {"fake"}  # other tests add one for a while
    for kind, part in kinds.items():
        text = part(tokens="tokens.it")
        assert text.kind == kind == text.encoder_choice().name
        parts.check(TEXT_ENCODERS, text.encoder_choice(), "text encoder", given=["device"])


def test_its_own_tokens_are_taken(tiny_clip: Path) -> None:
    for text in (MiniLMText(tokens="tokens.it"), HFClipText(tokens="tokens.it", model=str(tiny_clip))):
        text.check_tokens(head_of(text))


def test_another_tokenizers_column_is_refused_by_name(tiny_bert: Path, tiny_clip: Path) -> None:
    bert = SentenceText(tokens="tokens.it", model=str(tiny_bert))
    clip = HFClipText(tokens="tokens.it", model=str(tiny_clip))
    ours, theirs = (text.tokenizer().sha256[:8] for text in (clip, bert))
    with pytest.raises(ConfigError) as error:
        clip.check_tokens(head_of(bert))
    assert str(error.value) == (
        f"text tower 'hf_clip': column 'tokens.it' was made by the tokenizer of tiny-bert ({theirs}), the tower's is "
        f"that of tiny-clip ({ours}). Make another one with "
        f"`shardclip column tokens SET encoder=hf_clip model={tiny_clip}`."
    )
    with pytest.raises(ConfigError, match="encoder=minilm`"):
        MiniLMText(tokens="tokens.it").check_tokens(head_of(bert))


def test_a_tokenizer_of_as_many_words_in_another_order_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "copy")
    *words, a, b = (tiny_bert / "vocab.txt").read_text().splitlines()
    (tmp_path / "copy" / "vocab.txt").write_text("\n".join([*words, b, a]) + "\n")
    text, other = (SentenceText(tokens="tokens.it", model=str(f)) for f in (tiny_bert, tmp_path / "copy"))
    assert text.tokenizer().vocabulary_size == other.tokenizer().vocabulary_size
    with pytest.raises(ConfigError, match="was made by the tokenizer of copy"):
        text.check_tokens(head_of(other))


def test_a_column_of_another_kind_or_length_is_refused(tiny_bert: Path) -> None:
    text = SentenceText(tokens="tokens.it", model=str(tiny_bert))
    with pytest.raises(
        ConfigError, match=r"column 'tokens.it' holds labels, no tokens. Make another one with `shardcl"
    ):
        text.check_tokens(head_of(text, kind="labels", origin={}))
    text.check_tokens(head_of(text, shape=(64,)))
    with pytest.raises(ConfigError, match="has 65 tokens a caption, tiny-bert takes 64"):
        text.check_tokens(head_of(text, shape=(65,)))


def test_a_model_that_is_not_here_is_named_with_the_command() -> None:
    with pytest.raises(WeightsError, match="Download them with `hf download distilbert-base-uncased"):
        SentenceText(tokens="tokens.it", revision="never-there").build(8)
    with pytest.raises(ConfigError, match="`shardclip column tokens SET encoder=minilm`"):
        MiniLMText(tokens="t").check_tokens(ColumnHead("x", "labels", "sample", "<i4", (), {}, "f"))
