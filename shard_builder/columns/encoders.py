"""How columns name a text encoder: options of the command to a checked choice, and a choice to a folder's name."""

from __future__ import annotations

import re

from core import parts
from core.config import Choice
from core.manifest import TextEncoderSpec
from core.text_encoders import TEXT_ENCODERS
from core.text_encoders.encoder import TextEncoder


def encoder_choice(encoder: str, model: str, revision: str, precision: str) -> Choice:
    """The encoder's line of a recipe; what is "" keeps its default.

    Raises:
        ConfigError: no such encoder, or it has no such option.
    """
    options = {"model": model, "revision": revision, "precision": precision}
    choice = Choice(encoder, {name: value for name, value in options.items() if value})
    parts.check(TEXT_ENCODERS, choice, "text encoder", given=["device"])
    return choice


def load_encoder(choice: Choice) -> TextEncoder:
    """The encoder, quickly: its weights wait."""
    encoder: TextEncoder = parts.build(TEXT_ENCODERS, choice, "text encoder", device="cpu")
    return encoder


def slug_of(spec: TextEncoderSpec) -> str:
    """A readable name: `hf_clip:openai/clip-vit-base-patch32` -> `clip-vit-base-patch32`; bf16 is said."""
    model = spec.name.rpartition(":")[2].rpartition("/")[2]
    precision = spec.revision.partition("+")[2]
    return re.sub(r"[^a-z0-9]+", "-", f"{model} {precision}".lower()).strip("-")
