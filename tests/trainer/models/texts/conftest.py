"""The tiny models that text towers are tested on."""

from __future__ import annotations

from tiny_text_models import captions, tiny_bert, tiny_clip, tiny_distilbert, tiny_roberta

__all__ = ["captions", "tiny_bert", "tiny_clip", "tiny_distilbert", "tiny_roberta"]
