"""What a live text tower is: its options, and the parts that they load. Who adds one reads this file alone.

A `LiveText` is first what a recipe says, checked without importing torch; `build` makes the tower that trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import parts
from core.columns import TOKENS, ColumnHead
from core.config import Choice
from core.errors import ConfigError
from core.text_encoders import TEXT_ENCODERS
from core.text_encoders.encoder import TextEncoder, TokenizerSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.models.texts.tower import TextTower

ALL, HEAD = "all", "head"  # what trains; or the number of last blocks


@dataclass(frozen=True)
class TextParts:
    """What `LiveText.load` gives: a network in float32 on the CPU, and what the tower must know of it.

    Attributes:
        model: every parameter of it takes part in what `pool` gives, or DistributedDataParallel would stop the run.
        pool: `(model, tokens (b, L) int64, is_token (b, L) bool)` to the captions' features `(b, width)`. Where
            `is_token` is False stands filler, with id 0: nothing may depend on it. Each row's first place counts as a
            token. It may not wait for the device.
        width: of the features.
        blocks: of `model`, in order; `train: 2` trains the last two of them.
        after: what follows the blocks in `model`; trains with them.
        config: what else makes the architecture, in JSON values; a checkpoint keeps it.
    """

    model: nn.Module
    pool: Callable[[nn.Module, Tensor, Tensor], Tensor]
    width: int
    blocks: Sequence[nn.Module] = ()
    after: Sequence[nn.Module] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LiveText(ABC):
    """A text tower that runs in the training step. The options here are those of every one; subclasses add their own.

    Attributes:
        tokens: name of the token column of the shard sets, as tokens.minilm.
        train: what of it trains: `all`, `head`, or a number: its last so many blocks, and the head.
        hidden_dim: of the head: 0: one linear layer; else two, with a GELU between.
        dropout: in the head, before each layer.
    """

    tokens: str
    train: str = ALL
    hidden_dim: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ConfigError("text tower: tokens is empty. Name a token column of the shard sets, as tokens.minilm.")
        if self.train not in (ALL, HEAD) and not (self.train.isdecimal() and int(self.train) > 0):
            raise ConfigError(
                f"text tower: train is '{self.train}': give all, head, or how many of its last blocks train."
            )
        if self.hidden_dim < 0:
            raise ConfigError(f"text tower: hidden_dim is {self.hidden_dim}: give a width, or 0 for one linear layer.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"text tower: dropout is {self.dropout}: it is a probability, from 0 to below 1.")

    @abstractmethod
    def encoder_choice(self) -> Choice:
        """The frozen encoder whose tokenizer this tower has, as `shardclip column tokens` takes it."""

    @abstractmethod
    def load(self) -> TextParts:
        """The network, as it is before training.

        Raises:
            WeightsError: its files are not on this machine, or are another model's.
        """

    @cached_property
    def kind(self) -> str:
        """Its name in the table."""
        from trainer.models.texts import TEXTS

        return next(name for name, text in TEXTS.items() if text is type(self))

    @cached_property
    def encoder(self) -> TextEncoder:
        """The frozen encoder of the same files; its weights are never loaded here."""
        encoder: TextEncoder = parts.build(TEXT_ENCODERS, self.encoder_choice(), "text encoder", device="cpu")
        return encoder

    def tokenizer(self) -> TokenizerSpec:
        """Which tokenizer it has."""
        return self.encoder.tokenizer

    def check_tokens(self, head: ColumnHead) -> None:
        """Raise where a column does not hold what this tower reads.

        Raises:
            ConfigError: it is no token column, or of another tokenizer, or its captions are too long; says the command
                that makes the right one.
        """
        where, remedy = f"text tower '{self.kind}': column '{head.name}'", f"Make another one with `{self._command()}`."
        if head.kind != TOKENS:
            raise ConfigError(f"{where} holds {head.kind}, no tokens. {remedy}")
        made, own = head.origin.get("tokenizer", {}), self.tokenizer()
        if made.get("sha256") != own.sha256:
            raise ConfigError(
                f"{where} was made by the tokenizer of {made.get('name')} ({made.get('sha256', '')[:8]}), the tower's "
                f"is that of {own.name} ({own.sha256[:8]}). {remedy}"
            )
        if head.shape[0] > self.encoder.max_tokens:
            raise ConfigError(
                f"{where} has {head.shape[0]} tokens a caption, {own.name} takes {self.encoder.max_tokens}. {remedy}"
            )

    def build(self, embed_dim: int) -> TextTower:
        """The tower in float32 on the CPU, in training mode.

        Args:
            embed_dim: width of the shared space; 0: no head, and the features of the tower itself.

        Raises:
            ConfigError: the options ask for more blocks than there are, or for a head that is not there.
            WeightsError: the model's files are not on this machine.
        """
        from trainer.models.texts.tower import TextTower

        for option, asks in (("train", self.train == HEAD), ("hidden_dim", self.hidden_dim), ("dropout", self.dropout)):
            if asks and not embed_dim:
                raise ConfigError(
                    f"text tower: {option} is {getattr(self, option)}, but with embed_dim 0 there is no head. Set "
                    "model.embed_dim to the width of the shared space, or leave it out."
                )
        loaded = self.load()
        identity = {
            "kind": self.kind,
            "options": self._pinned(),
            "embed_dim": embed_dim,
            "encoder": asdict(self.encoder.spec),
            "tokenizer": asdict(self.tokenizer()),
            "config": dict(loaded.config),
        }
        tower = TextTower(
            loaded,
            embed_dim=embed_dim,
            hidden_dim=self.hidden_dim,
            dropout=self.dropout,
            train=self.train,
            tokenize=self.encoder.tokenize,
            identity=identity,
        )
        return tower.train()

    def _pinned(self) -> dict[str, Any]:
        """The options, so that they mean the same in another folder, and after the hub's branch has moved on."""
        options, revision = asdict(self), self.encoder.spec.revision
        if "model" in options and revision == "local":
            options["model"] = str(Path(options["model"]).expanduser().resolve())
        elif "revision" in options:
            options["revision"] = revision
        return options

    def _command(self) -> str:
        choice = self.encoder_choice()
        options = [f"{key}={value}" for key, value in choice.options.items() if (key, value) != ("revision", "main")]
        return " ".join(["shardclip column tokens SET", f"encoder={choice.name}", *options])
