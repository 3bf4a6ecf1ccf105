"""The one door to transformers and its hub: where pretrained text models lie, what they are, and loading them.

Nothing is ever downloaded from here: a build on a cluster must not wait for a hub, or find another model there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from core.errors import WeightsError
from core.storage import sha256_of
from core.text_encoders.encoder import Precision, TokenizerSpec

if TYPE_CHECKING:
    import torch

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
SETTINGS = ("config.json", "sentence_bert_config.json")
RAGGED = "shardclip_ragged"  # the name under which transformers knows our attention


@dataclass(frozen=True)
class Pretrained:
    """A model's files on this machine."""

    name: str  # as on the hub; of a local folder its last part
    revision: str  # the hub's commit; "local" for a folder
    folder: Path

    def settings(self) -> dict[str, Any]:
        """The model's `config.json`."""
        return _read_json(self.folder / "config.json")

    def max_tokens(self, positions: int) -> int:
        """The longest caption in tokens: what the tokenizer allows, at most the model's `positions`."""
        tokenizer = self.folder / "tokenizer_config.json"
        sentence = self.folder / "sentence_bert_config.json"  # sentence-transformers' own, lower limit
        limits = [positions]
        if tokenizer.exists():
            limits.append(int(_read_json(tokenizer).get("model_max_length") or positions))
        if sentence.exists():
            limits.append(int(_read_json(sentence).get("max_seq_length") or positions))
        return min(limits)

    def fingerprint(self) -> str:
        """sha256 over names and sha256s of the files that decide an embedding: weights, settings, tokenizer."""
        return self._sha256_of([*self.weight_files(), *SETTINGS, *TOKENIZER])

    def tokenizer_spec(self, tokenizer: Any) -> TokenizerSpec:
        """Which tokenizer the folder has; `tokenizer` is the loaded one."""
        return TokenizerSpec(self.name, self._sha256_of(TOKENIZER), len(tokenizer))

    def weight_files(self) -> list[str]:
        """The weight files that transformers loads (safetensors before pickles)."""
        first = next((name for name in WEIGHTS if (self.folder / name).exists()), None)
        if first is None:
            raise WeightsError(
                f"{self.name}: {self.folder} holds no {' or '.join(WEIGHTS[::2])}. "
                "Give the folder that `save_pretrained` or `hf download` wrote."
            )
        if not first.endswith(".index.json"):
            return [first]
        return [first, *sorted(set(_read_json(self.folder / first)["weight_map"].values()))]

    def _sha256_of(self, names: Sequence[str]) -> str:
        """sha256 over names and sha256s of those of the files that are there."""
        there = sorted(name for name in names if (self.folder / name).exists())
        return hashlib.sha256("".join(f"{n} {sha256_of(self.folder / n)}\n" for n in there).encode()).hexdigest()


def find(model: str, revision: str) -> Pretrained:
    """The files of `model`: a local folder, or a hub name whose files were downloaded before.

    Raises:
        WeightsError: they are not on this machine; says the command that gets them.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise WeightsError(f"{model}: no config.json there. Give the folder that `save_pretrained` wrote.")
        return Pretrained(folder.resolve().name, "local", folder)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        raise WeightsError(f"{model}: no such folder, and no name of a model on the hub.") from None
    if not isinstance(config, str):
        option = "" if revision == "main" else f" --revision {revision}"
        raise WeightsError(
            f"{model}: its weights (revision {revision}) are not on this machine. "
            f"Download them with `hf download {model}{option}`, or name a folder that holds them."
        )
    return Pretrained(model, Path(config).parent.name, Path(config).parent)


def revision_with(revision: str, precision: Precision) -> str:
    """The spec's revision: bf16 gives other bytes, so it is another encoder."""
    return revision if precision == "fp32" else f"{revision}+{precision}"


def load(pretrained: Pretrained, model_class: str) -> Any:
    """The model: float32, for evaluation, with attention within captions laid end to end.

    Args:
        model_class: a class of transformers, as `AutoModel`.

    Raises:
        WeightsError: the folder holds another kind of model, or lacks part of it.
    """
    import transformers

    from core.text_encoders.ragged import ragged_attention

    # transformers asks for no mask where an attention is registered without one.
    transformers.AttentionInterface.register(RAGGED, ragged_attention)
    return _from_files(pretrained, model_class).eval().requires_grad_(False)


def load_trainable(pretrained: Pretrained, model_class: str) -> Any:
    """The model to train: float32, attention of torch itself, every parameter with gradient.

    Args:
        model_class: a class of transformers, as `AutoModel`. A pooler is taken off: pooling is ours, and a parameter
            that takes no part in the output would stop DistributedDataParallel.

    Raises:
        WeightsError: the folder holds another kind of model, or lacks part of it.
    """
    model = _from_files(pretrained, model_class)
    if "pooler" in dict(model.named_children()):
        model.pooler = None
    return model.requires_grad_(True)


def load_tokenizer(pretrained: Pretrained) -> Any:
    """The tokenizer alone.

    Raises:
        WeightsError: the folder lacks its files, or they cannot be read.
    """
    import transformers

    with _quiet(transformers), _explained(pretrained):
        return transformers.AutoTokenizer.from_pretrained(str(pretrained.folder), local_files_only=True)


def clip_end_token(pretrained: Pretrained) -> int:
    """What a CLIP's settings call its end-of-text token."""
    import transformers

    with _quiet(transformers), _explained(pretrained):
        settings = transformers.CLIPTextConfig.from_pretrained(str(pretrained.folder), local_files_only=True)
    end: Any = settings.eos_token_id
    return int(end)


def tokenize(tokenizer: Any, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids without padding."""
    return tokenizer(list(captions), truncation=True, max_length=max_tokens, return_attention_mask=False)["input_ids"]


def autocast(device: torch.device, precision: Precision) -> Any:
    """The context in which a model of this precision runs."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _from_files(pretrained: Pretrained, model_class: str) -> Any:
    import transformers

    pretrained.weight_files()  # says in one sentence what is missing
    with _quiet(transformers), _explained(pretrained):
        model, report = getattr(transformers, model_class).from_pretrained(
            str(pretrained.folder),
            local_files_only=True,
            dtype="float32",
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    # A missing pooler is of no account: pooling is ours.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise WeightsError(
            f"{pretrained.name}: {pretrained.folder} lacks {len(missing)} weights of a {type(model).__name__}, "
            f"{missing[0]} for one. Name another model or another text encoder."
        )
    return model


@contextmanager
def _explained(pretrained: Pretrained) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{pretrained.name}: {pretrained.folder} cannot be loaded ({reason}).") from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Hide the loading bar and the table of unused weights: what matters is raised."""
    settings = transformers.utils.logging
    verbosity, bar = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if bar:
            settings.enable_progress_bar()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}). Download the model again.") from error
