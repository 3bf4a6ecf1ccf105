"""The text tower that trains: token ids to unit vectors, beside the pictures' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.columns import NO_NUMBER
from core.errors import ConfigError
from trainer.models.texts.text import ALL, HEAD, TextParts


class TextTower(nn.Module):
    """Captions' token ids to `(b, D)` float32 of unit length: a pretrained tower, then a head."""

    def __init__(
        self,
        parts: TextParts,
        *,
        embed_dim: int,
        hidden_dim: int,
        dropout: float,
        train: str,
        tokenize: Callable[[Sequence[str]], list[list[int]]],
        identity: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim or parts.width
        self.tower = parts.model
        self.head = _head(parts.width, hidden_dim, embed_dim, dropout)
        _freeze(parts, train)
        self._frozen = [name for name, module in self.tower.named_modules() if _is_frozen(module)]
        self._pool, self._tokenize, self._identity = parts.pool, tokenize, identity

    def forward(self, tokens: Tensor) -> Tensor:
        """Args:
        tokens: `(b, L)` integers, -1 past the end of each caption. A row of -1 alone gives some finite vector.
        """
        # -1 is no token's number, so lengths are known. The first place always counts: attention to nothing is NaN.
        lengths = (tokens != NO_NUMBER).sum(dim=1, keepdim=True).clamp(min=1)
        is_token = torch.arange(tokens.shape[1], device=tokens.device) < lengths
        pooled = self._pool(self.tower, tokens.long().clamp(min=0), is_token)
        return F.normalize(self.head(pooled).float(), dim=-1)

    def train(self, mode: bool = True) -> TextTower:
        """As always, but what is frozen stays in eval mode: its dropout too."""
        super().train(mode)
        for name in self._frozen:  # by name: a copy has modules of its own
            self.tower.get_submodule(name).eval()
        return self

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters of "text_tower" and "text_head"; none where all of it is frozen."""
        groups = {"text_tower": self.tower, "text_head": self.head}
        return {name: [p for p in part.parameters() if p.requires_grad] for name, part in groups.items()}

    def describe(self) -> dict[str, Any]:
        """What the weights are, for a checkpoint: `rebuild_text` makes the same tower from it."""
        return dict(self._identity)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], device: torch.device | str, batch_size: int) -> np.ndarray:
        """Features `(n, D)` float32 of unit length, in eval mode, by the tower's own tokenizer.

        Args:
            device: where the tower is.
        """
        embedded = np.empty((len(texts), self.embed_dim), np.float32)
        ids = self._tokenize(texts) if texts else []
        order = np.argsort([len(own) for own in ids], kind="stable")
        was_training = self.training
        self.eval()
        try:
            for start in range(0, len(order), batch_size):
                numbers = order[start : start + batch_size]
                tokens = _padded([ids[number] for number in numbers]).to(device)
                embedded[numbers] = self(tokens).cpu().numpy()
        finally:
            self.train(was_training)
        return embedded


def _head(width: int, hidden_dim: int, embed_dim: int, dropout: float) -> nn.Module:
    if not embed_dim:
        return nn.Identity()
    if not hidden_dim:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, embed_dim))
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, hidden_dim),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_dim, embed_dim),
    )


def _freeze(parts: TextParts, train: str) -> None:
    """Stop the gradients of all that `train` does not name; the embeddings' too where it is a number."""
    if train == ALL:
        return
    count = 0 if train == HEAD else int(train)
    if count > len(parts.blocks):
        raise ConfigError(f"text tower: train is {count}, but it has {len(parts.blocks)} blocks. Give all, or fewer.")
    parts.model.requires_grad_(False)
    if count:
        for module in (*parts.blocks[-count:], *parts.after):
            module.requires_grad_(True)


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _padded(ids: Sequence[Sequence[int]]) -> Tensor:
    tokens = torch.full((len(ids), max(map(len, ids))), NO_NUMBER)
    for row, own in zip(tokens, ids):
        row[: len(own)] = torch.tensor(own)
    return tokens
