"""How trustworthy the negatives of a batch are."""

import torch
from torch import Tensor

from trainer.data.names import IMAGE_ID, NUM_CAPTIONS, TEXT
from trainer.objectives.objective import Rows

MAX_CAPTION_SIMILARITY = 0.95  # cosine; a caption more similar than this says the same
_BLOCK = 512  # rows


@torch.no_grad()
def negatives_report(
    rows: Rows, max_caption_similarity: float = MAX_CAPTION_SIMILARITY, left_out_above: float | None = None
) -> dict[str, Tensor]:
    """Of all pairs of a row with another column, how many are false negatives.

    A *false negative* shows the same image or has a caption more similar (cosine) than `max_caption_similarity`,
    whether or not the objective leaves it out. Where a sample has all its captions, the first ones are compared.

    Args:
        left_out_above: cosine of captions above which the objective counts no negative; None: it looks at ids alone.

    Returns:
        Scalars of this rank's rows (equal numbers per rank, so their mean over ranks is that of the global batch):
        "false_negative_rate" (share of those pairs), "valid_negatives" (the rest), "rows_with_false_negative" (share
        of rows with at least one) and "rows_with_counted_false_negative" (with one that the objective does not leave
        out, which ids never are).
    """
    ids, all_ids = rows.own[IMAGE_ID], rows.everywhere[IMAGE_ID]
    texts, all_texts = (
        side[TEXT][:, 0] if NUM_CAPTIONS in side else side[TEXT] for side in (rows.own, rows.everywhere)
    )
    counts, counted = [], []
    for start in range(0, len(ids), _BLOCK):
        part = slice(start, start + _BLOCK)
        alike = ids[part, None] == all_ids
        similarity = texts[part].float() @ all_texts.float().T
        close = similarity > max_caption_similarity
        kept = close & ~alike if left_out_above is None else close & ~alike & (similarity <= left_out_above)
        kept.diagonal(rows.offset + start).fill_(False)
        counted.append(kept.any(1))
        alike |= close
        alike.diagonal(rows.offset + start).fill_(False)
        counts.append(alike.sum(1))
    per_row = torch.cat(counts)  # (B,)
    rate = per_row.float().mean() / max(len(all_ids) - 1, 1)
    return {
        "false_negative_rate": rate,
        "valid_negatives": 1 - rate,
        "rows_with_false_negative": (per_row > 0).float().mean(),
        "rows_with_counted_false_negative": torch.cat(counted).float().mean(),
    }
