"""The frozen text encoders by name. To add one: a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable

from core.config import Choice
from core.manifest import TextEncoderSpec
from core.text_encoders.encoder import TextEncoder
from core.text_encoders.hf_clip import HFClip
from core.text_encoders.minilm import minilm
from core.text_encoders.sentence import sentence_encoder

TEXT_ENCODERS: dict[str, Callable[..., TextEncoder]] = {
    "hf_clip": HFClip,
    "minilm": minilm,
    "sentence": sentence_encoder,
}


def choice_of(spec: TextEncoderSpec) -> Choice:
    """The line of a recipe that loads an encoder again: `hf_clip:openai/clip-vit-base-patch32` and its revision."""
    kind, _, model = spec.name.partition(":")
    revision, _, precision = spec.revision.partition("+")
    options = {"model": model, "revision": revision} if model and revision != "local" else {"model": model}
    return Choice(kind, (options if model else {}) | ({"precision": precision} if precision else {}))
