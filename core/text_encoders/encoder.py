"""What a frozen text encoder offers; nothing here imports torch, so recipes are checked without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from core.manifest import TextEncoderSpec

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer an encoder has: two encoders may share one."""

    name: str
    sha256: str  # of its files
    vocabulary_size: int


class TextEncoder(Protocol):
    """Made quickly: the spec is read from the files; the weights wait for `load`."""

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

    @property
    def tokenizer(self) -> TokenizerSpec:
        """Which tokenizer it has."""
        ...

    def tokenize(self, captions: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Token ids of each caption, special tokens included, never padded; loads no weights.

        Args:
            max_tokens: longer captions are cut; None: what the encoder takes.
        """
        ...

    def load(self) -> None:
        """Load the weights now, before several threads call `embed`."""
        ...

    def embed(self, tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Unit embeddings `(n, E)` float32 of n captions laid end to end.

        Args:
            tokens: `(T,)` int64; what follows the last caption is filler.
            lengths: tokens of each caption, equal lengths side by side; their sum is at most T.
        """
        ...
