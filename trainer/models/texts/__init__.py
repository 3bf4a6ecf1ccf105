"""Where the text features of a run come from, by name. To add a live tower: a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable

from trainer.models.texts.hf_clip import HFClipText
from trainer.models.texts.minilm import MiniLMText
from trainer.models.texts.sentence import SentenceText
from trainer.models.texts.stored import Stored
from trainer.models.texts.text import LiveText

TEXTS: dict[str, Callable[..., LiveText | Stored]] = {
    "column": Stored,
    "hf_clip": HFClipText,
    "minilm": MiniLMText,
    "sentence": SentenceText,
}
