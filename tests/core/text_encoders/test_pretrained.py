"""Which model is loaded, how it is fingerprinted, and what is said when it cannot be."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.config import Choice
from core.errors import ConfigError, WeightsError
from core.parts import build, check
from core.text_encoders import TEXT_ENCODERS, minilm, ragged
from core.text_encoders.encode import encode_captions
from core.text_encoders.encoder import TextEncoder


def load(kind: str, **options: str) -> TextEncoder:
    """The encoder, on the CPU."""
    return build(TEXT_ENCODERS, Choice(kind, options), "text encoder", device="cpu")


@pytest.mark.parametrize("kind", ["hf_clip", "sentence"])
def test_a_model_that_was_never_downloaded_is_named_with_the_command_at_once(kind: str) -> None:
    model = {"hf_clip": "openai/clip-vit-base-patch32", "sentence": "distilbert-base-uncased"}[kind]
    start = time.monotonic()
    with pytest.raises(WeightsError) as error:
        load(kind, revision="never-there")
    assert str(error.value) == (
        f"{model}: its weights (revision never-there) are not on this machine. Download them with "
        f"`hf download {model} --revision never-there`, or name a folder that holds them."
    )
    assert time.monotonic() - start < 5, "no hub may be asked"


def test_a_hub_models_downloaded_files_are_found(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_clip, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    encoder = load("hf_clip", model="someone/tiny")
    assert (encoder.spec.name, encoder.spec.revision) == ("hf_clip:someone/tiny", commit)
    assert encode_captions(encoder, ["a dog"], 8, lambda done: None).shape == (1, 24)
    with pytest.raises(WeightsError, match="hf download someone/other`"):
        load("hf_clip", model="someone/other")


def test_the_text_tower_alone_embeds_as_the_whole_clip_does(tiny_clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    CLIPTextModelWithProjection.from_pretrained(tiny_clip).save_pretrained(tmp_path / "tower")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tiny_clip / name, tmp_path / "tower")
    whole, tower = load("hf_clip", model=str(tiny_clip)), load("hf_clip", model=str(tmp_path / "tower"))
    captions = ["a dog", "the man on a horse"]
    rows = [encode_captions(e, captions, 8, lambda done: None).tobytes() for e in (whole, tower)]
    assert rows[0] == rows[1] and whole.spec.weights_sha256 != tower.spec.weights_sha256


def test_clips_own_vocabulary_gives_the_known_tokens(shared_data: Path, tmp_path: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    with gzip.open(shared_data / "weights" / "bpe_simple_vocab_16e6.txt.gz", "rt") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    # OpenAI's order of single bytes: the printable ones by code, then the others
    letters = sorted(ByteLevel.alphabet(), key=lambda letter: (ord(letter) > 255, ord(letter)))
    pairs = [tuple(line.split()) for line in merges]
    tokens = [*letters, *(f"{x}</w>" for x in letters), *(a + b for a, b in pairs), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in pairs))
    assert CLIPTokenizer.from_pretrained(tmp_path)("a photo of a cat")["input_ids"] == [
        49406, 320, 1125, 539, 320, 2368, 49407
    ]  # fmt: skip


def test_the_fingerprint_changes_with_weights_settings_and_tokenizer_only(tiny_bert: Path, tmp_path: Path) -> None:
    def fingerprint() -> str:
        return load("sentence", model=str(folder)).spec.weights_sha256

    folder = tmp_path / "copy"
    shutil.copytree(tiny_bert, folder)
    original = fingerprint()
    assert original == load("sentence", model=str(tiny_bert)).spec.weights_sha256
    (folder / "README.md").write_text("a note")
    assert fingerprint() == original
    for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data + b" " if name != "model.safetensors" else data[:-1] + b"?")
        assert fingerprint() != original, name
        (folder / name).write_bytes(data)
    assert fingerprint() == original


def test_spec_says_the_width_that_comes_out(tiny_bert: Path, tiny_distilbert: Path) -> None:
    for folder, width in ((tiny_bert, 48), (tiny_distilbert, 40)):
        encoder = load("sentence", model=str(folder))
        assert encoder.spec.embed_dim == width and encoder.spec.name == f"sentence:{folder.name}"
        assert encode_captions(encoder, ["a dog"], 8, lambda done: None).shape == (1, width)


def test_altered_minilm_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[minilm.__module__], "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(
        WeightsError, match=r"minilm: .*model.safetensors is not the official file \(sha256 53aa51172d14"
    ):
        load("minilm")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("no_weights", "holds no model.safetensors or pytorch_model.bin"),
        ("no_config", "no config.json there. Give the folder that `save_pretrained` wrote"),
        ("cut_weights", "cannot be loaded"),
        ("cut_config", "cannot be read"),
        ("other_model", "lacks "),
    ],
)
def test_a_damaged_folder_is_refused(tiny_bert: Path, tmp_path: Path, damage: str, problem: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_bert, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "no_weights":
        weights.unlink()
    elif damage == "no_config":
        config.unlink()
    elif damage == "cut_weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "cut_config":
        config.write_text(config.read_text()[:50])
    else:  # weights of fewer layers than the settings say
        config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(WeightsError, match=re.escape(problem)):
        encode_captions(load("sentence", model=str(folder)), ["a dog"], 8, lambda done: None)


def test_a_model_of_another_kind_is_refused(tiny_bert: Path, tiny_clip: Path) -> None:
    with pytest.raises(WeightsError, match="is a 'bert', no CLIP. Use text_encoder 'sentence'"):
        load("hf_clip", model=str(tiny_bert))
    with pytest.raises(WeightsError, match="describes no BERT-like encoder"):
        load("sentence", model=str(tiny_clip))
    with pytest.raises(WeightsError, match="no such folder, and no name of a model on the hub"):
        load("sentence", model="some/folder/that/is/not/there")


def test_a_model_that_cannot_be_laid_end_to_end_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    from transformers import MPNetConfig, MPNetModel  # relative positions, an attention of its own

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    MPNetModel(MPNetConfig(vocab_size=120, max_position_embeddings=66, **sizes)).save_pretrained(tmp_path)
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, tmp_path)
    with pytest.raises(WeightsError, match="cannot be loaded .MPNetModel does not support"):
        load("sentence", model=str(tmp_path)).load()


def test_attention_across_captions_is_noticed_when_a_model_is_loaded(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_long_caption(lengths: list[int]) -> list[ragged.Run]:
        return [ragged.Run(0, 1, sum(lengths))]

    monkeypatch.setattr(ragged, "runs_of", one_long_caption)
    with pytest.raises(WeightsError, match=r"is not encoded as .* Name a BERT, DistilBERT or RoBERTa"):
        load("sentence", model=str(tiny_bert)).load()


def test_roberta_counts_positions_from_its_padding(tmp_path: Path, tiny_bert: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=120, max_position_embeddings=66, pad_token_id=1, **sizes)
    RobertaModel(config).save_pretrained(tmp_path)
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, tmp_path)
    encoder = load("sentence", model=str(tmp_path))
    assert encoder.max_tokens == 64
    assert encode_captions(encoder, ["a dog", "x" * 200], 8, lambda done: None).shape == (2, 32)


def test_unknown_options_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown option 'modell'. Did you mean 'model'"):
        check(TEXT_ENCODERS, Choice("hf_clip", {"modell": "x"}), "text encoder", given=["device"])
    with pytest.raises(ConfigError, match="precision is 'fp16'"):
        load("minilm", precision="fp16")


def test_recipes_are_checked_without_torch() -> None:
    code = (
        "import sys; from core.config import Choice; from core.parts import check;"
        "from core.text_encoders import TEXT_ENCODERS;"
        "check(TEXT_ENCODERS, Choice('minilm'), 'text encoder', given=['device']);"
        "TEXT_ENCODERS['minilm']().spec; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_tokenizing_loads_no_weights(tiny_clip: Path, tiny_bert: Path, captions: list[str]) -> None:
    for name, folder in (("hf_clip", tiny_clip), ("sentence", tiny_bert)):
        encoder = load(name, model=str(folder))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.text_encoders.pretrained.load", None)
            patch.setattr(type(encoder), "load", None)
            ids = encoder.tokenize(captions)
        assert "_model" not in vars(encoder) and max(map(len, ids)) == encoder.max_tokens
        assert max(map(len, encoder.tokenize(captions, 5))) == 5
        assert encoder.tokenizer.vocabulary_size > max(token for own in ids for token in own)


def test_a_tokenizer_is_known_by_its_files(tmp_path: Path, tiny_bert: Path) -> None:
    copy = tmp_path / "tiny-bert"
    shutil.copytree(tiny_bert, copy)
    assert load("sentence", model=str(copy)).tokenizer == load("sentence", model=str(tiny_bert)).tokenizer
    (copy / "vocab.txt").write_text((copy / "vocab.txt").read_text() + "zebra\n")
    changed, before = load("sentence", model=str(copy)).tokenizer, load("sentence", model=str(tiny_bert)).tokenizer
    assert changed.sha256 != before.sha256 and changed.vocabulary_size == before.vocabulary_size + 1
