"""What an objective is, and what it is given: who adds one reads this file and nothing else.

Free of torch until it works, since recipes are checked before torch is loaded. Dimensions: B samples of this rank,
N samples of all ranks, m rows of one block, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from core.errors import ConfigError
from trainer.data.names import TEXT

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
IMAGE, IMAGE2 = "image", "image2"  # features beside TEXT: the views of a picture


@dataclass(frozen=True)
class Rows:
    """Features and columns of one global batch, by name; the same names on both sides.

    Attributes:
        own: `(B, ...)` of this rank.
        everywhere: `(N, ...)` of all ranks, in rank order.
        offset: row i of `own` is row `offset + i` of `everywhere`.
    """

    own: Tensors
    everywhere: Tensors
    offset: int


@dataclass(frozen=True)
class Block:
    """What an objective is given at a time: some rows of this rank against the samples of all ranks.

    Attributes:
        rows: `(m, ...)` by name. Features are unit vectors `(m, D)`. Where a recipe uses every caption, they are
            `(m, C, D)` beside "num_captions" `(m,)`: what stands behind the last caption is to be ignored.
        columns: `(N, ...)`, the same names.
        offset: row i is the sample of column `offset + i`.
        scalars: what the objective's `scalars` made of its learned parameters.
        state: what the objective keeps from step to step, as `initial_state` named it.
    """

    rows: Tensors
    columns: Tensors
    offset: int
    scalars: Tensors
    state: Tensors


@dataclass(frozen=True)
class Objective(ABC):
    """A contrastive objective: its options are its fields, its learned scalars and its state live with the trainer.

    A subclass gives `terms`, and whatever else differs from what stands here. Gathers, blocks, accumulation, averaging
    over ranks, checkpoints and the proof before step 1 are not its business.

    Attributes:
        block_size: rows compared at once; 0: all. It changes memory, not the result.
    """

    block_size: int = field(default=512, kw_only=True)

    # Facts, not options; a subclass may make one of them an option.
    views = 1  # augmented pictures of each sample: 2 gives "image" and "image2"
    all_captions = False  # every stored caption of a sample, not one that is drawn
    features: ClassVar[tuple[str, ...]] = ()  # unit vectors it compares; trained ones carry gradient, given ones do not
    columns: ClassVar[tuple[str, ...]] = ()  # relations between samples it needs
    keeps_head: ClassVar[bool] = True  # false: the head is thrown away, evaluation uses the features before it
    head_dims: ClassVar[tuple[int, int] | None] = None  # hidden and output width of the head; None: as captions ask

    def __post_init__(self) -> None:
        if self.block_size < 0:
            raise ConfigError(f"block_size is {self.block_size}: give a number of rows, or 0 for all at once.")

    @abstractmethod
    def terms(self, block: Block) -> Iterator[Tensor]:
        """Yield the loss of the block's rows in one or several parts, each a scalar sum over rows.

        Each part is differentiated before the next is asked for, so that only one needs memory at a time.
        """

    def num_terms(self, everywhere: Tensors) -> int | Tensor:
        """What the sum over all rows of all ranks is divided by; a scalar tensor where it depends on values."""
        return len(next(iter(everywhere.values())))

    def parameters(self) -> dict[str, float]:
        """Learned scalars by name, with their starting values."""
        return {}

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Between which values learned scalars are kept after each step."""
        return {}

    def scalars(self, parameters: Tensors) -> dict[str, Tensor]:
        """What `terms` and `figures` are given of the learned parameters."""
        return dict(parameters)

    def initial_state(self, embed_dim: int) -> dict[str, Tensor]:
        """What is kept from step to step and is no parameter: a queue, prototypes. Never averaged, never reduced."""
        return {}

    def next_state(self, rows: Rows, state: Tensors) -> dict[str, Tensor]:
        """The state after a step; every rank is given the same `everywhere` and must come to the same state."""
        return dict(state)

    def figures(self, rows: Rows, scalars: Tensors) -> dict[str, Tensor]:
        """What telemetry shows of a step: scalars by name."""
        return dict(scalars)

    @property
    def needs_text(self) -> bool:
        """Whether captions take part."""
        return TEXT in self.features


def check_temperature(name: str, temperature: float, max_logit_scale: float) -> None:
    """Raise where a learned temperature starts outside of what it is clamped to."""
    if max_logit_scale < 1:
        raise ConfigError(f"{name}: max_logit_scale is {max_logit_scale}: give at least 1, as 100.")
    if not 1 / max_logit_scale <= temperature <= 1:
        raise ConfigError(
            f"{name}: init_temperature is {temperature}: give at least 1 / max_logit_scale = {1 / max_logit_scale:g}, "
            "and at most 1."
        )
