"""CLIP's own text tower from Hugging Face, trained on: the projected state of the end-of-text token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.config import Choice
from core.text_encoders.pretrained import find, load_trainable
from trainer.models.texts.text import LiveText, TextParts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HFClipText(LiveText):
    """`CLIPTextModelWithProjection`: a hub name or a local folder, of a whole CLIP or its text tower."""

    model: str = "openai/clip-vit-base-patch32"  # a hub name or a local folder
    revision: str = "main"  # branch, tag or commit on the hub

    def encoder_choice(self) -> Choice:
        """The frozen encoder of the same files."""
        return Choice("hf_clip", {"model": self.model, "revision": self.revision})

    def load(self) -> TextParts:
        """The text tower and its projection."""
        width = self.encoder.spec.embed_dim  # first: it refuses what is no CLIP
        pretrained = find(self.model, self.revision)
        model = load_trainable(pretrained, "CLIPTextModelWithProjection")
        tower = model.text_model
        return TextParts(
            model,
            end_of_text,
            width,
            blocks=tuple(tower.encoder.layers),
            after=(tower.final_layer_norm, model.text_projection),
            config=pretrained.settings(),
        )


def end_of_text(model: Any, tokens: Tensor, is_token: Tensor) -> Tensor:
    """`(b, E)`: a caption's last token is its end-of-text, which looks backwards only, so never at filler."""
    import torch

    tower = model.text_model
    states = tower.encoder(inputs_embeds=tower.embeddings(input_ids=tokens), is_causal=True).last_hidden_state
    ends = states[torch.arange(len(tokens), device=tokens.device), is_token.sum(dim=1) - 1]
    return model.text_projection(tower.final_layer_norm(ends))
