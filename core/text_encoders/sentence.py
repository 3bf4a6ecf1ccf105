"""BERT-like encoders of Hugging Face (BERT, DistilBERT, RoBERTa): the mean of the last layer's tokens, unit length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from core.errors import WeightsError
from core.manifest import TextEncoderSpec
from core.text_encoders.encoder import Precision, TokenizerSpec
from core.text_encoders.pretrained import (
    RAGGED,
    Pretrained,
    autocast,
    find,
    load,
    load_tokenizer,
    revision_with,
    tokenize,
)

if TYPE_CHECKING:
    import torch

PROBES = ("a dog", "two men ride brown horses on a beach", "red")


def sentence_encoder(
    model: str = "distilbert-base-uncased", revision: str = "main", precision: Precision = "fp32", device: str = "cpu"
) -> MeanPooled:
    """Any BERT-like encoder with learned absolute positions.

    Args:
        model: a hub name or a local folder.
        revision: branch, tag or commit on the hub.
        precision: `bf16` is faster where the hardware multiplies it; docs/text_encoders.md says what it costs.
        device: `cpu`, `cuda`, `cuda:1`.

    Raises:
        WeightsError: the model is not on this machine.
    """
    return MeanPooled("sentence", find(model, revision), precision, device)


class MeanPooled:
    """An encoder whose sentence embedding is the mean of its tokens, as sentence-transformers takes it."""

    def __init__(self, kind: str, pretrained: Pretrained, precision: Precision, device: str) -> None:
        settings = pretrained.settings()
        embed_dim = settings.get("hidden_size") or settings.get("dim")  # DistilBERT's word
        if not embed_dim or "max_position_embeddings" not in settings:
            raise WeightsError(
                f"{pretrained.name}: its config.json describes no BERT-like encoder. Name another model."
            )
        # RoBERTa's first position is the one after its padding token's number.
        self.first_position = settings["pad_token_id"] + 1 if "roberta" in settings.get("model_type", "") else 0
        self.spec = TextEncoderSpec(
            name=kind if kind == pretrained.name else f"{kind}:{pretrained.name}",
            revision=revision_with(pretrained.revision, precision),
            embed_dim=embed_dim,
            weights_sha256=pretrained.fingerprint(),
        )
        self.max_tokens = pretrained.max_tokens(settings["max_position_embeddings"] - self.first_position)
        self.pretrained, self._precision, self._device = pretrained, precision, device

    @cached_property
    def device(self) -> torch.device:
        """Where `embed` computes."""
        import torch

        return torch.device(self._device)

    @cached_property
    def tokenizer(self) -> TokenizerSpec:
        """Which tokenizer it has."""
        return self.pretrained.tokenizer_spec(self._tokenizer)

    def tokenize(self, captions: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Token ids of each caption, `[CLS]` and `[SEP]` included."""
        return tokenize(self._tokenizer, captions, max_tokens or self.max_tokens)

    def load(self) -> None:
        """Load the weights now."""
        _ = self._model

    def embed(self, tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Unit embeddings `(n, E)` of captions laid end to end in `tokens` `(T,)`."""
        return self._embed(self._model, tokens, lengths)

    def _embed(self, model: Any, tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        from torch.nn import functional as F

        from core.text_encoders.ragged import mean_of_tokens, positions_of, runs_of

        runs = runs_of(lengths)
        positions = positions_of(lengths, len(tokens), tokens.device) + self.first_position
        with autocast(self.device, self._precision):
            hidden = model(input_ids=tokens[None], position_ids=positions[None], runs=runs).last_hidden_state[0]
        return F.normalize(mean_of_tokens(hidden.float(), runs), dim=-1)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.pretrained)

    @cached_property
    def _model(self) -> Any:
        model = load(self.pretrained, "AutoModel").to(self.device)
        self._hasten(model, self.tokenize(PROBES))
        return model

    def _hasten(self, model: Any, ids: list[list[int]]) -> None:
        """Turn on attention within captions laid end to end, and packed layers.

        Raises:
            WeightsError: the captions `ids` then give something else than each gave alone. Relative positions, or an
                attention of its own, would make a model wrong, silently.
        """
        import torch

        from core.text_encoders.packed_linear import pack_linears

        try:
            with torch.inference_mode():
                alone = [model(torch.tensor([i], device=self.device)).last_hidden_state[0].mean(dim=0) for i in ids]
                model.set_attn_implementation(RAGGED)
                if self._precision == "fp32" and self.device.type == "cpu":
                    pack_linears(model)
                flat = torch.tensor([token for own in ids for token in own], device=self.device)
                together = self._embed(model, flat, [len(own) for own in ids])
            worst = torch.cosine_similarity(torch.stack(alone), together).min().item()
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise self.unlike(" ".join(str(error).split())[:200]) from error
        if not worst > 0.999:
            raise self.unlike(f"cosine {worst:.3f}")

    def unlike(self, reason: str) -> WeightsError:
        """The error for a model that is no BERT-like one."""
        return WeightsError(
            f"{self.pretrained.name}: is not encoded as a BERT-like model with learned absolute positions would be "
            f"({reason}). Name a BERT, DistilBERT or RoBERTa."
        )
