"""BERT-like text towers of Hugging Face (BERT, DistilBERT, RoBERTa), trained on: the mean of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from core.config import Choice
from core.text_encoders.sentence import MeanPooled
from trainer.models.texts.bert_parts import bert_parts
from trainer.models.texts.text import LiveText, TextParts


@dataclass(frozen=True)
class SentenceText(LiveText):
    """Any BERT-like model with learned absolute positions: a hub name or a local folder."""

    model: str = "distilbert-base-uncased"  # a hub name or a local folder
    revision: str = "main"  # branch, tag or commit on the hub

    def encoder_choice(self) -> Choice:
        """The frozen encoder of the same files."""
        return Choice("sentence", {"model": self.model, "revision": self.revision})

    def load(self) -> TextParts:
        """The model without its pooler."""
        assert isinstance(self.encoder, MeanPooled)
        return bert_parts(self.encoder)
