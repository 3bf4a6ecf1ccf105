"""What a frozen text encoder offers; nothing here imports torch, so recipes are checked without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from core.manifest import TextEncoderSpec

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]


class TextEncoder(Protocol):
    """Made quickly: the spec is read from the files; the weights are loaded by the first call that needs them."""

    @property
    def spec(self) -> TextEncoderSpec:
        """Which encoder this is."""
        ...

    @property
    def device(self) -> torch.device:
        """Where `embed` computes."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longer captions are cut, as the model's own tokenizer cuts them."""
        ...

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids of each caption, special tokens included, at most `max_tokens`, never padded."""
        ...

    def embed(self, tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Unit embeddings `(n, E)` float32 of n captions laid end to end.

        Args:
            tokens: `(T,)` int64; what follows the last caption is filler.
            lengths: tokens of each caption, equal lengths side by side; their sum is at most T.
        """
        ...
