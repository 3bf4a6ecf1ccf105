"""InfoNCE of local rows against gathered columns, in row blocks, so that memory grows with the batch, not its square.

Dimensions: B local rows, N = world_size * B gathered columns, D embedding, m rows of one block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.errors import ConfigError


@dataclass(frozen=True)
class InfoNCE:
    """The loss as the trainer calls it; its fields are the options in YAML."""

    label_smoothing: float = 0.0  # share of the target spread evenly over all valid columns
    block_size: int = 512  # rows whose logits exist at once; 0: all
    positives: Literal["mask", "multi"] = "mask"  # further captions of the same image: left out, or positives as well
    max_caption_similarity: float | None = None  # captions closer than this (cosine) are no negatives

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"infonce: label_smoothing is {self.label_smoothing}: it is a share. Use 0 to below 1.")
        if self.block_size < 0:
            raise ConfigError(f"infonce: block_size is {self.block_size}: give a number of rows, or 0 for all at once.")
        if self.positives not in ("mask", "multi"):
            raise ConfigError(f"infonce: positives is {self.positives!r}. Use 'mask' or 'multi'.")
        if self.max_caption_similarity is not None and not 0 < self.max_caption_similarity <= 1:
            raise ConfigError(
                f"infonce: max_caption_similarity is {self.max_caption_similarity}: it is a cosine. Use above 0 to 1."
            )

    def __call__(
        self,
        image_features: Tensor,
        text_features: Tensor,
        all_image_features: Tensor,
        all_text_features: Tensor,
        logit_scale: Tensor,
        image_ids: Tensor,
        all_image_ids: Tensor,
        offset: int,
    ) -> Tensor:
        """See `info_nce`."""
        return info_nce(
            image_features,
            text_features,
            all_image_features,
            all_text_features,
            logit_scale,
            image_ids,
            all_image_ids,
            offset,
            label_smoothing=self.label_smoothing,
            block_size=self.block_size,
            positives=self.positives,
            max_caption_similarity=self.max_caption_similarity,
        )

    def for_proof(self) -> "InfoNCE":
        """The same loss in blocks smaller than the proof's batch, where similarity of random texts means nothing."""
        return InfoNCE(self.label_smoothing, block_size=3, positives=self.positives)

    def reference(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        """What `for_proof` has to equal on a whole batch of distinct images `(N, D)`, by plain autograd."""
        logits = logit_scale * image_features @ text_features.T
        target = torch.arange(len(logits), device=logits.device)
        image_to_text = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        text_to_image = F.cross_entropy(logits.T, target, label_smoothing=self.label_smoothing)
        return (image_to_text + text_to_image) / 2


def info_nce(
    image_features: Tensor,
    text_features: Tensor,
    all_image_features: Tensor,
    all_text_features: Tensor,
    logit_scale: Tensor,
    image_ids: Tensor,
    all_image_ids: Tensor,
    offset: int,
    *,
    label_smoothing: float = 0.0,
    block_size: int = 512,
    positives: Literal["mask", "multi"] = "mask",
    max_caption_similarity: float | None = None,
) -> Tensor:
    """Symmetric cross-entropy over similarities (InfoNCE: van den Oord 2018; as in CLIP: Radford 2021, fig. 3).

    For each local row i and both directions, over the valid columns j, with target shares q:
    `loss_i = log sum_j exp(s * a_i . c_j) - sum_j q_ij * s * a_i . c_j`. Averaged over rows and directions; averaged
    over ranks as well (DDP), value and gradient are those of one batch of N pairs in one process.

    Gradients are computed block by block together with the loss, so that what is kept for the backward pass is
    `(B + N) x D`, never `B x N`. Float64 stays float64; anything else is computed in float32, also under autocast.

    Args:
        image_features: `(B, D)`, unit length; row i is paired with row i of `text_features`.
        text_features: `(B, D)`, unit length.
        all_image_features: `(N, D)`, gathered with gradient; row `offset + i` is row i of `image_features`.
        all_text_features: `(N, D)`, likewise; gathered without gradient if the texts are frozen.
        logit_scale: scalar 1 / temperature.
        image_ids: `(B,)` integers; pairs of the same image share it.
        all_image_ids: `(N,)`, gathered.
        offset: index of the first local row among the gathered ones.
        label_smoothing: share of the target spread evenly over all valid columns of a row.
        block_size: rows per block; 0 computes all rows at once.
        positives: other pairs of the same image are left out of the row ("mask"), or share its target ("multi").
        max_caption_similarity: pairs of other images whose caption has a higher cosine are left out of the row.

    Returns:
        Scalar in nats; `log(N)` when the features carry no information. NaN features give NaN.
    """
    dtype = torch.float64 if image_features.dtype == torch.float64 else torch.float32
    return _BlockedInfoNCE.apply(
        image_features.to(dtype),
        text_features.to(dtype),
        all_image_features.to(dtype),
        all_text_features.to(dtype),
        logit_scale.to(dtype),
        _Pairs(image_ids, all_image_ids, offset, positives == "multi", max_caption_similarity),
        label_smoothing,
        block_size or len(image_features),
    )


@torch.no_grad()
def negatives_report(
    text_features: Tensor,
    all_text_features: Tensor,
    image_ids: Tensor,
    all_image_ids: Tensor,
    offset: int,
    *,
    max_caption_similarity: float | None = 0.95,
    block_size: int = 512,
) -> dict[str, Tensor]:
    """How trustworthy the negatives of a batch are; shapes as in `info_nce`.

    Of all pairs of a local row with another column, a *false negative* shows the same image or has a caption more
    similar (cosine) than `max_caption_similarity`, whether or not the loss leaves it out.

    Returns:
        Scalars of the local rows (equal numbers per rank, so their mean over ranks is that of the global batch):
        "false_negative_rate" (share of those pairs), "valid_negatives" (the rest) and
        "rows_with_false_negative" (share of rows with at least one).
    """
    pairs = _Pairs(image_ids, all_image_ids, offset, False, max_caption_similarity)
    per_row = torch.cat(
        [
            pairs.block(rows, text_features.float(), all_text_features.float())[1].sum(1)
            for rows in _row_blocks(len(image_ids), block_size or len(image_ids))
        ]
    )  # (B,)
    rate = per_row.float().mean() / max(len(all_image_ids) - 1, 1)
    return {
        "false_negative_rate": rate,
        "valid_negatives": 1 - rate,
        "rows_with_false_negative": (per_row > 0).float().mean(),
    }


@dataclass(frozen=True)
class _Pairs:
    """Which columns are positive for a row, and which are left out of it."""

    image_ids: Tensor  # (B,)
    all_image_ids: Tensor  # (N,)
    offset: int
    is_multi: bool
    max_caption_similarity: float | None

    def block(self, rows: slice, text_features: Tensor, all_text_features: Tensor) -> tuple[Tensor, Tensor]:
        """`(positive, left_out)`, boolean `(m, N)` each; a row's own column is always positive, never left out."""
        own = torch.zeros(
            rows.stop - rows.start, len(self.all_image_ids), dtype=torch.bool, device=self.image_ids.device
        )
        own.diagonal(self.offset + rows.start).fill_(True)
        same_image = (self.image_ids[rows, None] == self.all_image_ids) | own
        positive = same_image if self.is_multi else own
        alike = same_image
        if self.max_caption_similarity is not None:
            alike = alike | (text_features[rows] @ all_text_features.T > self.max_caption_similarity)
        return positive, alike & ~positive


class _BlockedInfoNCE(torch.autograd.Function):
    """Loss and gradients in one pass over row blocks; the backward pass only multiplies by the incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        image_features: Tensor,
        text_features: Tensor,
        all_image_features: Tensor,
        all_text_features: Tensor,
        logit_scale: Tensor,
        pairs: _Pairs,
        label_smoothing: float,
        block_size: int,
    ) -> Tensor:
        features = (image_features, text_features, all_image_features, all_text_features)
        # Frozen texts need no gradient: a third of the matrix products is saved.
        grads = [torch.zeros_like(x) if needed else None for x, needed in zip(features, ctx.needs_input_grad)]
        grad_scale = torch.zeros_like(logit_scale)
        total = torch.zeros_like(logit_scale)
        with torch.autocast(image_features.device.type, enabled=False):
            for rows in _row_blocks(len(image_features), block_size):
                positive, left_out = pairs.block(rows, text_features, all_text_features)
                own = pairs.offset + rows.start  # the diagonal on which these rows meet their own columns
                is_plain = not (pairs.is_multi or label_smoothing)
                target = None if is_plain else _target(positive, left_out, label_smoothing, total.dtype)
                for row, column in ((0, 3), (1, 2)):  # images against all texts, texts against all images
                    cosine = features[row][rows] @ features[column].T  # (m, N)
                    loss, grad = _row_losses(cosine, logit_scale, target, own, left_out)
                    total += loss.sum()
                    grad_scale += cosine.mul_(grad).sum()  # in place: a third matrix of this size is saved
                    if (grad_rows := grads[row]) is not None:
                        torch.mm(grad, features[column], out=grad_rows[rows])
                    if (grad_columns := grads[column]) is not None:
                        grad_columns.addmm_(grad.T, features[row][rows])
        mean = 1 / (2 * len(image_features))
        for grad_features in grads:
            if grad_features is not None:
                grad_features.mul_(logit_scale * mean)
        ctx.save_for_backward(*grads, grad_scale * mean)
        return total * mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if grad is None else grad * grad_output for grad in ctx.saved_tensors), None, None, None


def _target(positive: Tensor, left_out: Tensor, label_smoothing: float, dtype: torch.dtype) -> Tensor:
    """Target shares `(m, N)`; each row sums to 1."""
    target = positive / positive.sum(1, keepdim=True, dtype=dtype)
    if label_smoothing:
        valid = ~left_out
        target = target.lerp_(valid / valid.sum(1, keepdim=True, dtype=dtype), label_smoothing)
    return target


def _row_losses(
    cosine: Tensor, logit_scale: Tensor, target: Tensor | None, own: int, left_out: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of the rows `(m,)` and their gradient with respect to the logits `(m, N)`: softmax - target.

    Args:
        target: shares `(m, N)`; None: all on the diagonal `own`, which saves a matrix of that size and two passes.
    """
    logits = (logit_scale * cosine).masked_fill_(left_out, -torch.inf)
    log_normalizer = logits.logsumexp(1, keepdim=True)
    # From the cosines, not the logits: 0 * -inf of a column left out would be NaN.
    positive = cosine.diagonal(own) if target is None else (target * cosine).sum(1)
    loss = log_normalizer.squeeze(1) - logit_scale * positive
    grad = logits.sub_(log_normalizer).exp_()
    if target is None:
        grad.diagonal(own).sub_(1)
    else:
        grad.sub_(target)
    return loss, grad


def _row_blocks(num_rows: int, block_size: int) -> Iterator[slice]:
    for start in range(0, num_rows, block_size):
        yield slice(start, min(start + block_size, num_rows))
