"""all-MiniLM-L6-v2 from its package, trained on: 384 dimensions, no hub needed."""

from __future__ import annotations

from dataclasses import dataclass

from core.config import Choice
from core.text_encoders.sentence import MeanPooled
from trainer.models.texts.bert_parts import bert_parts
from trainer.models.texts.text import LiveText, TextParts


@dataclass(frozen=True)
class MiniLMText(LiveText):
    """The official weights, as `text_encoder: minilm` has them."""

    def encoder_choice(self) -> Choice:
        """The frozen encoder of the same files."""
        return Choice("minilm")

    def load(self) -> TextParts:
        """A BERT of six blocks."""
        assert isinstance(self.encoder, MeanPooled)
        return bert_parts(self.encoder)
