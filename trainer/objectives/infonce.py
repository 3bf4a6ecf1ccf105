"""InfoNCE: symmetric cross-entropy over image-text similarities (van den Oord 2018; CLIP: Radford 2021, fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core.errors import ConfigError
from trainer.data.names import IMAGE_ID, NUM_CAPTIONS, TEXT
from trainer.objectives.objective import IMAGE, Block, Objective, Rows, Tensors, check_temperature

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class InfoNCE(Objective):
    """For each row and both directions, over the valid columns j, with target shares q:

    `loss_i = log sum_j exp(s * a_i . c_j) - sum_j q_ij * s * a_i . c_j`. Each direction is averaged over its rows of
    the global batch, and the loss is the mean of both: `log(N)` nats when the features carry no information.
    """

    label_smoothing: float = 0.0  # share of the target spread evenly over all valid columns
    positives: Literal["mask", "multi"] = "mask"  # further captions of the same image: left out, or positives as well
    max_caption_similarity: float | None = None  # captions closer than this (cosine) are no negatives
    captions: Literal["drawn", "all"] = "drawn"  # one caption of each image; or every one, as so many positives
    init_temperature: float = 0.07  # of the softmax, at the start; it is learned
    max_logit_scale: float = 100.0  # 1 / temperature goes no higher

    features = (IMAGE, TEXT)
    columns = (IMAGE_ID,)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"infonce: label_smoothing is {self.label_smoothing}: it is a share. Use 0 to below 1.")
        if self.positives not in ("mask", "multi"):
            raise ConfigError(f"infonce: positives is {self.positives!r}. Use 'mask' or 'multi'.")
        if self.captions not in ("drawn", "all"):
            raise ConfigError(f"infonce: captions is {self.captions!r}. Use 'drawn' or 'all'.")
        if self.max_caption_similarity is not None and not 0 < self.max_caption_similarity <= 1:
            raise ConfigError(
                f"infonce: max_caption_similarity is {self.max_caption_similarity}: it is a cosine. Use above 0 to 1."
            )
        check_temperature("infonce", self.init_temperature, self.max_logit_scale)
        super().__post_init__()

    def terms(self, block: Block) -> Iterator[Tensor]:
        from trainer.objectives.closed_form import softmax_loss

        if NUM_CAPTIONS in block.rows:
            yield from self._terms_of_all_captions(block)
            return
        positive, left_out = self._pairs(block)
        target = self._target(positive, left_out, block) if self._has_target else None
        own = None if self._has_target else block.offset
        for rows, columns in ((IMAGE, TEXT), (TEXT, IMAGE)):
            yield softmax_loss(
                block.rows[rows],
                block.columns[columns],
                block.scalars["scale"],
                own=own,
                target=target,
                left_out=left_out,
            )

    def num_terms(self, everywhere: Tensors) -> int:
        return 2 * len(everywhere[IMAGE])

    def parameters(self) -> dict[str, float]:
        return {"logit_scale": math.log(1 / self.init_temperature)}

    def bounds(self) -> dict[str, tuple[float, float]]:
        return {"logit_scale": (0, math.log(self.max_logit_scale))}

    def scalars(self, parameters: Tensors) -> dict[str, Tensor]:
        return {"scale": parameters["logit_scale"].exp()}

    def figures(self, rows: Rows, scalars: Tensors) -> dict[str, Tensor]:
        from trainer.objectives.negatives import negatives_report

        return {"logit_scale": scalars["scale"], **negatives_report(rows, left_out_above=self.max_caption_similarity)}

    @property
    def all_captions(self) -> bool:  # type: ignore[override]
        """Whether batches bring every caption of their images."""
        return self.captions == "all"

    @property
    def _has_target(self) -> bool:
        return self.positives == "multi" or self.label_smoothing > 0

    def _pairs(self, block: Block) -> tuple[Tensor, Tensor]:
        """`(positive, left_out)`, bool `(m, N)` each; a row's own column is always positive, never left out."""
        from trainer.objectives.pairs import own_columns, same

        same_image = same(block, IMAGE_ID)
        positive = same_image if self.positives == "multi" else own_columns(block, IMAGE_ID)
        alike = same_image
        if self.max_caption_similarity is not None:
            similarity = block.rows[TEXT].detach() @ block.columns[TEXT].detach().T
            alike = alike | (similarity > self.max_caption_similarity)
        return positive, alike & ~positive

    def _target(self, positive: Tensor, left_out: Tensor, block: Block) -> Tensor:
        """Target shares `(m, n)`; each row sums to 1."""
        from trainer.objectives.pairs import shares

        dtype = block.rows[IMAGE].dtype
        target = shares(positive, dtype)
        if self.label_smoothing:
            target.lerp_(shares(~left_out, dtype), self.label_smoothing)
        return target

    def _terms_of_all_captions(self, block: Block) -> Iterator[Tensor]:
        """Images against every caption of the batch, and each of their captions against the images.

        Rows of texts weigh N / T, T captions of the global batch: both directions count alike.
        """
        import torch

        from trainer.objectives.closed_form import softmax_loss
        from trainer.objectives.pairs import own_columns, same

        captions, most = block.columns[TEXT], block.columns[TEXT].shape[1]
        own, alike = own_columns(block, IMAGE_ID), same(block, IMAGE_ID)
        places = torch.arange(most, device=captions.device)
        is_there = (places < block.columns[NUM_CAPTIONS][:, None]).flatten()  # (N * C,)
        positive = alike if self.positives == "multi" else own
        if self.max_caption_similarity is not None:
            close = _any_caption_alike(block, self.max_caption_similarity)
            alike = alike | close
        left_out = alike & ~positive  # (m, N)
        of_captions = positive.repeat_interleave(most, 1) & is_there
        no_captions = left_out.repeat_interleave(most, 1) | ~is_there
        scale = block.scalars["scale"]
        yield softmax_loss(
            block.rows[IMAGE],
            captions.flatten(0, 1),
            scale,
            target=self._target(of_captions, no_captions, block),
            left_out=no_captions,
        )
        total = block.columns[NUM_CAPTIONS].sum(dtype=captions.dtype)
        there = (places < block.rows[NUM_CAPTIONS][:, None]).flatten()  # (m * C,)
        yield softmax_loss(
            block.rows[TEXT].flatten(0, 1),
            block.columns[IMAGE],
            scale,
            target=self._target(positive, left_out, block).repeat_interleave(most, 0),
            left_out=left_out.repeat_interleave(most, 0),
            weights=there * (len(captions) / total),
        )


def _any_caption_alike(block: Block, most: float) -> Tensor:
    """Bool `(m, N)`: samples of which any caption is closer than `most` to any of the row's."""
    import torch

    rows, columns = block.rows[TEXT].detach(), block.columns[TEXT].detach()
    places = torch.arange(columns.shape[1], device=columns.device)
    close = rows.flatten(0, 1) @ columns.flatten(0, 1).T > most
    # What stands behind the last caption is zeros where captions are stored, and a unit vector where a tower made it.
    close &= (places < block.rows[NUM_CAPTIONS][:, None]).flatten()[:, None]
    close &= (places < block.columns[NUM_CAPTIONS][:, None]).flatten()
    return close.unflatten(0, rows.shape[:2]).unflatten(2, columns.shape[:2]).any(3).any(1)
