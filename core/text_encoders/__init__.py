"""The frozen text encoders by name. To add one: a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable

from core.text_encoders.encoder import TextEncoder
from core.text_encoders.hf_clip import HFClip
from core.text_encoders.minilm import minilm
from core.text_encoders.sentence import sentence_encoder

TEXT_ENCODERS: dict[str, Callable[..., TextEncoder]] = {
    "hf_clip": HFClip,
    "minilm": minilm,
    "sentence": sentence_encoder,
}
