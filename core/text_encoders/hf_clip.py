"""CLIP's own text tower from Hugging Face: the projected state of the end-of-text token, unit length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from core.errors import WeightsError
from core.manifest import TextEncoderSpec
from core.text_encoders.encoder import Precision, TokenizerSpec
from core.text_encoders.pretrained import (
    RAGGED,
    autocast,
    clip_end_token,
    find,
    load,
    load_tokenizer,
    revision_with,
    tokenize,
)

if TYPE_CHECKING:
    import torch


class HFClip:
    """`CLIPTextModelWithProjection`; default for COCO."""

    def __init__(
        self,
        model: str = "openai/clip-vit-base-patch32",
        revision: str = "main",
        precision: Precision = "fp32",
        device: str = "cpu",
    ) -> None:
        """Read what the encoder is.

        Args:
            model: a hub name or a local folder, of a whole CLIP or its text tower.
            revision: branch, tag or commit on the hub.
            precision: `bf16` is faster where the hardware multiplies it; docs/text_encoders.md says what it costs.
            device: `cpu`, `cuda`, `cuda:1`.

        Raises:
            WeightsError: the model is not on this machine.
        """
        pretrained = find(model, revision)
        settings = pretrained.settings()
        if settings.get("model_type") not in ("clip", "clip_text_model"):
            raise WeightsError(
                f"{model} is a '{settings.get('model_type')}', no CLIP. Use text_encoder 'sentence' for BERT-like ones."
            )
        tower = settings.get("text_config", settings)
        self.spec = TextEncoderSpec(
            name=f"hf_clip:{pretrained.name}",
            revision=revision_with(pretrained.revision, precision),
            embed_dim=tower.get("projection_dim", 512),  # transformers' own defaults
            weights_sha256=pretrained.fingerprint(),
        )
        self.max_tokens = pretrained.max_tokens(tower.get("max_position_embeddings", 77))
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
        """Token ids from start-of-text to the first end-of-text: the tower looks only backwards, and pools there."""
        end = self._end_token
        # OpenAI's early settings name token 2; transformers then takes the highest id, which is their end-of-text.
        tokens = tokenize(self._tokenizer, captions, max_tokens or self.max_tokens)
        ends = ((max(ids) if end == 2 else end, ids) for ids in tokens)
        return [ids[: ids.index(end) + 1] for end, ids in ends]

    def load(self) -> None:
        """Load the weights now."""
        _ = self._model

    def embed(self, tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Unit embeddings `(n, E)` of captions laid end to end in `tokens` `(T,)`."""
        import torch
        from torch.nn import functional as F

        from core.text_encoders.ragged import positions_of, runs_of

        model, tower = self._model, self._model.text_model
        positions = positions_of(lengths, len(tokens), tokens.device)
        last = torch.tensor(lengths, device=tokens.device).cumsum(0) - 1
        with autocast(self.device, self._precision):
            # The parts one by one: the tower itself takes no sequence longer than one caption.
            table = tower.embeddings
            hidden = table.token_embedding(tokens) + table.position_embedding(positions)
            encoded = tower.encoder(inputs_embeds=hidden[None], is_causal=True, runs=runs_of(lengths))
            ends = tower.final_layer_norm(encoded.last_hidden_state[0, last])
            return F.normalize(model.text_projection(ends).float(), dim=-1)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.pretrained)

    @cached_property
    def _end_token(self) -> int:
        return clip_end_token(self.pretrained)

    @cached_property
    def _model(self) -> Any:
        from core.text_encoders.packed_linear import pack_linears

        model = load(self.pretrained, "CLIPTextModelWithProjection")
        model.set_attn_implementation(RAGGED)
        model = model.to(self.device)
        if self._precision == "fp32" and self.device.type == "cpu":
            pack_linears(model)
        return model
